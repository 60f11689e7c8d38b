"""Check a data set: unreadable files, rare classes, duplicates, and duplicates across splits."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.data.decode.files import read_bytes
from convatlas.data.decode.headers import read_header
from convatlas.data.decode.pixels import read_shares
from convatlas.data.manifest import Manifest
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError
from convatlas.system.progress import Progress
from convatlas.tasks.table import Column, MetricTable, rows_of

MAX_DIFFERENT_BITS = 3
"""Maximum number of the 64 hash bits in which near duplicates differ."""

MIN_SIDE = 64
"""Minimum side in pixels of images whose hashes are compared; smaller images are too similar."""

MIN_ONES, MAX_ONES = 8, 56
"""Ones in a hash that is compared; flat images have fewer or more."""

RARE_SHARE = 0.1
"""A class is rare if it has less than this share of the largest class's training images."""

SHEET_COLUMNS, SHEET_CLASSES, SHEET_GROUPS = 10, 24, 6
"""Contact sheet: maximum number of images in a row, of classes, and of groups of each kind of duplicates."""


@dataclass(frozen=True)
class CheckedImage:
    """The properties of one image.

    labels: its classes. size: (width, height). mode: how pixels are stored. digest: sha256 of the file, or of the
    pixels. dhash: see `difference_hash`. unreadable: the reason, if it is.
    """

    name: str
    split: str
    labels: tuple[int, ...]
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    rotated: bool = False
    high_bit_depth: bool = False
    digest: str = ""
    dhash: int = 0
    unreadable: str = ""


Group = tuple[CheckedImage, ...]


