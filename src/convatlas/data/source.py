"""A data source: names, targets and splits, before a network is chosen and any image is prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.annotation_faults import AnnotationFault
from convatlas.data.dataset import Dataset
from convatlas.data.ignored import Ignored
from convatlas.data.manifest import Manifest
from convatlas.data.object_tasks import FIELDS, missing_field, only_fields, task_named, task_of_objects
from convatlas.data.prepare import prepare_split
from convatlas.data.samples import Samples
from convatlas.data.splits import MAX_UNREADABLE, Fold, with_val
from convatlas.data.statistics import Statistics, array_statistics, file_statistics
from convatlas.errors import DataError, listed
from convatlas.system.progress import Progress
from convatlas.tasks.task import Task


@dataclass(frozen=True)
class Source:
    """Data as a reader returns it.

    location: the argument of `open_data` that opens it again, from any working directory. splits: train, optionally
    val and test. channels: those of most images. high_bit_depth: whether most training images have more than 8 bits.
    manifest: cached properties of the image files. ignored: the files of a folder that are not used. notes: lines about
    how its contents were understood. faults: those of annotated objects, and how they were treated.
    """

    name: str
    location: str
    task: Task
    splits: Mapping[str, Samples]
    channels: int
    high_bit_depth: bool = False
    manifest: Manifest = field(default_factory=lambda: Manifest(""), compare=False, repr=False)
    ignored: Ignored = field(default_factory=Ignored, repr=False)
    notes: tuple[str, ...] = ()
    faults: tuple[AnnotationFault, ...] = field(default=(), repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.task.classes

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know before training, one line each: files that are not used, and the notes."""
        return (self.ignored.text(), *self.notes) if self.ignored else self.notes

    def with_val(self, *, seed: int = 0, val_share: float = 0.0, fold: Fold | None = None) -> dict[str, Samples]:
        """Return the splits, with a val split if the data has none; see `load`."""
        self.check_val_split(val_share=val_share, fold=fold)
        every = self.task.needs_every_class
        return with_val(
            self.splits, self.task.strata, seed=seed, share=val_share, where=self.name, fold=fold, every_class=every,
            noun=self.task.noun,
        )  # fmt: skip

    def for_task(self, name: str) -> Source:
        """Return the source for a task, such as "detect": objects without the masks or keypoints it does not need.

        Raises DataError if the data lacks what the task needs, or is of another kind; `open_data` decides whether it
        consists of images or videos.
        """
        kind = task_named(name)
        have, need = self.task.predicts, kind.predicts
        if kind.reads != self.task.reads:
            raise DataError(
                f"{self.location}: the data consists of {self.task.noun}s, and the task {name} needs {kind.noun}s"
            )
        if have not in FIELDS or need not in FIELDS:
            if name == self.task.short_name:
                return self
            raise DataError(
                f"{self.location}: the data is for the task {self.task.short_name} ({self.task.name}), not for {name}; "
                f"{'annotate boxes, in COCO, Pascal VOC or YOLO files' if need in FIELDS else 'use it for that task'}"
            )
        if lacking := missing_field(need, [samples.targets for samples in self.splits.values()]):
            raise DataError(
                f"{self.location}: the task {name} needs {lacking}, which no object of the data has; annotate them, or "
                f"use the task {self.task.short_name}"
            )
        splits = {split: replace(part, targets=only_fields(part.targets, need)) for split, part in self.splits.items()}
        task = self.task if need == have else task_of_objects(need, self.classes)
        return replace(self, task=task, splits=splits)

    def check_val_split(self, *, val_share: float, fold: Fold | None = None) -> None:
        """Raise DataError that names the classes with too few images for a val split or for all folds; see `load`."""
        train = self.splits["train"]
        counts = self.task.class_counts(train.targets)
        if "val" in self.splits or counts is None or (fold is None and val_share == 0) or train.groups is not None:
            return
        if not self.task.needs_every_class:
            return
        needed = 2 if fold is None or self.task.strata(train.targets).ndim == 2 else fold[1]
        pairs = zip(self.classes, counts.tolist(), strict=True)
        small = listed(f"{name} ({count})" for name, count in pairs if 0 < count < needed)
        if small:
            noun = self.task.noun
            purpose = "to split off val" if fold is None else f"for {fold[1]} folds"
            fix = (
                f"add {noun}s, give a val split, or remove the class"
                if fold is None
                else f"add {noun}s, or use fewer folds"
            )
            raise DataError(
                f"{self.name}: every class needs at least {needed} {noun}s {purpose}, too few are of {small}; {fix}",
                kind="small_classes", subject=small,
            )  # fmt: skip

    def statistics(
        self, channels: int, *, seed: int = 0, val_share: float = 0.0, fold: Fold | None = None
    ) -> Statistics | None:
        """Return window, mean and deviation of the training images; None for 8-bit grayscale and RGB images."""
        if not self.high_bit_depth and channels in (1, 3):
            return None
        train = self.with_val(seed=seed, val_share=val_share, fold=fold)["train"]
        depth = self.high_bit_depth
        if train.pixels is not None:
            return array_statistics(train.pixels, channels, high_bit_depth=depth, where=self.location)
        return file_statistics(train.names, channels, self.manifest, high_bit_depth=depth, where=self.location)

    def load(
        self,
        preprocessing: Preprocessing,
        *,
        seed: int = 0,
        val_share: float = 0.0,
        fold: Fold | None = None,
        for_random_crop: bool = False,
        for_random_clips: bool = False,
        max_unreadable: float = MAX_UNREADABLE,
        all_classes: bool = True,
        progress: Progress | None = None,
    ) -> Dataset:
        """Read and prepare all splits.

        val_share: share of the training images that becomes val, drawn with `seed`, if the data has no val split.
        fold: (number, count): this one of `count` folds becomes val instead.
        for_random_crop: keep the training images whole, resized to squares, for random crops.
        for_random_clips: keep all frames of the training videos, for random clips.
        max_unreadable: maximum share of unreadable images, which are skipped and listed. Raises DataError above it.
        all_classes: whether every split must have images of every class, as training requires.
        """
        splits = self.with_val(seed=seed, val_share=val_share, fold=fold)
        prepared = {
            split: prepare_split(
                samples,
                split,
                preprocessing,
                for_random_crop=for_random_crop and split == "train",
                for_random_clips=for_random_clips and split == "train",
                manifest=self.manifest,
                progress=progress,
            )
            for split, samples in splits.items()
        }
        self.manifest.release()
        images = {split: part for split, (part, _) in prepared.items()}
        unreadable = tuple(image for _, skipped in prepared.values() for image in skipped)
        reasons, total = [image.reason for image in unreadable], sum(map(len, splits.values()))
        check_unreadable(reasons, total, max_unreadable, noun=self.task.noun)
        for split, part in images.items():
            if not len(part):
                raise DataError(f"{self.location}: the {split} split has no readable {self.task.noun}")
            self.task.check_split(part.targets, split, self.location, all_classes=all_classes)
        return Dataset(
            self.name, self.task, images["train"], images.get("val"), images.get("test"), unreadable, self.remarks
        )


def check_unreadable(
    reasons: Sequence[str], total: int, max_unreadable: float = MAX_UNREADABLE, *, noun: str = "image"
) -> None:
    """Raise DataError if more than a share of `total` images is unreadable, for these reasons."""
    if len(reasons) > max_unreadable * total:
        raise DataError(
            f"{reasons[0]}; {len(reasons):,} of {total:,} {noun}s are unreadable, more than the "
            f"{max_unreadable:.1%} allowed; fix or remove them, or raise --max-unreadable"
        )
