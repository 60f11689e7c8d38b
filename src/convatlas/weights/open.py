"""Open weights by name or by file."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path

from convatlas.core.spec import Spec, diff
from convatlas.errors import WeightsError, listed, nearest
from convatlas.models.card import LIBRARIES, Variant
from convatlas.models.catalog import CATALOG, variant
from convatlas.models.index import find_name
from convatlas.models.own_module import OwnModule
from convatlas.weights import modelfile
from convatlas.weights.fetch import pull
from convatlas.weights.files import split_key, weights_in
from convatlas.weights.imported import find_imported, is_imported_name, list_imported
from convatlas.weights.pretrained import Weights, find_weights, list_weights
from convatlas.weights.read import Checkpoint, read_checkpoint

WEIGHTS_CELLS = frozenset(("padding", "eps", "momentum"))
"""Cells of a spec that change the function of a network and not its tensors: they belong to the weights."""


DEFAULT, IMAGENET = "DEFAULT", "imagenet"
"""Names of the default published weights of a network: the library's default, of the first library that has some."""


def published_weights(weights: str | Path | Enum, name: str) -> Weights | None:
    """Return the published weights that a text names for a network, or None if it names none, such as a file.

    weights: "DEFAULT" or "imagenet", "library:tag", "network@library:tag", or a value of an enumeration of torchvision.
    Raises WeightsError for an unknown library or tag, and for weights of another network.
    """
    if not isinstance(weights, str | Path | Enum):
        raise WeightsError(f"weights: must be a name or a file, got {weights!r}; the default ones are {DEFAULT}")
    source, network = str(weights), name.removesuffix("-custom")
    if isinstance(weights, Enum):
        return _torchvision_weights(weights, network)
    if split_key(weights)[0].exists():
        return None
    prefix, at, rest = source.partition("@")
    owner = find_name(prefix, CATALOG)
    if at and owner and ":" in rest:
        if owner != network:
            raise WeightsError(f"{source}: are weights of {owner}, not of {network}")
        return find_weights(source)
    library, colon, _ = source.partition(":")
    if colon and library in LIBRARIES:
        return find_weights(f"{network}@{source}")
    if source in (DEFAULT, IMAGENET) and not _is_imported(network, source):
        published = list_weights(network) if network in CATALOG else []
        if not published:
            raise WeightsError(f"{source}: no installed library publishes weights of {network}")
        return published[0]
    return None


def _torchvision_weights(value: Enum, network: str) -> Weights:
    """Return the weights of a value such as ResNet18_Weights.IMAGENET1K_V1, whose type names the network."""
    upstream = variant(network).upstream.get("torchvision", "") if network in CATALOG else ""
    if not upstream or f"{upstream}_weights".replace("_", "") != type(value).__name__.lower().replace("_", ""):
        raise WeightsError(f"{value}: are weights of another network, not of {network}")
    return find_weights(f"{network}@torchvision:{value.name}")


def _is_imported(network: str, tag: str) -> bool:
    return network in CATALOG and any(each.name == f"{network}@{tag}" for each in list_imported(network))


def open_weights(weights: str | Path | Enum, spec: Spec, *, name: str, row: Variant) -> Checkpoint:
    """Return weights for a network.

    weights: published ones, see `published_weights`; "network@tag" or "tag" of imported weights; a model file; or a
        checkpoint of convatlas or of another library, which is a file, the index of shards, or a folder, with ":key"
        for one of several state dicts in it.
    spec, name, row: the network, its name, and its row of the catalog.
    Raises WeightsError or ModelFileError if they cannot be opened or are of another network.
    """
    if record := published_weights(weights, name):
        checkpoint = read_checkpoint(pull(record), spec, name=name, row=row, library=record.library)
        return dataclasses.replace(
            checkpoint, where=record.name, preprocessing=record.preprocessing, class_names=record.classes,
            cells=record.cells, notes=(),
        )  # fmt: skip
    source = str(weights)
    path, key = split_key(source)
    if not path.exists():
        network = name.removesuffix("-custom")
        if _is_imported(network, source):
            source = f"{network}@{source}"
        if is_imported_name(source):
            return _open_model_file(find_imported(source).path, spec, name)
        raise WeightsError(_unknown(source, network))
    if path.is_dir():
        path = weights_in(path)
    if modelfile.is_model_file(path):
        return _open_model_file(path, spec, name)
    return read_checkpoint(path, spec, name=name, row=row, key=key)


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


def _open_model_file(path: Path, spec: Spec, name: str) -> Checkpoint:
    header, tensors = modelfile.read_tensors(path)
    if isinstance(header.spec, OwnModule):
        raise WeightsError(f"{path}: the model file must contain {name}, got the own module {header.spec.module}")
    changes = diff(spec, header.spec.scaled(resolution=spec.resolution))
    if not changes.keys() <= WEIGHTS_CELLS:
        differences = ", ".join(f"{cell} {theirs} instead of {ours}" for cell, (ours, theirs) in changes.items())
        raise WeightsError(f"{path}: the model file must contain {name}, got another network: {differences}")
    modelfile.check_tensors(path, header, tensors)
    preprocessing, classes = header.preprocessing, header.classes
    return Checkpoint(
        tensors, len(classes), preprocessing.channels, path, preprocessing, "convatlas", classes,
        {cell: theirs for cell, (_, theirs) in changes.items()}, tensors,
    )  # fmt: skip
