"""The samples of a split before any image is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from convatlas.data.rng import epoch_order


def mixed_once(listing: Listing) -> Listing:
    """Return the images in another order, always the same: a recipe that keeps it must not see class after class."""
    return listing.subset(epoch_order(0, 0, len(listing)))


@dataclass(frozen=True)
class Listing:
    """The images of one split before they are prepared: files, which are their names, or one array of `pixels`.

    labels: (n,) int64, class numbers; or (n, classes) float32 of 0 and 1, where an image may be of several classes.
    pixels: (n, channels, h, w), uint8, or float32 in shares of what the type of the data can hold.
    groups: (n,) int64, of images that belong together.
    """

    labels: Tensor
    names: Sequence[str]
    pixels: Tensor | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Listing:
        """Return the images with these numbers."""
        names = [self.names[i] for i in indices.tolist()]
        pixels, groups = (None if held is None else held[indices] for held in (self.pixels, self.groups))
        return Listing(self.labels[indices], names, pixels, groups)
