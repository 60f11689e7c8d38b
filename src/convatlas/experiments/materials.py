"""Data sets and weights of experiments by name: from a folder, or else as `fit` finds them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.open import open_data
from convatlas.errors import DataError, WeightsError


@dataclass(frozen=True, eq=False)
class Images:
    """Labeled images in memory: pixels uint8 (n, channels, h, w), labels int64 (n,), and the class names."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])

    def subset(self, number: int, seed: int) -> Images:
        """Return `number` images at random, equally many of each class (one more of the first ones, if need be)."""
        per_class, more = divmod(number, len(self.classes))
        chosen = []
        for label in range(len(self.classes)):
            members = (self.labels == label).nonzero().flatten()
            wanted = per_class + (label < more)
            if len(members) < wanted:
                raise DataError(f"subset: class {self.classes[label]} has {len(members)} images, got {wanted}")
            order = torch.randperm(len(members), generator=torch.Generator().manual_seed(1000 * seed + label))
            chosen.append(members[order[:wanted]])
        indices = torch.cat(chosen)
        return self.take(indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))])

    @property
    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """(x, y) as `fit` takes them: x (n, h, w, channels)."""
        return self.pixels.permute(0, 2, 3, 1).contiguous().numpy(), self.labels.numpy()


@dataclass(frozen=True)
class Materials:
    """Where data sets and weights lie.

    folder: has the data sets in folders, or .npz files, of their names ("mnist", "fashion_mnist", "cifar10", ...), and
    weights in `weights/`. What is not there is looked up by name as `fit` does: in the cache, or with `download`.
    Raises DataError if there is no such folder.
    """

    folder: Path | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder; it must have the data sets in folders of their names")

    def path(self, name: str) -> str:
        """Return what `fit` takes as data for a data set by name."""
        if self.folder is not None:
            for path in (self.folder / name, self.folder / f"{name}.npz"):
                if path.exists():
                    return str(path)
        return name

    def images(self, name: str, split: str, size: int) -> Images:
        """Return a split of a data set in memory, train or test, at `size` px.

        Raises DataError if the data set is neither in the folder nor in the cache, or has no such split.
        """
        splits = _load(self.path(name), self.download, size)
        if split not in splits:
            raise DataError(f"{self.path(name)}: must have a {split} split, got {', '.join(splits)}")
        return splits[split]

    def weights(self, name: str) -> Path:
        """Return a file of weights, `weights/NAME*` of the folder; raises WeightsError if there is none."""
        files = sorted((self.folder / "weights").glob(f"{name}*")) if self.folder is not None else []
        if not files:
            where = self.folder / "weights" if self.folder is not None else "--data"
            raise WeightsError(f"{where}: must have a file of weights {name}*; give its folder with --data")
        return files[0]


@cache
def _load(path: str, download: bool, size: int) -> dict[str, Images]:
    """Return the splits of a data set; of one without a test split, val is the test split."""
    source = open_data(path, download=download)
    steps = Preprocessing(size, size, mean=(0.5,) * source.channels, std=(0.5,) * source.channels)
    dataset = source.load(steps)
    splits = {}
    for name, part in dataset.splits.items():
        pixels = part.pixels[torch.arange(len(part))]  # type: ignore[index]  # images of one size
        splits[name] = Images(cast(Tensor, pixels), part.targets.tensor("label"), dataset.classes)
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    return splits