@dataclass(frozen=True)
class Check:
    """The findings on a data set.

    counts: split -> number of readable images of each class. duplicates: groups of images with equal contents.
    near_duplicates: groups of images with nearly equal hashes.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[CheckedImage, ...]
    counts: Mapping[str, Sequence[int]]
    duplicates: tuple[Group, ...] = ()
    near_duplicates: tuple[Group, ...] = ()

    @property
    def unreadable(self) -> list[CheckedImage]:
        return [image for image in self.images if image.unreadable]

    @property
    def readable(self) -> list[CheckedImage]:
        return [image for image in self.images if not image.unreadable]

    def class_names(self, image: CheckedImage) -> str:
        """Return the classes of an image as text."""
        return " + ".join(self.classes[label] for label in image.labels) or "no class"

    @property
    def modes(self) -> dict[str, int]:
        """How pixels are stored -> number of images, the most frequent first."""
        return dict(Counter(image.mode for image in self.readable).most_common())

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(width, height) of the smallest, the median and the largest image, by area."""
        sizes = sorted((image.size for image in self.readable), key=lambda size: size[0] * size[1])
        return (sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else ((0, 0),) * 3

    @property
    def leaks(self) -> list[Group]:
        """Groups of duplicates or near duplicates in more than one split."""
        groups = (*self.duplicates, *self.near_duplicates)
        return [group for group in groups if len({image.split for image in group}) > 1]

    @property
    def label_conflicts(self) -> list[Group]:
        """Groups of duplicates with different labels."""
        return [group for group in self.duplicates if len({image.labels for image in group}) > 1]

    @property
    def rare_classes(self) -> list[str]:
        """Classes with few training images, compared with the largest one."""
        counts = self.counts["train"]
        return [name for name, n in zip(self.classes, counts, strict=True) if n < RARE_SHARE * max(counts)]

    def findings(self) -> list[str]:
        """Return the problems of the data, one line each; empty if there are none."""
        rare = ", ".join(self.rare_classes)
        findings = (
            (len(self.unreadable), "images are unreadable"),
            (sum(image.rotated for image in self.images), "images are rotated by their EXIF orientation (applied)"),
            (sum(image.high_bit_depth for image in self.images), "images have more than 8 bits"),
            (sum(len(group) - 1 for group in self.duplicates), "images are duplicates of another one"),
            (sum(len(group) - 1 for group in self.near_duplicates), "images are near duplicates of another one"),
            (len(self.leaks), "groups of duplicates are in more than one split: results are optimistically biased"),
            (len(self.label_conflicts), "groups of duplicates have different labels"),
            (len(self.rare_classes), f"classes have less than {RARE_SHARE:.0%} of the largest one's images: {rare}"),
        )
        return [f"{count:,} {text}" for count, text in findings if count]

    def table(self) -> MetricTable:
        """Return the number of images of each class and split, and their sums."""
        splits = list(self.counts)
        columns = (Column("class", "class"), *(Column(split, split, ",") for split in splits))
        rows = rows_of([self.classes, *(self.counts[split] for split in splits)])
        return MetricTable(columns, (*rows, ("", *(sum(self.counts[split]) for split in splits))))

    def sheet(self) -> list[tuple[str, list[str]]]:
        """Return rows of a contact sheet, (caption, image files): training images of each class, then duplicates."""
        rows = []
        for label, name in enumerate(self.classes[:SHEET_CLASSES]):
            images = [image.name for image in self.readable if label in image.labels and image.split == "train"]
            step = max(1, len(images) // SHEET_COLUMNS)
            rows.append((f"{name}\n{len(images):,}", images[::step][:SHEET_COLUMNS]))
        for caption, groups in (("duplicates", self.duplicates), ("near duplicates", self.near_duplicates)):
            for group in groups[:SHEET_GROUPS]:
                classes = ", ".join(dict.fromkeys(f"{image.split}/{self.class_names(image)}" for image in group))
                rows.append((f"{caption}\n{classes[:24]}", [image.name for image in group[:SHEET_COLUMNS]]))
        return rows

    def to_plain(self) -> dict[str, Any]:
        """Return the findings as plain data, with images by name."""

        def names(groups: Sequence[Group]) -> list[list[str]]:
            return [[image.name for image in group] for group in groups]

        return {
            "name": self.name,
            "classes": list(self.classes),
            "counts": {split: list(counts) for split, counts in self.counts.items()},
            "sizes": [list(size) for size in self.sizes],
            "modes": self.modes,
            "findings": self.findings(),
            "unreadable": {image.name: image.unreadable for image in self.unreadable},
            "duplicates": names(self.duplicates),
            "near_duplicates": names(self.near_duplicates),
            "leaks": names(self.leaks),
            "label_conflicts": names(self.label_conflicts),
            "rotated": [image.name for image in self.images if image.rotated],
        }


def check(source: Source, *, progress: Progress | None = None) -> Check:
    """Read every image of a data set, and compare all of them."""
    images: list[CheckedImage] = []
    for split, samples in source.splits.items():
        labels = _labels(source.task.strata(samples.targets))
        inspected = (
            _inspect_files(samples, split, labels, source.manifest)
            if samples.pixels is None
            else _inspect_pixels(samples, split, labels)
        )
        for i, image in enumerate(inspected, 1):
            images.append(image)
            if progress:
                progress(f"checking {split}", i, len(samples))
    readable = [image for image in images if not image.unreadable]
    numbers = Counter((image.split, label) for image in readable for label in image.labels)
    counts = {split: [numbers[split, label] for label in range(len(source.classes))] for split in source.splits}
    duplicates = _find_duplicates(readable)
    copies = {id(image) for group in duplicates for image in group[1:]}  # the first of each group stands for all
    near_duplicates = _find_near_duplicates([image for image in readable if id(image) not in copies])
    return Check(source.name, source.classes, tuple(images), counts, tuple(duplicates), tuple(near_duplicates))


def _labels(strata: Tensor) -> list[tuple[int, ...]]:
    """Return the class numbers of each image from class numbers (n,), or (n, classes) of 0 and 1."""
    if strata.ndim == 1:
        return [(label,) for label in strata.tolist()]
    return [tuple(row.nonzero().flatten().tolist()) for row in strata]


def _inspect_files(
    samples: Samples, split: str, labels: Sequence[tuple[int, ...]], manifest: Manifest
) -> Iterator[CheckedImage]:
    items = list(zip(samples.names, labels, strict=True))
    return map_in_threads(lambda item: _inspect_file(item[0], split, item[1], manifest), items)


def _inspect_file(name: str, split: str, labels: tuple[int, ...], manifest: Manifest) -> CheckedImage:
    try:
        data = manifest.contents(name, remove=True) or read_bytes(name)
        header = read_header(name, data=data)
        channels = header.channels if header.channels not in (1, 3) else 1
        shares = read_shares(name, channels, data=data)
    except DataError as error:
        return CheckedImage(name, split, labels, unreadable=str(error).removeprefix(f"{name}: "))
    return CheckedImage(
        name,
        split,
        labels,
        header.size,
        header.mode,
        header.rotated,
        header.high_bit_depth,
        hashlib.sha256(data).hexdigest(),
        difference_hash(shares.mean(0, keepdim=True)),
    )


def _inspect_pixels(samples: Samples, split: str, labels: Sequence[tuple[int, ...]]) -> Iterator[CheckedImage]:
    pixels = samples.pixels
    assert pixels is not None
    high_bit_depth = pixels.dtype != torch.uint8
    channels, size = pixels.shape[1], (pixels.shape[3], pixels.shape[2])
    mode = f"{channels} x float32" if high_bit_depth else {1: "L", 3: "RGB"}.get(channels, f"{channels} x uint8")
    for name, classes, image in zip(samples.names, labels, pixels, strict=True):
        yield CheckedImage(
            name,
            split,
            classes,
            size,
            mode,
            high_bit_depth=high_bit_depth,
            digest=hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest(),
            dhash=difference_hash(image.float().mean(0, keepdim=True)),
        )


def difference_hash(gray: Tensor) -> int:
    """Return 64 bits of an image (1, h, w): whether each of 8 x 8 regions is brighter than the one to its left.

    Few bits change when an image is resized or compressed again.
    """
    small = F.interpolate(gray[None].float(), (8, 9), mode="area")[0, 0]
    bits = (small[:, 1:] > small[:, :-1]).flatten().tolist()
    return sum(bit << i for i, bit in enumerate(bits))


def _find_duplicates(images: Sequence[CheckedImage]) -> list[Group]:
    """Return the groups of images with equal contents."""
    by_digest: dict[str, list[CheckedImage]] = defaultdict(list)
    for image in images:
        by_digest[image.digest].append(image)
    return [tuple(group) for group in by_digest.values() if len(group) > 1]


def _find_near_duplicates(images: Sequence[CheckedImage]) -> list[Group]:
    """Return the groups of images with nearly equal hashes, without small and flat images."""
    by_hash: dict[int, list[CheckedImage]] = defaultdict(list)
    for image in images:
        if MIN_ONES <= image.dhash.bit_count() <= MAX_ONES and min(image.size) >= MIN_SIDE:
            by_hash[image.dhash].append(image)
    parent = {dhash: dhash for dhash in by_hash}

    def root(dhash: int) -> int:
        while parent[dhash] != dhash:
            dhash = parent[dhash]
        return dhash

    # of four quarters of 16 bits, at least one is equal if at most three bits differ
    for shift in range(0, 64, 16):
        by_quarter: dict[int, list[int]] = defaultdict(list)
        for dhash in by_hash:
            by_quarter[dhash >> shift & 0xFFFF].append(dhash)
        for hashes in by_quarter.values():
            for i, a in enumerate(hashes):
                for b in hashes[:i]:
                    if (a ^ b).bit_count() <= MAX_DIFFERENT_BITS:
                        parent[root(a)] = root(b)
    groups: dict[int, list[CheckedImage]] = defaultdict(list)
    for dhash, similar in by_hash.items():
        groups[root(dhash)] += similar
    return [tuple(group) for group in groups.values() if len(group) > 1]
