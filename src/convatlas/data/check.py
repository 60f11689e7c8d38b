"""Check a data set in one pass: faults of its files, classes, splits and labels, each with a fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from convatlas.core.problems import NO_DATA, Problems
from convatlas.data.annotation_faults import KINDS as FAULTS
from convatlas.data.class_names import mirrored_classes
from convatlas.data.data_report import DataReport
from convatlas.data.decode.array_values import Window
from convatlas.data.duplicates import Group, find_duplicates, find_near_duplicates
from convatlas.data.findings import (
    MAX_ASPECT,
    RARE_SHARE,
    SEVERITIES,
    TINY_SIDE,
    Finding,
    Severity,
    finding,
    findings_of_errors,
    findings_of_ignored,
)
from convatlas.data.inspect_images import CheckedImage, inspect_files, inspect_pixels
from convatlas.data.inspect_videos import DEFAULT_SAMPLING, CheckedVideo, inspect_videos
from convatlas.data.manifest import NO_FILE
from convatlas.data.object_counts import count_objects
from convatlas.data.object_tasks import task_named
from convatlas.data.open import open_data
from convatlas.data.readers.memory import Data
from convatlas.data.source import Source
from convatlas.data.splits import MAX_UNREADABLE, SPLIT_FOLDERS, VAL_SHARE
from convatlas.data.video_counts import count_videos
from convatlas.errors import DataError, listed, printable, shorten
from convatlas.system.progress import Progress, progress_callback
from convatlas.tasks.detection.base import objects_of
from convatlas.tasks.targets import Targets

GROUP_IMAGES = 4
"""Maximum number of images of a group of duplicates that are named."""

MAX_NAMES = 80
"""Maximum number of characters of the classes of such an image."""


def check_data(
    data: Data,
    *,
    task: str | None = None,
    group_pattern: str | None = None,
    download: bool = False,
    progress: Progress | bool = True,
) -> DataReport:
    """Read every image or video of a data set, compare all of them, and return the findings.

    data, group_pattern, download: see `open_data`. task: that of the training, such as "video" or "detect"; None: that
    which the data shows. progress: a callback, True for a progress bar in terminals and notebooks, or False.
    Raises DataError for data that does not exist; every other fault is a finding.
    """
    problems = Problems()
    reads = None if task is None else task_named(task).reads
    with progress_callback(progress) as report:
        try:
            source = open_data(
                data, reads=reads, group_pattern=group_pattern, download=download, progress=report, problems=problems
            )
            source = source if task is None else source.for_task(task)
        except DataError as error:
            if error.kind == NO_DATA:
                raise
            problems.add(error)
            name = Path(data).name if isinstance(data, str | Path) else "data"
            return DataReport(printable(name), tuple(findings_of_errors(problems.errors)))
        return check(source, problems, progress=report)


def check(source: Source, problems: Problems | None = None, *, progress: Progress | None = None) -> DataReport:
    """Return the findings on an open data set; problems: those of its reader."""
    problems = problems or Problems()
    window, refusals = _window_of_fit(source)
    images: list[CheckedImage] = []
    splits = [split for split in SPLIT_FOLDERS if split in source.splits]
    for split in splits:
        samples = source.splits[split]
        labels = _labels(source.task.strata(samples.targets))
        inspected: Iterator[CheckedImage]
        if source.task.reads == "clips":
            inspected = inspect_videos(samples, split, labels)
        elif samples.pixels is None:
            inspected = inspect_files(samples, split, labels, source.manifest, source.channels, window)
        else:
            inspected = inspect_pixels(samples, samples.pixels, split, labels)
        for i, image in enumerate(inspected, 1):
            images.append(image)
            if progress:
                progress(f"checking {split}", i, len(samples))
    if source.splits["train"].pixels is None:  # training images are in a random order
        images.sort(key=lambda image: (splits.index(image.split), image.name))
    readable = [image for image in images if not image.unreadable]
    counts, objects, videos = {}, {}, {}
    for split in splits:
        targets = _readable_targets(source, images, split)
        counts[split] = _class_counts(source, targets)
        if "objects" in targets:
            objects[split] = count_objects(objects_of(targets))
        if checked := [each for each in images if each.split == split and isinstance(each, CheckedVideo)]:
            videos[split] = count_videos(checked)
    duplicates = find_duplicates(readable)
    copies = {id(image) for group in duplicates for image in group[1:]}  # the first of each group stands for all
    near_duplicates = find_near_duplicates([image for image in readable if id(image) not in copies])
    report = DataReport(
        source.name, (), source.classes, tuple(images), counts, tuple(duplicates), tuple(near_duplicates),
        source.ignored, source.splits["train"].pixels is not None, objects, videos, source.task.noun,
    )  # fmt: skip
    kinds = ("missing_classes", "unused_labels", "unknown_classes", *FAULTS)  # see `_findings_of_splits`, `faults`
    errors = [*(error for error in problems.errors if error.kind not in kinds), *refusals]
    findings = [
        *findings_of_errors(errors, report.noun),
        *_findings_of_splits(source, report, problems.subjects),
        *_findings_of_classes(source, report),
        *(fault.finding() for fault in source.faults),
        *_findings_of_images(source, report),
        *_findings_of_videos(report),
        *_findings_of_groups(report),
        *_split_groups(source),
        *findings_of_ignored(source.ignored, report.noun),
        *(Finding("remark", "note", note, 1, (), "none needed if that is right") for note in source.notes),
    ]
    return replace(report, findings=tuple(sorted(findings, key=lambda each: SEVERITIES.index(each.severity))))


def _readable_targets(source: Source, images: Sequence[CheckedImage], split: str) -> Targets:
    """Return the targets of the readable images of a split. images: in the order of the samples."""
    readable = [not image.unreadable for image in images if image.split == split]
    return source.splits[split].targets.take(torch.tensor(readable, dtype=torch.bool).nonzero().flatten())


def _class_counts(source: Source, targets: Targets) -> list[int]:
    """Return the number of images or, in detection, of objects of each class."""
    counts = source.task.class_counts(targets)
    return [] if counts is None else counts.tolist()


def _window_of_fit(source: Source) -> tuple[Window | None, list[DataError]]:
    """Return the window of values with which training with default options reads images, and why it would not start."""
    refusals, share = [], VAL_SHARE
    try:
        source.with_val(val_share=share)
    except DataError as error:
        share = 0.0
        if error.kind != "small_classes":  # see `_findings_of_classes`
            refusals.append(error)
    try:
        statistics = source.statistics(source.channels, val_share=share)
    except DataError as error:
        return (0.0, 1.0) if source.high_bit_depth else None, [*refusals, error]
    return statistics.window if statistics else None, refusals


def _findings_of_splits(source: Source, report: DataReport, empty: set[str]) -> Iterator[Finding]:
    """Yield findings on classes that a split lacks, or has in addition to train. empty: those with empty folders."""
    # the classes of each split, by their number; unreadable images count
    listed_in = {split: {i for p in report.images if p.split == split for i in p.labels} for split in report.counts}
    known = set(range(len(report.classes))).difference(*(part for part in listed_in.values())) | listed_in["train"]
    unknown_in = {
        split: [i for i in sorted(part - listed_in["train"]) if f"train/{report.classes[i]}" not in empty]
        for split, part in listed_in.items()
    }
    for split, counts in report.counts.items():
        unknown = unknown_in[split]
        if unknown:
            names = tuple(report.classes[i] for i in unknown)
            text = f"the {split} split has classes that are not in train: {listed(names)}"
            fix = f"add {report.noun}s of them to train, or rename or delete them"
            severity: Severity = "error" if source.task.needs_every_class else "warning"
            yield Finding("unknown_classes", severity, text, len(names), names, fix)
        expected = known if split == "train" else listed_in["train"]
        lacking = [report.classes[i] for i in sorted(expected) if not counts[i]]
        lacking = [name for name in lacking if f"{split}/{name}" not in empty]
        refusal = _refusal_of_split(source, report, split)
        if lacking:
            severity = "error" if refusal else "warning"
            text = f"the {split} split lacks {listed(lacking)}"
            fix = f"add {report.noun}s of them" + (", or delete the split" if split != "train" else "")
            yield Finding("missing_classes", severity, text, len(lacking), tuple(lacking), fix)
            continue
        named = any(unknown_in.values()) if split == "train" else bool(unknown)  # train lacks what is unknown elsewhere
        if refusal and not named and not any(name.startswith(f"{split}/") for name in empty):
            yield from findings_of_errors([refusal], report.noun)


def _refusal_of_split(source: Source, report: DataReport, split: str) -> DataError | None:
    """Return why a training does not start with the readable images of a split; None if it does."""
    try:
        source.task.check_split(_readable_targets(source, report.images, split), split, source.location)
    except DataError as error:
        return error
    return None


def _findings_of_classes(source: Source, report: DataReport) -> Iterator[Finding]:
    """Yield findings on the number of images of each class."""
    train = report.counts["train"]
    pairs = list(zip(report.classes, train, strict=True))
    small = [name for name, count in pairs if count == 1]
    every = source.task.needs_every_class
    if every and "val" not in source.splits and source.splits["train"].groups is None:
        yield from finding("small_classes", small, noun=report.noun, detail=f": {listed(small)}")
    rare = [f"{name} ({count:,})" for name, count in pairs if 0 < count < RARE_SHARE * max(train)]
    kind = "imbalanced_classes" if every else "rare_objects"
    yield from finding(kind, rare, noun=report.noun, detail=f": {listed(rare)}")
    mirrored = [f"{left} = {right}" for left, right in mirrored_classes(report.classes)]
    yield from finding("mirrored_classes", mirrored, detail=f": {listed(mirrored)}")
    unlabeled = [image.name for image in report.images if not image.labels]
    if report.objects:
        yield from finding("images_without_objects", unlabeled)
    elif len(report.classes) > 1:
        yield from finding("unlabeled_images", unlabeled, noun=report.noun)


def _findings_of_images(source: Source, report: DataReport) -> Iterator[Finding]:
    total, unreadable = len(report.images), report.unreadable
    if any(fault.kind == "missing_images" for fault in source.faults):  # that finding names their annotations
        unreadable = [image for image in unreadable if image.unreadable != NO_FILE]
    too_many = len(unreadable) > MAX_UNREADABLE * total
    detail = f", more than {MAX_UNREADABLE:.0%} of {total:,}" if too_many else ""
    reasons = [f"{each.name}: {each.unreadable}" for each in unreadable]
    yield from finding("unreadable_images", reasons, noun=report.noun, detail=detail)
    if not report.objects and report.sizes[1][0] and min(report.sizes[1]) >= 2 * TINY_SIDE:
        odd = [each for each in report.readable if min(each.size) < TINY_SIDE or _aspect(each) > MAX_ASPECT]
        sizes = [f"{each.name}: {each.size[0]} x {each.size[1]}" for each in odd]
        yield from finding("odd_sizes", sizes, noun=report.noun)
    if len(report.modes) > 1 and not report.videos:
        modes = listed(f"{mode} ({count:,})" for mode, count in report.modes.items())
        yield from finding("mixed_modes", (), count=len(report.modes), detail=f": {modes}")
    yield from finding("rotated_images", [image.name for image in report.images if image.rotated], noun=report.noun)
    yield from finding("high_bit_depth", [image.name for image in report.images if image.high_bit_depth])


def _findings_of_videos(report: DataReport) -> Iterator[Finding]:
    videos = [each for each in report.images if isinstance(each, CheckedVideo)]
    short = [f"{each.name}: {each.frames / DEFAULT_SAMPLING.rate:.2f} s" for each in videos if each.is_short]
    yield from finding("short_videos", short)
    yield from finding("variable_rates", [each.name for each in videos if each.variable_rate])


def _aspect(image: CheckedImage) -> float:
    return max(image.size) / max(1, min(image.size))


def _findings_of_groups(report: DataReport) -> Iterator[Finding]:
    """Yield findings on duplicates; each group is one example."""

    def texts(groups: Sequence[Group]) -> list[str]:
        return [
            " = ".join(
                f"{p.name} ({p.split}, {shorten(report.class_names(p), MAX_NAMES)})" for p in group[:GROUP_IMAGES]
            )
            for group in groups
        ]

    def copies(groups: Sequence[Group]) -> int:
        return sum(len(group) - 1 for group in groups)

    yield from finding("leaks", texts(report.leaks), noun=report.noun)
    yield from finding("label_conflicts", texts(report.label_conflicts), noun=report.noun)
    for kind, groups in (("duplicates", report.duplicates), ("near_duplicates", report.near_duplicates)):
        yield from finding(kind, texts(groups), noun=report.noun, count=copies(groups))


def _split_groups(source: Source) -> list[Finding]:
    """Return the finding on groups of a table, such as patients, with images in more than one split."""
    members: dict[int, dict[str, str]] = {}
    for split, samples in source.splits.items():
        for number, name in zip(() if samples.groups is None else samples.groups.tolist(), samples.names, strict=False):
            members.setdefault(number, {}).setdefault(split, name)
    return finding(
        "split_groups",
        [", ".join(f"{name} ({split})" for split, name in part.items()) for part in members.values() if len(part) > 1],
        noun=source.task.noun,
    )


def _labels(strata: Tensor) -> list[tuple[int, ...]]:
    """Return the class numbers of each image from class numbers (n,), or (n, classes) of 0 and 1."""
    if strata.ndim == 1:
        return [(label,) for label in strata.tolist()]
    return [tuple(row.nonzero().flatten().tolist()) for row in strata]
