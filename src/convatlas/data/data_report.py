"""The report of a data check: what was found, as a table, as text and as plain data."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convatlas.data.decode.display import display_image
from convatlas.data.decode.display_video import display_video
from convatlas.data.duplicates import Group
from convatlas.data.findings import SEVERITIES, Finding
from convatlas.data.ignored import Ignored
from convatlas.data.inspect_images import CheckedImage
from convatlas.data.object_counts import ObjectCounts
from convatlas.data.video_counts import VideoCounts
from convatlas.draw.contact_sheet import contact_sheet
from convatlas.errors import listed, printable, shorten
from convatlas.tasks.table import Column, MetricTable, pluralize, rows_of

SHEET_COLUMNS, SHEET_CLASSES, SHEET_GROUPS = 10, 24, 6
"""Contact sheet: maximum number of images in a row, of classes, and of groups of each kind of duplicates."""

STRIP_COLUMNS, STRIP_INCHES = 3, 4.5
"""Contact sheet of videos: maximum number of frame strips in a row, and their width."""

REPR_CLASSES, REPR_FINDINGS, REPR_WIDTH = 10, 8, 130
"""Maximum number of classes, of findings and of characters of a finding in the `repr`."""


@dataclass(frozen=True, repr=False)
class DataReport:
    """The findings on a data set, the most severe first.

    counts: split -> number of readable images or, in detection, of their objects, of each class. duplicates: groups of
    images with equal contents. near_duplicates: groups of images with nearly equal hashes. ignored: files that are not
    used. in_memory: whether the images are arrays, not files. objects: of each split, in detection. videos: of each
    split; `images` are `CheckedVideo` then, and noun is "video". Without images, the data set could not be opened.
    """

    name: str
    findings: tuple[Finding, ...] = ()
    classes: tuple[str, ...] = ()
    images: tuple[CheckedImage, ...] = ()
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    duplicates: tuple[Group, ...] = ()
    near_duplicates: tuple[Group, ...] = ()
    ignored: Ignored = field(default_factory=Ignored)
    in_memory: bool = False
    objects: Mapping[str, ObjectCounts] = field(default_factory=dict)
    videos: Mapping[str, VideoCounts] = field(default_factory=dict)
    noun: str = "image"

    def of(self, severity: str) -> list[Finding]:
        """Return the findings of a severity: "error", "warning" or "note"."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def has_errors(self) -> bool:
        """Whether a training would not start, or its results would be wrong."""
        return bool(self.of("error"))

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
        """How pixels are stored, or the codec -> number of images, the most frequent first."""
        return dict(Counter(image.mode for image in self.readable).most_common())

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(width, height) of the smallest, the median and the largest image, by area."""
        sizes = sorted((image.size for image in self.readable), key=lambda size: size[0] * size[1])
        return (sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else ((0, 0),) * 3

    @property
    def leaks(self) -> list[Group]:
        """Groups of duplicates or near duplicates in more than one split."""
        return find_leaks((*self.duplicates, *self.near_duplicates))

    @property
    def label_conflicts(self) -> list[Group]:
        """Groups of duplicates with different labels."""
        return find_label_conflicts(self.duplicates)

    def table(self) -> MetricTable:
        """Return the number of images of each class and split, and their sums."""
        splits = list(self.counts)
        columns = (Column("class", "class"), *(Column(split, split, ",") for split in splits))
        rows = rows_of([self.classes, *(self.counts[split] for split in splits)])
        return MetricTable(columns, (*rows, ("", *(sum(self.counts[split]) for split in splits))))

    def summary(self) -> str:
        """Return the number of findings of each severity in one line."""
        numbers = [pluralize(len(self.of(severity)), severity) for severity in SEVERITIES if self.of(severity)]
        serious = self.of("error") or self.of("warning")
        return ", ".join(numbers if serious else ["no problems found", *numbers])

    def image_lines(self) -> list[str]:
        """Return lines about the sizes and pixel formats of the images."""
        if not self.readable:
            return []
        smallest, median, largest = (f"{width} x {height}" for width, height in self.sizes)
        formats = listed(f"{mode} ({n:,})" for mode, n in self.modes.items())
        return [
            f"sizes: {smallest} to {largest}, median {median}",
            f"{'codecs' if self.videos else 'pixel formats'}: {formats}",
            *(f"{split}: {objects.text()}" for split, objects in self.objects.items()),
            *(f"{split}: {videos.text()}" for split, videos in self.videos.items()),
        ]  # fmt: skip

    def lines(self, max_examples: int) -> list[str]:
        """Return the findings as lines: each with its severity, at most so many examples, and the fix."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.severity}: {finding.text}")
            examples = [example for example in finding.examples if example not in finding.text]
            lines += [f"    {example}" for example in examples[:max_examples]]
            if len(examples) > max_examples:
                lines.append(f"    and {len(examples) - max_examples:,} more")
            if finding.fix:
                lines.append(f"    fix: {finding.fix}")
        return lines

    def sheet(self) -> list[tuple[str, list[str]]]:
        """Return rows of a contact sheet, (caption, files): training images of each class, then duplicates."""
        columns = STRIP_COLUMNS if self.videos else SHEET_COLUMNS
        rows = []
        for label, name in enumerate(self.classes[:SHEET_CLASSES]):
            images = [image.name for image in self.readable if label in image.labels and image.split == "train"]
            step = max(1, len(images) // columns)
            rows.append((f"{name}\n{len(images):,}", images[::step][:columns]))
        for caption, groups in (("duplicates", self.duplicates), ("near duplicates", self.near_duplicates)):
            for group in groups[:SHEET_GROUPS]:
                classes = ", ".join(dict.fromkeys(f"{image.split}/{self.class_names(image)}" for image in group))
                rows.append((f"{caption}\n{classes}", [image.name for image in group[:columns]]))
        return rows

    def draw_sheet(self, path: Path) -> None:
        """Write the contact sheet of the images, or of frame strips of the videos, as SVG, PNG or PDF."""
        if self.videos:
            strips = [(caption, map(display_video, files)) for caption, files in self.sheet()]
            contact_sheet(strips, columns=STRIP_COLUMNS, cell=STRIP_INCHES, path=path)
        else:
            contact_sheet([(caption, map(display_image, files)) for caption, files in self.sheet()], path=path)

    def to_plain(self) -> dict[str, Any]:
        """Return the report as plain data, with images by name."""

        def names(groups: Sequence[Group]) -> list[list[str]]:
            return [[image.name for image in group] for group in groups]

        return {
            "name": self.name,
            "classes": list(self.classes),
            "counts": {split: list(counts) for split, counts in self.counts.items()},
            "sizes_px": [list(size) for size in self.sizes] if self.readable else [],
            "modes": self.modes,
            **({"objects": {split: each.to_plain() for split, each in self.objects.items()}} if self.objects else {}),
            **({"videos": {split: each.to_plain() for split, each in self.videos.items()}} if self.videos else {}),
            **{f"num_{severity}s": len(self.of(severity)) for severity in SEVERITIES},
            "findings": [finding.to_plain() for finding in self.findings],
            "ignored": {reason: list(files) for reason, files in self.ignored.reasons.items()},
            "unreadable": {image.name: image.unreadable for image in self.unreadable},
            "duplicates": names(self.duplicates),
            "near_duplicates": names(self.near_duplicates),
            "leaks": names(self.leaks),
            "label_conflicts": names(self.label_conflicts),
            "rotated": [image.name for image in self.images if image.rotated],
        }

    def _short_table(self) -> MetricTable:
        """Return the table with the first classes and the sums."""
        table = self.table()
        *rows, sums = table.rows
        more = len(rows) - REPR_CLASSES
        dots = [(f"and {more:,} more", *[None] * len(self.counts))] if more > 0 else []
        return MetricTable(table.columns, (*rows[:REPR_CLASSES], *dots, sums))

    def _short_lines(self) -> list[str]:
        shown = [shorten(f"{each.severity}: {each.text}", REPR_WIDTH) for each in self.findings[:REPR_FINDINGS]]
        more = len(self.findings) - len(shown)
        return [*shown, *([f"and {more:,} more"] if more else []), self.summary()]

    def _title(self) -> str:
        return f"{self.name}: {pluralize(len(self.images), self.noun)}, {pluralize(len(self.classes), 'class')}"

    def __repr__(self) -> str:
        table = [repr(self._short_table())] if self.counts else []
        return "\n".join(map(str, [printable(self._title()), *table, *self._short_lines()]))

    def _repr_html_(self) -> str:
        table = self._short_table()._repr_html_() if self.counts else ""
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self._short_lines())
        return f"<p>{html.escape(printable(self._title()))}</p>{table}<ul>{items}</ul>"


def find_leaks(groups: Sequence[Group]) -> list[Group]:
    """Return the groups of images in more than one split."""
    return [group for group in groups if len({image.split for image in group}) > 1]


def find_label_conflicts(groups: Sequence[Group]) -> list[Group]:
    """Return the groups of images with different labels."""
    return [group for group in groups if len({image.labels for image in group}) > 1]
