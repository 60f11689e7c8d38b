"""Open weights by name or by file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from convatlas.core.spec import Spec, diff
from convatlas.errors import WeightsError, nearest
from convatlas.models.card import LIBRARIES, Variant
from convatlas.weights import modelfile
from convatlas.weights.fetch import pull
from convatlas.weights.files import split_key, weights_in
from convatlas.weights.imported import find_imported, is_imported_name
from convatlas.weights.pretrained import find_weights
from convatlas.weights.read import Checkpoint, read_checkpoint

WEIGHTS_CELLS = frozenset(("padding", "eps", "momentum"))
"""Cells of a spec that change the function of a network and not its tensors: they belong to the weights."""


def open_weights(weights: str | Path, spec: Spec, *, name: str, row: Variant) -> Checkpoint:
    """Return weights for a network.

    weights: "library:tag"; "network@tag" of imported weights; a model file; or a checkpoint of convatlas or of another
        library, which is a file, the index of shards, or a folder, with ":key" for one of several state dicts in it.
    spec, name, row: the network, its name, and its row of the catalog.
    Raises WeightsError or ModelFileError if they cannot be opened or are of another network.
    """
    source = str(weights)
    path, key = split_key(weights)
    library, colon, _ = source.partition(":")
    if colon and library in LIBRARIES:
        record = find_weights(f"{name.removesuffix('-custom')}@{source}")
        checkpoint = read_checkpoint(pull(record), spec, name=name, row=row, library=record.library)
        return dataclasses.replace(
            checkpoint, where=record.name, preprocessing=record.preprocessing, class_names=record.classes,
            cells=record.cells, notes=(),
        )  # fmt: skip
    if not path.exists() and is_imported_name(source):
        return _open_model_file(find_imported(source).path, spec, name)
    if colon and not path.exists() and len(library) > 1:  # one letter is a drive of Windows
        raise WeightsError(
            f"{source}: must be a file or LIBRARY:TAG with one of {', '.join(LIBRARIES)}, got library {library!r}"
            f"{nearest(library, LIBRARIES)}"
        )
    if path.is_dir():
        path = weights_in(path)
    if modelfile.is_model_file(path):
        return _open_model_file(path, spec, name)
    return read_checkpoint(path, spec, name=name, row=row, key=key)


def _open_model_file(path: Path, spec: Spec, name: str) -> Checkpoint:
    header, tensors = modelfile.read_tensors(path)
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
