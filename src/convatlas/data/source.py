"""A source of data before a network is chosen: names, labels, classes."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Dataset, UnreadableImage, check_same_classes
from convatlas.data.decode.pixels import in_channels, read_shares, shares
from convatlas.data.prepare import prepared
from convatlas.data.samples import Listing
from convatlas.data.splits import Fold, with_val
from convatlas.data.statistics import Statistics, statistics
from convatlas.errors import DataError
from convatlas.system.progress import Progress


class Source:
    """Data before a network is chosen: its name, classes and channels are known, no image is prepared yet."""

    name: str
    location: str
    """What `find` takes to find it again, from any working directory."""
    classes: tuple[str, ...]
    channels: int
    high_bit_depth: bool = False
    """Whether most of the training images have more than 8 bits."""

    @cached_property
    def listings(self) -> dict[str, Listing]:
        """The splits that the data has: train, and perhaps val and test; read once."""
        raise NotImplementedError

    @property
    def several(self) -> bool:
        """Whether an image may be of several classes, or of none."""
        return self.listings["train"].labels.ndim == 2

    def split(self, *, seed: int = 0, val_share: float = 0.0, fold: Fold | None = None) -> dict[str, Listing]:
        """Return the splits, with a val split where the data has none; see `load`."""
        return with_val(self.listings, seed=seed, share=val_share, where=self.name, fold=fold)

    def statistics(
        self, channels: int, *, seed: int = 0, val_share: float = 0.0, fold: Fold | None = None
    ) -> Statistics | None:
        """Return what the training images hold; None for 8-bit images in gray or RGB, which every network knows."""
        if not self.high_bit_depth and channels in (1, 3):
            return None
        train = self.split(seed=seed, val_share=val_share, fold=fold)["train"]
        pixels = train.pixels
        if pixels is not None:
            reads = [partial(_shares, pixels, i, channels, self.location) for i in range(len(pixels))]
        else:
            reads = [partial(read_shares, Path(name), channels) for name in train.names]
        return statistics(reads, high_bit_depth=self.high_bit_depth, where=self.location)

    def load(
        self,
        preprocessing: Preprocessing,
        *,
        seed: int = 0,
        val_share: float = 0.0,
        fold: Fold | None = None,
        for_random_crop: bool = False,
        max_unreadable: float = 0.01,
        progress: Progress | None = None,
    ) -> Dataset:
        """Read and prepare all splits.

        val_share: the share of the training images that becomes val, decided by `seed`, where the data has no val.
        fold: the one of so many that becomes val instead.
        roomy: the training images are kept whole, as squares, for random crops.
        max_unreadable: the share of unreadable images that is left out and listed; more is a DataError.
        """
        listings = self.split(seed=seed, val_share=val_share, fold=fold)
        unreadable: list[UnreadableImage] = []
        images = {
            split: prepared(listing, split, preprocessing, for_random_crop and split == "train", unreadable, progress)
            for split, listing in listings.items()
        }
        total = sum(map(len, listings.values()))
        if len(unreadable) > max_unreadable * total:
            raise DataError(
                f"{unreadable[0].reason}; {len(unreadable)} of {total} images cannot be read, "
                f"more than the {max_unreadable:.1%} allowed; mend or remove them, or raise --max-unreadable"
            )
        if unreadable:
            for split, part in images.items():
                if self.several and split != "train":
                    continue  # a rare class may be missing there
                held = part.labels.any(0).nonzero().flatten() if self.several else part.labels.unique()
                found = [self.classes[i] for i in held.tolist()]
                check_same_classes(self.classes, found, split=split, where=self.location)
        bare = next((split for split, part in images.items() if self.several and not part.labels.any()), None)
        if bare:
            raise DataError(f"{self.location}: no image of the {bare} split is of any class; nothing can be measured")
        return Dataset(
            self.name, self.classes, images["train"], images.get("val"), images.get("test"), tuple(unreadable)
        )


def _shares(pixels: Tensor, number: int, channels: int, name: str) -> Tensor:
    return in_channels(shares(pixels[number]), channels, name)
