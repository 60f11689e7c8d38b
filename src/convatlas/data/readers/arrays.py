"""Data sets that are arrays in memory, such as NumPy files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.errors import DataError, brief
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
    """Return the source of splits (images, targets): images (n, h, w) or (n, h, w, channels) of one size.

    Values have 8 or 16 bits, or are floats, where 0 to 1 is black to white unless other values occur. The
    targets determine the task: class numbers (n,), or 0 and 1 (n, classes) for multi-label classification.
    """
    if classes is not None and len(set(classes)) != len(classes):
        raise DataError(f"{where}: classes: the names must differ, got {', '.join(classes[:10])}")
    pixels: dict[str, Tensor] = {}
    arrays: dict[str, Any] = {}
    high_bit_depth = False
    for split, (images, targets) in splits.items():
        pixels[split], deep = _to_pixels(np.asarray(images), split, where)
        high_bit_depth |= deep
        arrays[split] = np.asarray(targets)
        if arrays[split].shape[:1] != (len(pixels[split]),):
            raise DataError(
                f"{where}: {split}: must hold one target for each of {len(pixels[split])} images, got "
                f"{arrays[split].dtype} {arrays[split].shape}"
            )
    task, rows = _task_of(where, arrays, classes)
    samples = {
        split: Samples([f"{split}/{i}" for i in range(len(part))], rows[split], part) for split, part in pixels.items()
    }
    return Source(name, location, task, samples, pixels["train"].shape[1], high_bit_depth)


def _task_of(
    where: object, arrays: Mapping[str, Any], classes: tuple[str, ...] | None
) -> tuple[Task, dict[str, Targets]]:
    for kind in reversed(TASKS.values()):
        result = kind.from_arrays(where, arrays, classes)
        if result is not None:
            return result
    shapes = ", ".join(f"{split} {array.dtype} {array.shape}" for split, array in arrays.items())
    raise DataError(
        f"{where}: labels must be class numbers (n,) in all splits, or 0 and 1 (n, classes) in all, got {shapes}"
    )


def _to_pixels(images: Any, split: str, where: object) -> tuple[Tensor, bool]:
    """Return images as (n, channels, h, w), and whether they have more than 8 bits."""
    if images.dtype.kind not in "uif" or images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{where}: {split}: images must be numbers (n, height, width[, channels]), got {images.dtype} "
            f"{images.shape}"
        )
    high_bit_depth = images.dtype != np.uint8
    if high_bit_depth:
        largest = 1 if images.dtype.kind == "f" else np.iinfo(images.dtype).max
        images = images.astype(np.float32) / largest
        if not np.isfinite(images).all():
            raise DataError(f"{where}: {split}: images contain NaN or infinity")
    tensor = torch.from_numpy(images.copy())
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous(), high_bit_depth


def read_npz(path: Path) -> Source:
    """Read a NumPy file with `x` and `y`, optionally `x_val`, `y_val`, `x_test`, `y_test` and `classes` (names).

    y: class indices (n,), or 0 and 1 (n, classes) for multi-label classification. `x_train` and `y_train` replace `x`
        and `y`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a NumPy file of plain arrays ({brief(error)})") from error
    if "x_train" in arrays and "y_train" in arrays:
        arrays["x"], arrays["y"] = arrays["x_train"], arrays["y_train"]
    if not {"x", "y"} <= set(arrays):
        raise DataError(f"{path}: must hold the arrays x and y, got {', '.join(arrays) or 'none'}")
    for split in ("val", "test"):
        present = [name for name in (f"x_{split}", f"y_{split}") if name in arrays]
        if len(present) == 1:
            raise DataError(f"{path}: has {present[0]} alone; {split} needs both x_{split} and y_{split}")
    splits: dict[str, tuple[Any, Any]] = {"train": (arrays["x"], arrays["y"])}
    splits |= {s: (arrays[f"x_{s}"], arrays[f"y_{s}"]) for s in ("val", "test") if f"x_{s}" in arrays}
    classes = tuple(map(str, arrays["classes"].tolist())) if "classes" in arrays else None
    return array_source(path.stem, str(path.resolve()), splits, path, classes)
