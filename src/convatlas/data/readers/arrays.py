"""Data sets that are arrays in memory, such as NumPy files."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.data.decode.array_values import channels_last, full_scale
from convatlas.data.decode.decoders import read_npy_header
from convatlas.data.readers.array_labels import class_names, label_notes, read_labels
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.errors import DataError, foreign_errors, listed
from convatlas.tasks.known import TASKS
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Task


def array_source(
    name: str,
    location: str,
    splits: Mapping[str, tuple[Any, Any]],
    where: object,
    classes: tuple[str, ...] | None = None,
) -> Source:
    """Return the source of splits (images, targets): images (n, h, w), (n, h, w, channels) or (n, 1 or 3, h, w).

    Which values are white: see `full_scale`. The targets determine the task: class numbers or names (n,) or (n, 1), or
    0 and 1 (n, classes) for multi-label classification. Raises DataError that begins with `where`.
    """
    if classes is not None and len(set(classes)) != len(classes):
        raise DataError(f"{where}: classes: the names must differ, got {listed(classes)}")
    images = {split: _with_channels(np.asarray(part), split, where) for split, (part, _) in splits.items()}
    scaled = full_scale(list(images.values()), where, eight_bit=True)
    pixels = {split: _to_pixels(part, split, where) for split, part in zip(images, scaled, strict=True)}
    targets = {split: np.asarray(part) for split, (_, part) in splits.items()}
    for split, part in pixels.items():
        if targets[split].shape[:1] != (len(part),):
            raise DataError(
                f"{where}: {split}: must hold one target for each of {len(part):,} images, got {targets[split].dtype} "
                f"{targets[split].shape}"
            )
    labels, classes = read_labels(targets, classes, where)
    task, rows = task_of(where, labels, classes)
    samples = {
        split: Samples([f"{split}/{i}" for i in range(len(part))], rows[split], part) for split, part in pixels.items()
    }
    notes = [*_notes([np.asarray(part) for part, _ in splits.values()], scaled), *label_notes(list(labels.values()))]
    high_bit_depth = any(array.dtype != np.uint8 for array in scaled)
    return Source(
        name, location, task, samples, pixels["train"].shape[1], high_bit_depth, notes=tuple(notes)
    )  # fmt: skip


def task_of(
    where: object, arrays: Mapping[str, Any], classes: tuple[str, ...] | None, *, reads: str = Task.reads
) -> tuple[Task, dict[str, Targets]]:
    """Return the task that labels of all splits determine, and the targets of each; see `array_source`.

    reads: whether they are the labels of "images" or of "clips".
    """
    for kind in [kind for kind in reversed(TASKS.values()) if kind.reads == reads]:
        result = kind.from_arrays(where, arrays, classes)
        if result is not None:
            return result
    shapes = ", ".join(f"{split} {array.dtype} {array.shape}" for split, array in arrays.items())
    raise DataError(
        f"{where}: labels must be class numbers (n,) in all splits, or 0 and 1 (n, classes) in all, got {shapes}"
    )


def _with_channels(images: NDArray[Any], split: str, where: object) -> NDArray[Any]:
    """Return images as (n, h, w, channels)."""
    if images.dtype.kind not in "buif" or images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{where}: {split}: images must be numbers (n, height, width[, channels]), got {images.dtype} "
            f"{images.shape}"
        )
    return images[..., None] if images.ndim == 3 else channels_last(images)


def _to_pixels(images: NDArray[Any], split: str, where: object) -> Tensor:
    """Return images (n, h, w, channels) as (n, channels, h, w): uint8, or float32 fractions."""
    if images.dtype != np.uint8:
        images = images.astype(np.float32) / (1 if images.dtype.kind == "f" else np.iinfo(images.dtype).max)
        if not np.isfinite(images).all():
            raise DataError(f"{where}: {split}: images contain NaN or infinity")
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy())


def _notes(given: Sequence[NDArray[Any]], scaled: Sequence[NDArray[Any]]) -> Iterator[str]:
    """Yield lines about how images are read, where another way is possible."""
    first, shape = given[0], scaled[0].shape
    if first.ndim == 4 and first.shape != shape:
        yield f"images {first.shape} are read as (n, channels, height, width)"
    elif first.ndim == 4 and shape[-1] not in (1, 3):
        yield f"images {first.shape} are read as (n, height, width, channels)"
    pairs = [(a.dtype, b.dtype) for a, b in zip(given, scaled, strict=True)]
    kinds = sorted({str(a) for a, b in pairs if b == np.uint8 and a not in (np.uint8, np.bool_)})
    if kinds:
        yield f"images are {' and '.join(kinds)} of whole numbers from 0 to 255, and are read as uint8"
    floats = [array for array in scaled if array.dtype.kind == "f"]
    low, high = min((float(a.min()) for a in floats), default=0), max((float(a.max()) for a in floats), default=0)
    if low < 0 or high > 1:
        yield f"images are floats from {low:g} to {high:g}: the network will not read image files"


def read_npz(path: Path) -> Source:
    """Read a NumPy file with `x` and `y`, optionally `x_val`, `y_val`, `x_test`, `y_test` and `classes` (names).

    y: class numbers or names (n,) or (n, 1), or 0 and 1 (n, classes) for multi-label classification. `x_train` and
        `y_train` replace `x` and `y`.
    """
    arrays, unused = _read_arrays(path)
    if "x_train" in arrays and "y_train" in arrays:
        arrays["x"], arrays["y"] = arrays["x_train"], arrays["y_train"]
    if not {"x", "y"} <= set(arrays):
        raise DataError(f"{path}: must hold the arrays x and y, got {listed([*arrays, *unused]) or 'none'}")
    for split in ("val", "test"):
        present = [name for name in (f"x_{split}", f"y_{split}") if name in arrays]
        if len(present) == 1:
            raise DataError(f"{path}: has {present[0]} alone; {split} needs both x_{split} and y_{split}")
    splits: dict[str, tuple[Any, Any]] = {"train": (arrays["x"], arrays["y"])}
    splits |= {s: (arrays[f"x_{s}"], arrays[f"y_{s}"]) for s in ("val", "test") if f"x_{s}" in arrays}
    classes = class_names(arrays["classes"], path) if "classes" in arrays else None
    source = array_source(path.stem, str(path.resolve()), splits, path, classes)
    return replace(source, notes=(*source.notes, f"arrays that are not used: {listed(unused)}")) if unused else source


ARRAYS = ("x", "y", "x_train", "y_train", "x_val", "y_val", "x_test", "y_test", "classes")


def _read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the arrays of a .npz file by name, and the names of others."""
    arrays: dict[str, NDArray[Any]] = {}
    unused = []
    with foreign_errors(path, DataError, "not a NumPy file of plain arrays"), zipfile.ZipFile(path) as file:
        for member in file.infolist():
            name = member.filename.removesuffix(".npy")
            if name not in ARRAYS:
                unused.append(name)
                continue
            with file.open(member) as stream:
                _check_header(stream, member.file_size)
            with file.open(member) as stream:
                arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays, unused


def _check_header(stream: IO[bytes], size: int) -> None:
    """Raise ValueError for a header that promises more values than there are, before memory is reserved for them."""
    shape, dtype = read_npy_header(stream)
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError("truncated: the header promises more values than the file holds")
