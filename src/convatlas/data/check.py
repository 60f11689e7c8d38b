"""Check a data set: unreadable files, rare classes, duplicates, and duplicates across splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convatlas.data.decode.array_values import Window
from convatlas.data.duplicates import Group, find_duplicates, find_near_duplicates
from convatlas.data.ignored import Ignored
from convatlas.data.inspect_images import CheckedImage, inspect_files, inspect_pixels
from convatlas.data.source import Source, check_unreadable
from convatlas.data.splits import VAL_SHARE
from convatlas.errors import DataError, listed
from convatlas.system.progress import Progress
from convatlas.tasks.table import Column, MetricTable, rows_of

RARE_SHARE = 0.1
"""A class is rare if it has less than this share of the largest class's training images."""

SHEET_COLUMNS, SHEET_CLASSES, SHEET_GROUPS = 10, 24, 6
"""Contact sheet: maximum number of images in a row, of classes, and of groups of each kind of duplicates."""


@dataclass(frozen=True)
class Check:
    """The findings on a data set.

    counts: split -> number of readable images of each class. duplicates: groups of images with equal contents.
    near_duplicates: groups of images with nearly equal hashes. remarks: see `Source.remarks`. refusal: why training
    with default options would not start; empty if it would. ignored: files that are not used.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[CheckedImage, ...]
    counts: Mapping[str, Sequence[int]]
    duplicates: tuple[Group, ...] = ()
    near_duplicates: tuple[Group, ...] = ()
    remarks: tuple[str, ...] = ()
    refusal: str = ""
    ignored: Ignored = field(default_factory=Ignored)

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
        rare = listed(self.rare_classes)
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
        refusal = [f"cannot be trained on: {self.refusal}"] if self.refusal else []
        return [*self.remarks, *refusal, *(f"{count:,} {text}" for count, text in findings if count)]

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
            "ignored": {reason: list(files) for reason, files in self.ignored.reasons.items()},
            "unreadable": {image.name: image.unreadable for image in self.unreadable},
            "duplicates": names(self.duplicates),
            "near_duplicates": names(self.near_duplicates),
            "leaks": names(self.leaks),
            "label_conflicts": names(self.label_conflicts),
            "rotated": [image.name for image in self.images if image.rotated],
        }


def check(source: Source, *, progress: Progress | None = None) -> Check:
    """Read every image of a data set, and compare all of them."""
    window, refusal = _window_of_fit(source)
    images: list[CheckedImage] = []
    for split, samples in source.splits.items():
        labels = _labels(source.task.strata(samples.targets))
        inspected = (
            inspect_files(samples, split, labels, source.manifest, source.channels, window)
            if samples.pixels is None
            else inspect_pixels(samples, samples.pixels, split, labels)
        )
        for i, image in enumerate(inspected, 1):
            images.append(image)
            if progress:
                progress(f"checking {split}", i, len(samples))
    readable = [image for image in images if not image.unreadable]
    refusal = refusal or _refusal_of_unreadable(source, images)
    numbers = Counter((image.split, label) for image in readable for label in image.labels)
    counts = {split: [numbers[split, label] for label in range(len(source.classes))] for split in source.splits}
    duplicates = find_duplicates(readable)
    copies = {id(image) for group in duplicates for image in group[1:]}  # the first of each group stands for all
    near_duplicates = find_near_duplicates([image for image in readable if id(image) not in copies])
    return Check(
        source.name, source.classes, tuple(images), counts, tuple(duplicates), tuple(near_duplicates), source.remarks,
        refusal, source.ignored,
    )  # fmt: skip


def _window_of_fit(source: Source) -> tuple[Window | None, str]:
    """Return the window of values with which training with default options reads images, and why it would not start."""
    refusal, share = "", VAL_SHARE
    try:
        source.with_val(val_share=share)
    except DataError as error:
        refusal, share = str(error), 0.0
    try:
        statistics = source.statistics(source.channels, val_share=share)
    except DataError as error:
        return (0.0, 1.0) if source.high_bit_depth else None, str(error)
    return statistics.window if statistics else None, refusal


def _refusal_of_unreadable(source: Source, images: Sequence[CheckedImage]) -> str:
    """Return why training with default options would not start because of unreadable images; "" if it would."""
    try:
        check_unreadable([f"{image.name}: {image.unreadable}" for image in images if image.unreadable], len(images))
        for split, samples in source.splits.items():
            readable = [not image.unreadable for image in images if image.split == split]
            numbers = torch.tensor(readable).nonzero().flatten()
            source.task.check_split(samples.targets.take(numbers), split, source.location)
    except DataError as error:
        return str(error)
    return ""


def _labels(strata: Tensor) -> list[tuple[int, ...]]:
    """Return the class numbers of each image from class numbers (n,), or (n, classes) of 0 and 1."""
    if strata.ndim == 1:
        return [(label,) for label in strata.tolist()]
    return [tuple(row.nonzero().flatten().tolist()) for row in strata]
