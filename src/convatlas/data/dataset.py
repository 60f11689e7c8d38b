"""Images in memory: one tensor of pixels and one of labels for each split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convatlas.data.stream import Pixels, Streamed
from convatlas.errors import DataError


@dataclass(frozen=True)
class Images:
    """One split, prepared: pixels, labels as in its listing, and a name for each image.

    pixels: (n, channels, size, size) from 0 to 255: uint8, or float32 where images are deeper than 8 bits. Held in
        memory, mapped from the cache, or decoded when they are asked for.
    digest: of the images as they were found, before they were prepared.
    aspects: width over height of each image, where `pixels` are whole images squeezed into squares, of which random
        crops are to be taken; None where they are as the network evaluates them.
    """

    pixels: Pixels
    labels: Tensor
    names: Sequence[str]
    digest: str = ""
    aspects: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Images:
        """Return the images with these numbers."""
        names = [self.names[i] for i in indices.tolist()]
        aspects = None if self.aspects is None else self.aspects[indices]
        pixels = self.pixels[indices] if isinstance(self.pixels, Tensor) else self.pixels.subset(indices)
        return Images(pixels, self.labels[indices], names, self.digest, aspects)

    def fingerprint(self) -> str:
        """Return the sha256 of images and labels, so that a run can tell whether its data changed."""
        return hashlib.sha256(self.digest.encode() + self.labels.numpy().tobytes()).hexdigest()


def joined(parts: Sequence[Images]) -> Images:
    """Return the images of several splits as one."""
    names = [name for part in parts for name in part.names]
    digest = " ".join(part.digest for part in parts)
    held = [part.pixels for part in parts]
    streamed = next((pixels for pixels in held if isinstance(pixels, Streamed)), None)
    # what is decoded again is what was held
    pixels = Streamed(names, streamed.steps) if streamed else torch.cat([p for p in held if isinstance(p, Tensor)])
    return Images(pixels, torch.cat([part.labels for part in parts]), names, digest)


@dataclass(frozen=True)
class UnreadableImage:
    """An image that could not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The splits of one data set, prepared for one network.

    train is learned from; val chooses the best epoch; test is looked at once, at the end. Either may be None.
    unreadable lists the images that were left out because they could not be read.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    val: Images | None
    test: Images | None
    unreadable: tuple[UnreadableImage, ...] = ()

    @property
    def splits(self) -> dict[str, Images]:
        """The splits that are there, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}

    @property
    def whole(self) -> Images:
        """All images of all splits."""
        return joined(list(self.splits.values()))

    def without_val(self) -> Dataset:
        """Return the data set with its val split back in train."""
        return self if self.val is None else replace(self, train=joined([self.train, self.val]), val=None)

    def fingerprint(self) -> str:
        """Return a sha256 of classes and splits; the name of the folder does not count."""
        parts = [*self.classes, *(images.fingerprint() for images in self.splits.values())]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def check_same_classes(classes: Sequence[str], found: Sequence[str], *, split: str, where: object) -> None:
    """Raise DataError that names the classes which `split` misses or has on top of the training classes."""
    missing = [name for name in classes if name not in found]
    unknown = [name for name in found if name not in classes]
    if missing or unknown:
        told = [f"misses {', '.join(missing)}"] if missing else []
        told += [f"has classes that train does not know: {', '.join(unknown)}"] if unknown else []
        raise DataError(f"{where}: the {split} split {' and '.join(told)}; classes are matched by name")
