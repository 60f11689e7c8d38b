"""The samples of a split before any image is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from convatlas.core.ragged import take
from convatlas.data.rng import epoch_order
from convatlas.tasks.targets import Targets


@dataclass(frozen=True)
class Samples:
    """The images of one split before they are prepared: files, whose paths are `names`, or `pixels` in memory.

    targets: one row for each image. pixels: (n, channels, h, w), uint8, or float32 as fractions of the largest value
    of the data's type; or images of different sizes, each uint8 (channels, h, w). groups: (n,) int64, equal for images
    that must stay in the same split.
    """

    names: Sequence[str]
    targets: Targets
    pixels: Tensor | Sequence[Tensor] | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Tensor) -> Samples:
        """Return the images with these indices."""
        names = [self.names[i] for i in indices.tolist()]
        groups = None if self.groups is None else self.groups[indices]
        pixels = None if self.pixels is None else take(self.pixels, indices)
        return Samples(names, self.targets.take(indices), pixels, groups)

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """The (height, width) of the images in memory; empty for files."""
        if isinstance(self.pixels, Tensor):
            return {(self.pixels.shape[-2], self.pixels.shape[-1])}
        return {(image.shape[-2], image.shape[-1]) for image in self.pixels or ()}

    def shuffled_once(self) -> Samples:
        """Return the images in a fixed random order, so that unshuffled batches contain all classes."""
        return self.subset(epoch_order(0, 0, len(self)))
