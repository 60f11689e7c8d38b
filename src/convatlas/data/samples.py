"""The samples of a split before any image is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from convatlas.data.rng import epoch_order
from convatlas.tasks.targets import Targets


@dataclass(frozen=True)
class Samples:
    """The images of one split before they are prepared: files, whose paths are `names`, or one array of `pixels`.

    targets: one row for each image. pixels: (n, channels, h, w), uint8, or float32 as fractions of the largest value
    of the data's type. groups: (n,) int64, equal for images that must stay in the same split.
    """

    names: Sequence[str]
    targets: Targets
    pixels: Tensor | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Tensor) -> Samples:
        """Return the images with these indices."""
        names = [self.names[i] for i in indices.tolist()]
        pixels, groups = (None if part is None else part[indices] for part in (self.pixels, self.groups))
        return Samples(names, self.targets.take(indices), pixels, groups)

    def shuffled_once(self) -> Samples:
        """Return the images in a fixed random order, so that unshuffled batches contain all classes."""
        return self.subset(epoch_order(0, 0, len(self)))
