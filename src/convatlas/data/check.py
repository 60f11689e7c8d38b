"""What is wrong with a data set: unreadable files, few of a class, the same picture twice or in two splits."""

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
"""So many of the 64 bits of two pictures' hashes may differ for them to count as nearly the same."""

SCARCE = 0.1
"""A class with less than this share of the largest one's training pictures is told."""


@dataclass(frozen=True)
class Picture:
    """What one picture is: where it is, what its file says of it, what it looks like.

    digest: of the file or the pixels. look: 64 bits that change little when a picture is resized or compressed again.
    """

    name: str
    split: str
    labels: tuple[int, ...]
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    rotated: bool = False
    deep: bool = False
    digest: str = ""
    look: int = 0
    broken: str = ""


@dataclass(frozen=True)
class Check:
    """The findings on a data set.

    counts: split -> pictures of each class that can be read. same, near: groups of pictures that are equal, or nearly.
    """

    name: str
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    counts: Mapping[str, Sequence[int]]
    same: tuple[tuple[Picture, ...], ...] = ()
    near: tuple[tuple[Picture, ...], ...] = ()

    @property
    def broken(self) -> list[Picture]:
        return [picture for picture in self.pictures if picture.broken]

    def named(self, picture: Picture) -> str:
        """Return the classes of a picture as text."""
        return " + ".join(self.classes[label] for label in picture.labels) or "no class"

    @property
    def modes(self) -> dict[str, int]:
        """How pixels are stored -> how many pictures."""
        return dict(Counter(picture.mode for picture in self.pictures if not picture.broken).most_common())

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """The smallest, the middle and the largest picture, by area: (width, height)."""
        sizes = sorted((p.size for p in self.pictures if not p.broken), key=lambda size: size[0] * size[1])
        return (sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else ((0, 0),) * 3

    @property
    def leaks(self) -> list[tuple[Picture, ...]]:
        """Groups of the same or nearly the same pictures that lie in more than one split."""
        return [group for group in (*self.same, *self.near) if len({picture.split for picture in group}) > 1]

    @property
    def contradictions(self) -> list[tuple[Picture, ...]]:
        """Groups of equal pictures that are not of the same classes."""
        return [group for group in self.same if len({picture.labels for picture in group}) > 1]

    @property
    def scarce(self) -> list[str]:
        """Classes of which there are few training pictures, beside the largest one."""
        counts = self.counts["train"]
        return [name for name, n in zip(self.classes, counts, strict=True) if n < SCARCE * max(counts)]

    def findings(self) -> list[str]:
        """Return what deserves a look, a line each; none if all is well."""
        told = []
        for many, what in (
            (len(self.broken), "pictures cannot be read"),
            (sum(p.rotated for p in self.pictures), "pictures are rotated by their EXIF tag, which is applied"),
            (sum(p.deep for p in self.pictures), "pictures are deeper than 8 bits"),
            (sum(len(group) - 1 for group in self.same), "pictures are copies of another one"),
            (sum(len(group) - 1 for group in self.near), "pictures are nearly another one"),
            (len(self.leaks), "groups of such pictures lie in more than one split: results will flatter"),
            (len(self.contradictions), "equal pictures are of different classes"),
            (
                len(self.scarce),
                f"classes have less than a tenth of the largest one's pictures: {', '.join(self.scarce)}",
            ),
        ):
            if many:
                told.append(f"{many:,} {what}")
        return told


def check(source: Source, *, progress: Progress | None = None) -> Check:
    """Look at every picture of a data set."""
    pictures: list[Picture] = []
    for split, listing in source.listings.items():
        looked = _of_pixels(listing, split) if listing.pixels is not None else _of_files(listing, split)
        for i, picture in enumerate(looked, 1):
            pictures.append(picture)
            if progress:
                progress(f"looking at {split}", i, len(listing))
    good = [picture for picture in pictures if not picture.broken]
    found = Counter((picture.split, label) for picture in good for label in picture.labels)
    splits, labels = dict.fromkeys(picture.split for picture in pictures), range(len(source.classes))
    counts = {split: [found[split, label] for label in labels] for split in splits}
    same = _same(good)
    extra = {id(picture) for group in same for picture in group[1:]}  # the first of each group stands for all
    near = _near([picture for picture in good if id(picture) not in extra])
    return Check(source.name, source.classes, tuple(pictures), counts, tuple(same), tuple(near))


def _of_files(listing: Listing, split: str) -> Iterator[Picture]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda name, labels: _file(name, split, labels), listing.names, _numbers(listing.labels))


def _numbers(labels: Tensor) -> list[tuple[int, ...]]:
    """Return the class numbers of each picture."""
    if labels.ndim == 1:
        return [(label,) for label in labels.tolist()]
    return [tuple(row.nonzero().flatten().tolist()) for row in labels]


def _file(name: str, split: str, labels: tuple[int, ...]) -> Picture:
    try:
        header = read_header(Path(name))
        channels = header.channels if header.channels not in (1, 3) else 1
        seen = look(read_shares(Path(name), channels).mean(0, keepdim=True))
        return Picture(
            name, split, labels, header.size, header.mode, header.rotated, header.deep, sha256(Path(name)), seen
        )
    except (DataError, OSError) as error:
        return Picture(name, split, labels, broken=str(error).removeprefix(f"{name}: "))


def _of_pixels(listing: Listing, split: str) -> Iterator[Picture]:
    pixels = listing.pixels
    assert pixels is not None
    deep = pixels.dtype != torch.uint8
    channels, size = pixels.shape[1], (pixels.shape[3], pixels.shape[2])
    mode = f"{channels} x float32" if deep else {1: "L", 3: "RGB"}.get(channels, f"{channels} x uint8")
    for name, labels, each in zip(listing.names, _numbers(listing.labels), pixels, strict=True):
        digest = hashlib.sha256(each.contiguous().numpy().tobytes()).hexdigest()
        yield Picture(
            name, split, labels, size, mode, deep=deep, digest=digest, look=look(each.float().mean(0, keepdim=True))
        )


def look(grey: Tensor) -> int:
    """Return 64 bits of a picture (1, h, w): whether each of 8 x 8 regions is brighter than the one to its left."""
    small = F.interpolate(grey[None].float(), (8, 9), mode="area")[0, 0]
    bits = (small[:, 1:] > small[:, :-1]).flatten().tolist()
    return sum(bit << i for i, bit in enumerate(bits))


def _same(pictures: Sequence[Picture]) -> list[tuple[Picture, ...]]:
    """Return the groups of pictures with equal contents."""
    found: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        found[picture.digest].append(picture)
    return [tuple(group) for group in found.values() if len(group) > 1]


SMALLEST = 64
"""Pictures with a side below so many pixels are too alike for their looks to tell anything."""


def _near(pictures: Sequence[Picture]) -> list[tuple[Picture, ...]]:
    """Return the groups of pictures that look nearly the same; flat ones, whose looks tell nothing, are left out."""
    by_look: dict[int, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if 8 <= picture.look.bit_count() <= 56 and min(picture.size) >= SMALLEST:
            by_look[picture.look].append(picture)
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
    groups: dict[int, list[Picture]] = defaultdict(list)
    for look, alike in by_look.items():
        groups[first(look)] += alike
    return [tuple(group) for group in groups.values() if len(group) > 1]
