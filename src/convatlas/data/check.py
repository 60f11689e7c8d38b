"""What is wrong with a data set: unreadable files, few of a class, the same image twice or in two splits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.data.decode.headers import read_header
from convatlas.data.decode.pixels import read_shares
from convatlas.data.samples import Listing
from convatlas.data.source import Source
from convatlas.errors import DataError
from convatlas.system.files import sha256
from convatlas.system.progress import Progress

NEAR = 3
"""So many of the 64 bits of two images' hashes may differ for them to count as nearly the same."""

SCARCE = 0.1
"""A class with less than this share of the largest one's training images is told."""


@dataclass(frozen=True)
class CheckedImage:
    """What one image is: where it is, what its file says of it, what it looks like.

    digest: of the file or the pixels. look: 64 bits that change little when an image is resized or compressed again.
    """

    name: str
    split: str
    labels: tuple[int, ...]
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    rotated: bool = False
    high_bit_depth: bool = False
    digest: str = ""
    look: int = 0
    unreadable: str = ""


@dataclass(frozen=True)
class Check:
    """The findings on a data set.

    counts: split -> images of each class that can be read. same, near: groups of images that are equal, or nearly.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[CheckedImage, ...]
    counts: Mapping[str, Sequence[int]]
    same: tuple[tuple[CheckedImage, ...], ...] = ()
    near: tuple[tuple[CheckedImage, ...], ...] = ()

    @property
    def unreadable(self) -> list[CheckedImage]:
        return [image for image in self.images if image.unreadable]

    def named(self, image: CheckedImage) -> str:
        """Return the classes of an image as text."""
        return " + ".join(self.classes[label] for label in image.labels) or "no class"

    @property
    def modes(self) -> dict[str, int]:
        """How pixels are stored -> how many images."""
        return dict(Counter(image.mode for image in self.images if not image.unreadable).most_common())

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """The smallest, the middle and the largest image, by area: (width, height)."""
        sizes = sorted((p.size for p in self.images if not p.unreadable), key=lambda size: size[0] * size[1])
        return (sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else ((0, 0),) * 3

    @property
    def leaks(self) -> list[tuple[CheckedImage, ...]]:
        """Groups of the same or nearly the same images that lie in more than one split."""
        return [group for group in (*self.same, *self.near) if len({image.split for image in group}) > 1]

    @property
    def contradictions(self) -> list[tuple[CheckedImage, ...]]:
        """Groups of equal images that are not of the same classes."""
        return [group for group in self.same if len({image.labels for image in group}) > 1]

    @property
    def scarce(self) -> list[str]:
        """Classes of which there are few training images, beside the largest one."""
        counts = self.counts["train"]
        return [name for name, n in zip(self.classes, counts, strict=True) if n < SCARCE * max(counts)]

    def findings(self) -> list[str]:
        """Return what deserves a look, a line each; none if all is well."""
        told = []
        for many, what in (
            (len(self.unreadable), "images cannot be read"),
            (sum(p.rotated for p in self.images), "images are rotated by their EXIF tag, which is applied"),
            (sum(p.high_bit_depth for p in self.images), "images are deeper than 8 bits"),
            (sum(len(group) - 1 for group in self.same), "images are copies of another one"),
            (sum(len(group) - 1 for group in self.near), "images are nearly another one"),
            (len(self.leaks), "groups of such images lie in more than one split: results will flatter"),
            (len(self.contradictions), "equal images are of different classes"),
            (
                len(self.scarce),
                f"classes have less than a tenth of the largest one's images: {', '.join(self.scarce)}",
            ),
        ):
            if many:
                told.append(f"{many:,} {what}")
        return told


def check(source: Source, *, progress: Progress | None = None) -> Check:
    """Look at every image of a data set."""
    images: list[CheckedImage] = []
    for split, listing in source.listings.items():
        looked = _of_pixels(listing, split) if listing.pixels is not None else _of_files(listing, split)
        for i, image in enumerate(looked, 1):
            images.append(image)
            if progress:
                progress(f"looking at {split}", i, len(listing))
    good = [image for image in images if not image.unreadable]
    found = Counter((image.split, label) for image in good for label in image.labels)
    splits, labels = dict.fromkeys(image.split for image in images), range(len(source.classes))
    counts = {split: [found[split, label] for label in labels] for split in splits}
    same = _same(good)
    extra = {id(image) for group in same for image in group[1:]}  # the first of each group stands for all
    near = _near([image for image in good if id(image) not in extra])
    return Check(source.name, source.classes, tuple(images), counts, tuple(same), tuple(near))


def _of_files(listing: Listing, split: str) -> Iterator[CheckedImage]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda name, labels: _file(name, split, labels), listing.names, _numbers(listing.labels))


def _numbers(labels: Tensor) -> list[tuple[int, ...]]:
    """Return the class numbers of each image."""
    if labels.ndim == 1:
        return [(label,) for label in labels.tolist()]
    return [tuple(row.nonzero().flatten().tolist()) for row in labels]


def _file(name: str, split: str, labels: tuple[int, ...]) -> CheckedImage:
    try:
        header = read_header(Path(name))
        channels = header.channels if header.channels not in (1, 3) else 1
        seen = look(read_shares(Path(name), channels).mean(0, keepdim=True))
        return CheckedImage(
            name,
            split,
            labels,
            header.size,
            header.mode,
            header.rotated,
            header.high_bit_depth,
            sha256(Path(name)),
            seen,
        )
    except (DataError, OSError) as error:
        return CheckedImage(name, split, labels, unreadable=str(error).removeprefix(f"{name}: "))


def _of_pixels(listing: Listing, split: str) -> Iterator[CheckedImage]:
    pixels = listing.pixels
    assert pixels is not None
    high_bit_depth = pixels.dtype != torch.uint8
    channels, size = pixels.shape[1], (pixels.shape[3], pixels.shape[2])
    mode = f"{channels} x float32" if high_bit_depth else {1: "L", 3: "RGB"}.get(channels, f"{channels} x uint8")
    for name, labels, each in zip(listing.names, _numbers(listing.labels), pixels, strict=True):
        digest = hashlib.sha256(each.contiguous().numpy().tobytes()).hexdigest()
        yield CheckedImage(
            name,
            split,
            labels,
            size,
            mode,
            high_bit_depth=high_bit_depth,
            digest=digest,
            look=look(each.float().mean(0, keepdim=True)),
        )


def look(gray: Tensor) -> int:
    """Return 64 bits of an image (1, h, w): whether each of 8 x 8 regions is brighter than the one to its left."""
    small = F.interpolate(gray[None].float(), (8, 9), mode="area")[0, 0]
    bits = (small[:, 1:] > small[:, :-1]).flatten().tolist()
    return sum(bit << i for i, bit in enumerate(bits))


def _same(images: Sequence[CheckedImage]) -> list[tuple[CheckedImage, ...]]:
    """Return the groups of images with equal contents."""
    found: dict[str, list[CheckedImage]] = defaultdict(list)
    for image in images:
        found[image.digest].append(image)
    return [tuple(group) for group in found.values() if len(group) > 1]


SMALLEST = 64
"""Images with a side below so many pixels are too alike for their looks to tell anything."""


def _near(images: Sequence[CheckedImage]) -> list[tuple[CheckedImage, ...]]:
    """Return the groups of images that look nearly the same; flat ones, whose looks tell nothing, are left out."""
    by_look: dict[int, list[CheckedImage]] = defaultdict(list)
    for image in images:
        if 8 <= image.look.bit_count() <= 56 and min(image.size) >= SMALLEST:
            by_look[image.look].append(image)
    leader = {look: look for look in by_look}

    def first(look: int) -> int:
        while leader[look] != look:
            look = leader[look]
        return look

    # of four quarters of 16 bits, at least one is equal where at most three bits differ
    for shift in range(0, 64, 16):
        quarter: dict[int, list[int]] = defaultdict(list)
        for look in by_look:
            quarter[look >> shift & 0xFFFF].append(look)
        for looks in quarter.values():
            for i, a in enumerate(looks):
                for b in looks[:i]:
                    if (a ^ b).bit_count() <= NEAR:
                        leader[first(a)] = first(b)
    groups: dict[int, list[CheckedImage]] = defaultdict(list)
    for look, alike in by_look.items():
        groups[first(look)] += alike
    return [tuple(group) for group in groups.values() if len(group) > 1]
