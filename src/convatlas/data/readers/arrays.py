"""Data sets that are arrays in memory, such as NumPy files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.data.dataset import check_same_classes
from convatlas.data.samples import Listing
from convatlas.data.source import Source
from convatlas.errors import DataError, brief


class Arrays(Source):
    """Splits whose images are arrays of one size, (n, h, w) or (n, h, w, channels), with class numbers (n,).

    Values are 8 or 16 bits, or floats, of which 0 to 1 is black to white unless others occur.
    """

    def __init__(
        self, name: str, location: str, classes: tuple[str, ...], splits: dict[str, tuple[Any, Any]], where: object
    ) -> None:
        self.name, self.location, self.classes = name, location, classes
        self.listings = {}
        if len(set(classes)) != len(classes):
            raise DataError(f"{where}: classes: the names must differ, found {', '.join(classes[:10])}")
        kinds = {split: np.ndim(labels) for split, (_, labels) in splits.items()}
        if len(set(kinds.values())) > 1:
            raise DataError(f"{where}: labels are class numbers (n,) in all splits, or 0 and 1 (n, classes) in all")
        for split, (images, labels) in splits.items():
            pixels, numbers = np.asarray(images), np.asarray(labels)
            if pixels.dtype.kind not in "uif" or pixels.ndim not in (3, 4) or 0 in pixels.shape:
                raise DataError(
                    f"{where}: {split}: images are numbers (n, height, width[, channels]), found {pixels.dtype} "
                    f"{pixels.shape}"
                )
            if pixels.dtype != np.uint8:
                self.high_bit_depth = True
                full = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
                pixels = pixels.astype(np.float32) / full
                if not np.isfinite(pixels).all():
                    raise DataError(f"{where}: {split}: images hold values that are no numbers (nan or infinite)")
            if numbers.ndim == 2:
                self._add_tags(split, pixels, numbers, where)
                continue
            if len(classes) < 2:
                raise DataError(f"{where}: expected at least two classes, found {len(classes)}")
            whole = np.issubdtype(numbers.dtype, np.integer)
            if numbers.shape != pixels.shape[:1] or not whole or numbers.min() < 0 or numbers.max() >= len(classes):
                raise DataError(
                    f"{where}: {split}: labels are {len(pixels)} class numbers below {len(classes)}, found "
                    f"{numbers.dtype} {numbers.shape}"
                )
            self._add(split, pixels, torch.from_numpy(numbers.astype(np.int64)))
            found = [classes[i] for i in np.unique(numbers).tolist()]
            check_same_classes(classes, found, split=split, where=where)
        channels = self.listings["train"].pixels
        assert channels is not None
        self.channels = channels.shape[1]

    def _add(self, split: str, pixels: NDArray[Any], labels: Tensor) -> None:
        first = torch.from_numpy(pixels.copy())
        shaped = first[:, None] if first.ndim == 3 else first.permute(0, 3, 1, 2).contiguous()
        self.listings[split] = Listing(labels, [f"{split}/{i}" for i in range(len(first))], shaped)

    def _add_tags(self, split: str, pixels: NDArray[Any], tags: NDArray[Any], where: object) -> None:
        """Add a split whose images may be of several classes: (n, classes) of 0 and 1."""
        if tags.shape != (len(pixels), len(self.classes)) or not np.isin(tags, (0, 1)).all():
            raise DataError(
                f"{where}: {split}: labels are 0 or 1 for {len(pixels)} images and {len(self.classes)} classes, "
                f"found {tags.dtype} {tags.shape}"
            )
        self._add(split, pixels, torch.from_numpy(tags.astype(np.float32)))
        unused = [name for name, held in zip(self.classes, tags.sum(0).tolist(), strict=True) if not held]
        if split == "train" and unused:
            raise DataError(f"{where}: train: no image is of the class {', '.join(unused)}")


def npz(path: Path) -> Arrays:
    """Read a NumPy file with `x` and `y`, and perhaps `x_val`, `y_val`, `x_test`, `y_test` and `classes` (names).

    y: class numbers (n,), or 0 and 1 (n, classes) where images may be of several classes.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no NumPy file of plain arrays ({brief(error)})") from error
    if "x_train" in held and "y_train" in held:
        held["x"], held["y"] = held["x_train"], held["y_train"]
    if not {"x", "y"} <= set(held):
        raise DataError(f"{path}: expected the arrays x and y, found {', '.join(held) or 'none'}")
    for split in ("val", "test"):
        there = [name for name in (f"x_{split}", f"y_{split}") if name in held]
        if len(there) == 1:
            raise DataError(f"{path}: has {there[0]} alone; {split} needs both x_{split} and y_{split}")
    splits: dict[str, tuple[Any, Any]] = {"train": (held["x"], held["y"])}
    splits |= {s: (held[f"x_{s}"], held[f"y_{s}"]) for s in ("val", "test") if {f"x_{s}", f"y_{s}"} <= set(held)}
    labels = held["y"]
    count = int(labels.max()) + 1 if labels.size and np.issubdtype(labels.dtype, np.integer) else 0
    count = labels.shape[1] if labels.ndim == 2 else count
    names = held.get("classes", np.arange(max(count, 1)))
    return Arrays(path.stem, str(path.resolve()), tuple(map(str, names.tolist())), splits, path)
