"""Open weights by name or by file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from convatlas.core.spec import Spec, diff
from convatlas.errors import WeightsError, nearest
from convatlas.models.card import Variant
from convatlas.models.catalog import build_fresh
from convatlas.models.keys import rename
from convatlas.weights import modelfile
from convatlas.weights.fetch import pull
from convatlas.weights.pretrained import LIBRARIES, find_weights
from convatlas.weights.read import Checkpoint, _key_mappings, load_tensors


def open_weights(weights: str | Path, spec: Spec, *, name: str, row: Variant) -> Checkpoint:
    """Return what `weights` names: "library:tag", a sealed model file, or a checkpoint file."""
    source, path = str(weights), Path(weights)
    library, colon, _ = source.partition(":")
    if colon and library in LIBRARIES:
        record = find_weights(f"{name.removesuffix('-custom')}@{source}")
        tensors = load_tensors(pull(record))
        steps, names = record.preprocessing, record.classes
        return Checkpoint(tensors, len(names), record.channels, record.name, steps, library, names)
    if colon and not path.exists() and len(library) > 1:
        raise WeightsError(f"unknown library {library!r}{nearest(library, LIBRARIES)}, and no such file: {source}")
    if modelfile.is_model_file(path):
        sealed, header = modelfile.load(path)
        if header.spec.scaled(resolution=spec.resolution) != spec:
            cells = diff(spec, header.spec).items()
            told = ", ".join(f"{cell} {theirs} instead of {ours}" for cell, (ours, theirs) in cells)
            raise WeightsError(f"{path}: holds another network than {name}: {told}")
        steps, names = header.preprocessing, header.classes
        return Checkpoint(sealed.state_dict(), len(names), steps.channels, path, steps, "convatlas", names)
    tensors = load_tensors(path)
    for dialect, rules in _key_mappings(spec).items():
        named = {name: tensor for key, tensor in tensors.items() if (name := rename(key, rules(spec)))}
        if sizes := _sizes(spec, named):
            return Checkpoint(tensors, *sizes, path, row.preprocessing, dialect)
    # which will not fit, and say why
    return Checkpoint(tensors, row.classes, row.preprocessing.channels, path, row.preprocessing)


def _sizes(spec: Spec, named: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return the classes and channels of a checkpoint under our names; None if it has not the names of this network.

    They are read off the first tensor whose shape depends on them.
    """
    base, more_classes, more_channels = (
        build_fresh(spec, classes=classes, channels=channels, device="meta").state_dict()
        for classes, channels in ((2, 1), (3, 1), (2, 2))
    )
    counted = {key for key in base if key.endswith(".num_batches_tracked")}
    if base.keys() - counted != named.keys() - counted:
        return None

    def read(other: Mapping[str, Tensor], unit: int) -> int:
        key = next(key for key in base if base[key].shape != other[key].shape)
        axis = next(i for i, (a, b) in enumerate(zip(base[key].shape, other[key].shape, strict=True)) if a != b)
        held = named[key].shape[axis] if axis < named[key].ndim else 0
        return max(1, int(held * unit // base[key].shape[axis]))

    return read(more_classes, 2), read(more_channels, 1)
