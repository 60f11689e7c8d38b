"""Findings of a data check: each with its severity, its examples and a fix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from convatlas.data.ignored import INSTALL, Ignored
from convatlas.data.splits import MAX_UNREADABLE
from convatlas.errors import DataError, listed, printable

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

RARE_SHARE = 0.1
"""A class is rare if it has less than this share of the largest class's training images."""

TINY_SIDE, MAX_ASPECT = 32, 3.0
"""Images with a shorter side in pixels, or a larger ratio of their sides, have an odd size."""


@dataclass(frozen=True)
class Finding:
    """One kind of fault or peculiarity of a data set.

    kind: its name in plain data. severity: "error" for what stops a training or makes its results wrong, "warning" for
    what should be looked at, "note" otherwise. count: how often it occurs. examples: all occurrences. fix: one line.
    """

    kind: str
    severity: Severity
    text: str
    count: int
    examples: tuple[str, ...]
    fix: str

    def to_plain(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return {
            "kind": self.kind, "severity": self.severity, "text": self.text, "count": self.count,
            "examples": list(self.examples), "fix": self.fix,
        }  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """severity, and the text for one and for more occurrences, after their number; fix."""

    severity: Severity
    one: str
    many: str
    fix: str


_KINDS = {
    # --- errors
    "missing_files": _Kind(
        "error", "file of the table does not exist", "files of the table do not exist",
        "correct the paths, which are relative to the table's folder, or remove the rows",
    ),
    "invalid_rows": _Kind(
        "error", "row of the table cannot be used", "rows of the table cannot be used", "correct or remove the rows"
    ),
    "invalid_annotations": _Kind(
        "error", "annotation cannot be used", "annotations cannot be used", "correct or remove them"
    ),
    "unreadable_images": _Kind(
        "error", "image is unreadable", "images are unreadable",
        f"replace or delete them; a training skips at most {MAX_UNREADABLE:.0%} of the images (--max-unreadable)",
    ),
    "empty_classes": _Kind(
        "error", "class folder has no images", "class folders have no images", "add images, or delete the folders"
    ),
    "small_classes": _Kind(
        "error", "class has one image, too few for train and val", "classes have one image, too few for train and val",
        "add images, give a val split, or remove the classes",
    ),
    "leaks": _Kind(
        "error", "group of equal or nearly equal images is in more than one split: results are optimistically biased",
        "groups of equal or nearly equal images are in more than one split: results are optimistically biased",
        "delete the copies in train; --json lists all of them under leaks",
    ),
    "split_groups": _Kind(
        "error", "group has images in more than one split: results are optimistically biased",
        "groups have images in more than one split: results are optimistically biased",
        "put all images of a group into one split",
    ),
    # --- warnings
    "label_conflicts": _Kind(
        "warning", "group of equal images has different labels", "groups of equal images have different labels",
        "keep the copy with the right label",
    ),
    "duplicates": _Kind(
        "warning", "image is a duplicate of another one", "images are duplicates of another one",
        "delete the copies; --json lists all of them under duplicates",
    ),
    "short_videos": _Kind(
        "warning", "video is shorter than a clip of 16 frames at 15 per second: unreadable for a training with these",
        "videos are shorter than a clip of 16 frames at 15 per second: unreadable for a training with these",
        "lower --frames or raise --frame-rate, or leave them out",
    ),
    "mirrored_classes": _Kind(
        "warning", "pair of classes differs only in left and right, which a horizontal flip exchanges",
        "pairs of classes differ only in left and right, which a horizontal flip exchanges",
        "train without flips: convatlas fit ... --set flip=false",
    ),
    "imbalanced_classes": _Kind(
        "warning", f"class has less than {RARE_SHARE:.0%} of the images of the largest one",
        f"classes have less than {RARE_SHARE:.0%} of the images of the largest one",
        "add images, or weight the classes: convatlas fit ... --set class_weight_power=0.5",
    ),
    "unsupported_images": _Kind(
        "warning", "image is not used: a library is not installed", "images are not used: a library is not installed",
        INSTALL,
    ),
    "dangling_links": _Kind(
        "warning", "link leads nowhere and is not used", "links lead nowhere and are not used",
        "restore their targets, or delete the links",
    ),
    # --- notes
    "rare_objects": _Kind(
        "note", f"class has less than {RARE_SHARE:.0%} of the objects of the largest one",
        f"classes have less than {RARE_SHARE:.0%} of the objects of the largest one",
        "add images of them, if they matter",
    ),
    "images_without_objects": _Kind(
        "note", "image has no objects", "images have no objects", "none needed if they show none of the classes"
    ),
    "ignored_files": _Kind("note", "", "", "none needed; move images that are meant to be used into a class folder"),
    "near_duplicates": _Kind(
        "note", "image is nearly equal to another one", "images are nearly equal to another one",
        "look at them: convatlas data check DATA --sheet sheet.png",
    ),
    "unlabeled_images": _Kind(
        "note", "image has no label", "images have no label", "none needed if they show none of the classes"
    ),
    "odd_sizes": _Kind(
        "note", f"image has a side below {TINY_SIDE} px or sides of more than {MAX_ASPECT:g}:1",
        f"images have a side below {TINY_SIDE} px or sides of more than {MAX_ASPECT:g}:1",
        "delete thumbnails, crop panoramas: a network reads the center square",
    ),
    "mixed_modes": _Kind(
        "note", "pixel format", "pixel formats", "none needed: all are converted to that of most images"
    ),
    "rotated_videos": _Kind(
        "note", "video is rotated or mirrored by its metadata", "videos are rotated or mirrored by their metadata",
        "none needed: frames are turned upright",
    ),
    "variable_rates": _Kind(
        "note", "video has a variable frame rate", "videos have a variable frame rate",
        "none needed: frames are taken by their times",
    ),
    "rotated_images": _Kind(
        "note", "image is rotated by its EXIF orientation", "images are rotated by their EXIF orientation",
        "none needed: the orientation is applied",
    ),
    "high_bit_depth": _Kind(
        "note", "image has more than 8 bits", "images have more than 8 bits",
        "none needed: see docs/data.md, 16-bit, float and multispectral images",
    ),
}  # fmt: skip

_SINGLE = {
    "unused_labels": "add images with the label to train, or remove the label",
    "invalid_names": "rename the folders or labels",
    "unreadable_folders": "allow to read the folders: chmod -R u+rX",
}
"""Kinds of errors that have their own text -> fix."""


def finding(
    kind: str, examples: Iterable[str], *, noun: str = "image", count: int | None = None, detail: str = ""
) -> list[Finding]:
    """Return a finding of a kind in a list; nothing without occurrences.

    examples: one for each occurrence. noun: "image" or "video", in the kind and its texts. count: the number of
    occurrences, if examples are groups of them. detail: the end of the text.
    """
    examples = tuple(map(printable, examples))
    number = len(examples) if count is None else count
    if not number:
        return []
    own_kind = kind.replace("image", noun)
    known = _KINDS.get(own_kind, _KINDS[kind])
    text, fix = (
        re.sub(r"\bimage(s?)\b", rf"{noun}\1", each) for each in (known.one if number == 1 else known.many, known.fix)
    )
    return [Finding(own_kind, known.severity, f"{number:,} {text}{detail}", number, examples, fix)]


def findings_of_errors(errors: Sequence[DataError], noun: str = "image") -> list[Finding]:
    """Return the findings for the errors of a reader, those of one kind together."""
    grouped: dict[str, list[DataError]] = {}
    for number, error in enumerate(errors):
        grouped.setdefault(error.kind if error.kind in _KINDS else str(number), []).append(error)
    findings = []
    for kind, group in grouped.items():
        if kind in _KINDS:
            findings += finding(kind, [error.subject or _from_line(str(error)) for error in group], noun=noun)
        else:
            text, _, advice = str(group[0]).partition("; ")
            fix = _SINGLE.get(group[0].kind, advice) or "correct the data"
            findings.append(Finding(group[0].kind or "invalid_data", "error", text, 1, (), fix))
    return findings


def _from_line(text: str) -> str:
    """Return the message of a row without the name of its table."""
    return re.sub(r"^.*?: (?=line \d+: )", "", text)


def findings_of_ignored(ignored: Ignored, noun: str = "image") -> list[Finding]:
    """Return the findings for files that are not used: images without a library, dangling links, and others."""
    unsupported = [name for names in ignored.unsupported.values() for name in names]
    by_suffix = listed(f"{len(names):,} {suffix}" for suffix, names in ignored.unsupported.items())
    others = [name for names in ignored.others.reasons.values() for name in names]
    return [
        *finding("unsupported_images", unsupported, detail=f": {by_suffix}"),
        *finding("dangling_links", ignored.dangling),
        *(replace(each, text=ignored.others.text()) for each in finding("ignored_files", others, noun=noun)),
    ]
