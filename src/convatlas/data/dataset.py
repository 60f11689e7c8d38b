"""A data set prepared for one network: pixels, targets and names of each split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from convatlas.data.stream import Pixels, concatenate_pixels, take
from convatlas.tasks.targets import Targets, concatenate
from convatlas.tasks.task import Task


@dataclass(frozen=True)
class Images:
    """One prepared split: pixels, targets and a name for each image.

    pixels: (n, channels, h, w) from 0 to 255: uint8, or float32 for images with more than 8 bits; or whole images,
        each (channels, h, w) of its own size. In memory, mapped from the cache, or decoded on access.
    digest: sha256 over the image files before they were prepared.
    aspects: (n,) width / height of each image, if `pixels` are whole images resized to squares from which random crops
        are taken; None if they are as the network evaluates them.
    """

    pixels: Pixels
    targets: Targets
    names: Sequence[str]
    digest: str = ""
    aspects: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Tensor) -> Images:
        """Return the images with these indices."""
        names = [self.names[i] for i in indices.tolist()]
        aspects = None if self.aspects is None else self.aspects[indices]
        return Images(take(self.pixels, indices), self.targets.take(indices), names, self.digest, aspects)

    def fingerprint(self) -> str:
        """Return the sha256 of images and targets; a run compares it to detect changed data."""
        return hashlib.sha256(self.digest.encode() + self.targets.to_bytes()).hexdigest()


def concatenate_images(parts: Sequence[Images]) -> Images:
    """Return the images of several splits as one."""
    names = [name for part in parts for name in part.names]
    digest = " ".join(part.digest for part in parts)
    pixels = concatenate_pixels([part.pixels for part in parts], names)
    return Images(pixels, concatenate([part.targets for part in parts]), names, digest)


@dataclass(frozen=True)
class UnreadableImage:
    """An image file that cannot be read, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The splits of one data set, prepared for one network.

    train is trained on; val chooses the best epoch; test is evaluated once, at the end. val and test may be None.
    unreadable: the images that were skipped because they cannot be read. remarks: see `Source.remarks`.
    """

    name: str
    task: Task
    train: Images
    val: Images | None
    test: Images | None
    unreadable: tuple[UnreadableImage, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.task.classes

    @property
    def splits(self) -> dict[str, Images]:
        """The splits that exist, by name."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in splits.items() if images is not None}

    @property
    def whole(self) -> Images:
        """All images of all splits."""
        return concatenate_images(list(self.splits.values()))

    def without_val(self) -> Dataset:
        """Return the data set with its val split merged into train."""
        return self if self.val is None else replace(self, train=concatenate_images([self.train, self.val]), val=None)

    def fingerprint(self) -> str:
        """Return a sha256 over classes and splits; the name of the data set does not count."""
        parts = [*self.classes, *(images.fingerprint() for images in self.splits.values())]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
