"""Open weights by name or by file."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from enum import Enum
from pathlib import Path

from convatlas.core.spec import ClipSpec, Spec, diff
from convatlas.errors import SpecError, WeightsError, listed, nearest
from convatlas.models.card import LIBRARIES, Variant
from convatlas.models.catalog import CATALOG, variant
from convatlas.models.index import find_name
from convatlas.models.own_module import OwnModule
from convatlas.weights import modelfile
from convatlas.weights.detector import (
    body_of,
    networks_with_weights,
    points_in,
    points_of,
    weights_for_points,
    weights_of_body,
    with_norms_of,
    with_points,
)
from convatlas.weights.fetch import pull
from convatlas.weights.files import read_checkpoint_file, split_key, weights_in
from convatlas.weights.imported import find_imported, is_imported_name, list_imported
from convatlas.weights.inflate import HINT, Inflation, image_network, inflate_checkpoint, read_with_hint
from convatlas.weights.pretrained import Weights, find_weights, list_weights
from convatlas.weights.read import Checkpoint, read_checkpoint

WEIGHTS_CELLS = frozenset(("padding", "eps", "momentum", "norm", "mean", "std"))
"""Cells of a spec that change the function of a network and not its tensors: they belong to the weights."""


DEFAULT, IMAGENET = "DEFAULT", "imagenet"
"""Names of the default published weights of a network: the library's default, of the first library that has some."""


def published_weights(weights: str | Path | Enum, spec: Spec, name: str) -> Weights | None:
    """Return the published weights that a text names for a network, or None if it names none, such as a file.

    weights: "DEFAULT" or "imagenet", "library", "library:tag", "network@library:tag", or a value of an enumeration of
        torchvision. For a detector, they may be those of its body.
    Raises WeightsError for an unknown library or tag, and for weights of another network.
    """
    if not isinstance(weights, str | Path | Enum):
        raise WeightsError(f"weights: must be a name or a file, got {weights!r}; the default ones are {DEFAULT}")
    source, networks = str(weights), list(networks_with_weights(spec, name))
    if isinstance(weights, Enum):
        return _torchvision_weights(weights, networks)
    if split_key(weights)[0].exists():
        return None
    prefix, at, rest = source.partition("@")
    owner = find_name(prefix, CATALOG)
    if at and owner and ":" in rest:
        if owner not in networks:
            hint = f"; {HINT}" if (spec.reads, variant(owner).spec.reads) == ("clips", "images") else ""
            raise WeightsError(f"{source}: are weights of {owner}, not of {' or '.join(networks)}{hint}")
        return find_weights(source)
    library, _, tag = source.partition(":")
    if library in LIBRARIES:
        return _of_library(library, tag or DEFAULT, networks)
    if source in (DEFAULT, IMAGENET) and not any(_is_imported(network, source) for network in networks):
        published = [each for network in networks if network in CATALOG for each in list_weights(network)]
        if not published:
            raise WeightsError(f"{source}: no installed library publishes weights of {' or '.join(networks)}")
        return published[0]
    return None


def _of_library(library: str, tag: str, networks: list[str]) -> Weights:
    """Return the weights of a library with a tag, of the first network that has some."""
    *first, last = networks
    for network in first:
        with suppress(WeightsError, SpecError):
            return find_weights(f"{network}@{library}:{tag}")
    return find_weights(f"{last}@{library}:{tag}")


def _torchvision_weights(value: Enum, networks: list[str]) -> Weights:
    """Return the weights of a value such as ResNet18_Weights.IMAGENET1K_V1, whose type names the network."""
    for network in networks:
        upstream = variant(network).upstream.get("torchvision", "") if network in CATALOG else ""
        if upstream and f"{upstream}_weights".replace("_", "") == type(value).__name__.lower().replace("_", ""):
            return find_weights(f"{network}@torchvision:{value.name}")
    raise WeightsError(f"{value}: are weights of another network, not of {' or '.join(networks)}")


def _is_imported(network: str, tag: str) -> bool:
    return network in CATALOG and any(each.name == f"{network}@{tag}" for each in list_imported(network))


def open_weights(
    weights: str | Path | Enum, spec: Spec, *, name: str, row: Variant, inflate: Inflation | None = None
) -> Checkpoint:
    """Return weights for a network.

    weights: published ones, see `published_weights`; "network@tag" or "tag" of imported weights; a model file; or a
        checkpoint of convatlas or of another library, which is a file, the index of shards, or a folder, with ":key"
        for one of several state dicts in it.
    spec, name, row: the network, its name, and its row of the catalog.
    inflate: the weights are those of the counterpart for images of a network for clips, and inflated so; see
        `Inflation`.
    Raises WeightsError or ModelFileError if they cannot be opened or are of another network.
    """
    if inflate is not None:
        source_name, source_row = image_network(spec, inflate)
        checkpoint = open_weights(weights, source_row.spec, name=source_name, row=source_row)
        return inflate_checkpoint(checkpoint, spec, row, inflate)
    if record := published_weights(weights, spec, name):
        if record.network != name.removesuffix("-custom") and (body := body_of(spec)):
            return weights_of_body(_open_published(record, body[1].spec, *body), spec, row)
        return _open_published(record, spec, name, row)
    source = str(weights)
    path, key = split_key(source)
    if not path.exists():
        networks = networks_with_weights(spec, name)
        source = next((f"{each}@{source}" for each in networks if _is_imported(each, source)), source)
        if is_imported_name(source):
            return _open_model_file(find_imported(source).path, spec, name, row)
        raise WeightsError(_unknown(source, next(iter(networks))))
    if path.is_dir():
        path = weights_in(path)
    if modelfile.is_model_file(path):
        return _open_model_file(path, spec, name, row)
    return _open_checkpoint(path, spec, name, row, key)


