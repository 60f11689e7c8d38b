"""Open weights by name or by file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from convatlas.core.spec import Spec, diff
from convatlas.errors import WeightsError, nearest
from convatlas.models.card import LIBRARIES, Variant
from convatlas.models.catalog import build_fresh
from convatlas.models.keys import rename
from convatlas.weights import modelfile
from convatlas.weights.fetch import pull
from convatlas.weights.pretrained import find_weights
from convatlas.weights.read import Checkpoint, key_mappings, load_tensors


def open_weights(weights: str | Path, spec: Spec, *, name: str, row: Variant) -> Checkpoint:
    """Return weights for a network: "library:tag", a model file, or a checkpoint of convatlas or another library.

    spec, name, row: the network, its name, and its row of the catalog.
    Raises WeightsError or ModelFileError if they cannot be opened or are of another network.
    """
    source, path = str(weights), Path(weights)
    library, colon, _ = source.partition(":")
    if colon and library in LIBRARIES:
        record = find_weights(f"{name.removesuffix('-custom')}@{source}")
        return Checkpoint(
            load_tensors(pull(record)), len(record.classes), record.channels, record.name, record.preprocessing,
            library, record.classes,
        )  # fmt: skip
    if colon and not path.exists() and len(library) > 1:  # one letter is a drive of Windows
        raise WeightsError(
            f"{source}: must be a file or LIBRARY:TAG with one of {', '.join(LIBRARIES)}, got library {library!r}"
            f"{nearest(library, LIBRARIES)}"
        )
    if modelfile.is_model_file(path):
        return _open_model_file(path, spec, name)
    tensors = load_tensors(path)
    for each, rules in key_mappings(spec).items():
        renamed = {name: tensor for key, tensor in tensors.items() if (name := rename(key, rules(spec)))}
        if sizes := _find_sizes(spec, renamed):
            return Checkpoint(tensors, *sizes, path, row.preprocessing, each)
    # no names match: `match_checkpoint` will raise an error that lists the differences
    return Checkpoint(tensors, row.classes, row.preprocessing.channels, path, row.preprocessing)


def _open_model_file(path: Path, spec: Spec, name: str) -> Checkpoint:
    header, tensors = modelfile.read_tensors(path)
    if header.spec.scaled(resolution=spec.resolution) != spec:
        cells = diff(spec, header.spec).items()
        differences = ", ".join(f"{cell} {theirs} instead of {ours}" for cell, (ours, theirs) in cells)
        raise WeightsError(f"{path}: the model file must contain {name}, got another network: {differences}")
    preprocessing, classes = header.preprocessing, header.classes
    return Checkpoint(
        tensors, len(classes), preprocessing.channels, path, preprocessing, "convatlas", classes
    )  # fmt: skip


def _find_sizes(spec: Spec, tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return (classes, channels) of a checkpoint with our names; None if its names are not those of this network.

    Networks with 2 and 3 classes, and with 1 and 2 channels, are compared: the first tensor whose shapes differ grows
    in proportion to the number of classes or channels.
    """

    def shapes(classes: int, channels: int) -> dict[str, Tensor]:
        return build_fresh(spec, classes=classes, channels=channels, device="meta").state_dict()

    base = shapes(2, 1)
    ignored = {key for key in base if key.endswith(".num_batches_tracked")}
    if base.keys() - ignored != tensors.keys() - ignored:
        return None

    def size(larger: Mapping[str, Tensor], base_size: int) -> int:
        key = next(key for key in base if base[key].shape != larger[key].shape)
        axis = next(i for i, (a, b) in enumerate(zip(base[key].shape, larger[key].shape, strict=True)) if a != b)
        length = tensors[key].shape[axis] if axis < tensors[key].ndim else 0
        return max(1, int(length * base_size // base[key].shape[axis]))

    return size(shapes(3, 1), 2), size(shapes(2, 2), 1)