def _open_checkpoint(path: Path, spec: Spec, name: str, row: Variant, key: str) -> Checkpoint:
    """Return a checkpoint; for a detector, also one of trained norms, of other keypoints, or of its body."""

    file = read_checkpoint_file(path)

    def read(spec: Spec) -> Checkpoint:
        return read_checkpoint(path, spec, name=name, row=row, key=key, file=file)

    def read_body(body_name: str, body_row: Variant) -> Checkpoint:
        checkpoint = read_checkpoint(path, body_row.spec, name=body_name, row=body_row, key=key, file=file)
        return weights_of_body(checkpoint, spec, row)

    body = body_of(spec)
    if body is None:
        return read_with_hint(lambda: read(spec), spec, file)
    try:
        checkpoint = read(spec)
        if any(name.startswith("head.") for name in checkpoint.tensors):
            return with_norms_of(checkpoint, spec, read)
    except WeightsError:
        theirs = with_points(spec, points_in(file))
        if theirs != spec:
            checkpoint = with_norms_of(read(theirs), theirs, read)
            return weights_for_points(checkpoint, checkpoint.spec_for(spec))
        with suppress(WeightsError):
            return read_body(*body)
        raise
    return read_body(*body)


def _open_published(record: Weights, spec: Spec, name: str, row: Variant) -> Checkpoint:
    published = with_points(spec, points_of(record.spec))
    checkpoint = read_checkpoint(pull(record), published, name=name, row=row, library=record.library)
    checkpoint = dataclasses.replace(
        checkpoint, where=record.name, preprocessing=record.preprocessing, class_names=record.classes,
        cells=record.cells, notes=(),
    )  # fmt: skip
    return checkpoint if published == spec else weights_for_points(checkpoint, spec)


def _unknown(source: str, network: str) -> str:
    """Return the message for a text that names no weights: it may be a near miss of a name, or a missing file."""
    library, colon, _ = source.partition(":")
    if colon and len(library) > 1:  # one letter is a drive of Windows
        return (
            f"{source}: must be a file or LIBRARY:TAG with one of {', '.join(LIBRARIES)}, got library {library!r}"
            f"{nearest(library, LIBRARIES)}"
        )
    names = [DEFAULT, IMAGENET]
    if network in CATALOG:
        published = list_weights(network)
        names += [f"{each.library}:{each.tag}" for each in published] + [each.name for each in list_imported(network)]
        exact = [f"{each.library}:{each.tag}" for each in published if source in (each.tag, each.library)]
        if exact:
            return f"{source}: no such file; write {listed(exact, 3)}"
    if source.lower() in (DEFAULT.lower(), IMAGENET, "pretrained", "true"):
        return f"{source}: no such file; the default published weights are DEFAULT"
    return f"{source}: no such file{nearest(source, names)}"


def _open_model_file(path: Path, spec: Spec, name: str, row: Variant) -> Checkpoint:
    header, tensors = modelfile.read_tensors(path)
    if header.spec.predicts == "classes" and (body := body_of(spec)):
        return weights_of_body(_open_model_file(path, body[1].spec, *body), spec, row)
    if isinstance(header.spec, OwnModule):
        raise WeightsError(f"{path}: the model file must contain {name}, got the own module {header.spec.module}")
    theirs = _for_input_of(header.spec, spec)
    ours = with_points(spec, points_of(theirs))
    changes = diff(ours, theirs)
    if not {_cell_name(path) for path in changes} <= WEIGHTS_CELLS:
        shown = {"type": changes["type"]} if "type" in changes else changes
        differences = ", ".join(f"{cell} {theirs} instead of {ours}" for cell, (ours, theirs) in shown.items())
        raise WeightsError(f"{path}: the model file must contain {name}, got another network: {differences}")
    modelfile.check_tensors(path, header, tensors)
    preprocessing, classes = header.preprocessing, header.classes
    fields = {cell.split(".")[0].split("[")[0] for cell in changes}
    checkpoint = Checkpoint(
        tensors, len(classes), preprocessing.channels, path, preprocessing, "convatlas", classes,
        {field: getattr(theirs, field) for field in fields}, tensors,
    )  # fmt: skip
    return checkpoint if ours == spec else weights_for_points(checkpoint, checkpoint.spec_for(spec))


def _for_input_of(theirs: Spec, spec: Spec) -> Spec:
    """Return a spec at the resolution and with the frames of another one, on which no weights depend."""
    theirs = theirs.scaled(resolution=spec.resolution)
    both = isinstance(theirs, ClipSpec) and isinstance(spec, ClipSpec)
    return theirs.replaced({"frames": spec.input_shape(1)[1]}) if both else theirs


def _cell_name(path: str) -> str:
    """Return "padding" for the path "body.padding" of a cell, "mean" for "mean[0]"."""
    return path.rpartition(".")[2].partition("[")[0]
