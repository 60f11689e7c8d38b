"""The result of a detector on one split: COCO's metrics, missed and false objects, and what is drawn on an image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from convatlas.draw.page import PageFigure
from convatlas.tasks.detection.coco import CocoMetrics, Kind, evaluate_objects
from convatlas.tasks.detection.drawing import draw_both
from convatlas.tasks.detection.figures import result_figures
from convatlas.tasks.detection.matching import Matching, match
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.detection.pck import DISTANCES, correct_keypoints
from convatlas.tasks.detection.prediction import DetectionPrediction, count_text
from convatlas.tasks.detection.skeleton import Skeleton
from convatlas.tasks.prediction import Prediction
from convatlas.tasks.result import Result
from convatlas.tasks.table import Column, MetricTable, pluralize, rows_of

PREFIXES: dict[Kind, str] = {"boxes": "box", "masks": "mask", "keypoints": "keypoint"}
"""The first word of the metrics of each kind."""

WORST_LEAD = (
    "An object is missed if no detection of its class, at or above the threshold of the class, has a {} with it of at "
    "least 0.5; a detection without an object is false."
)
"""What missed and false objects are, with the name of the similarity."""


@dataclass(frozen=True, repr=False, eq=False)
class DetectionResult(Result):
    """Detections and objects of the images of a split.

    thresholds: (classes,): the minimum score of a detection that counts in what is missed, detected and false. The
    metrics of COCO use all detections.
    """

    detections: Sequence[Objects]
    truths: Sequence[Objects]
    classes: tuple[str, ...]
    thresholds: Tensor
    skeleton: Skeleton | None = None

    loss = None
    worst_heading = "Images with most errors"
    worst_lead = WORST_LEAD.format("IoU")
    kinds: ClassVar[tuple[Kind, ...]]
    """What is measured; the last kind is that of the headline, and of what is missed and false."""
    similarity: ClassVar[str] = "IoU"
    """What detections and objects are compared by."""

    @property
    def n(self) -> int:
        return len(self.truths)

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """The sigmas of the keypoints."""
        return None if self.skeleton is None else self.skeleton.all_sigmas

    @cached_property
    def metrics(self) -> dict[Kind, CocoMetrics]:
        """The metrics of each kind."""
        return {
            kind: evaluate_objects(self.detections, self.truths, self.classes, kind, self.sigmas) for kind in self.kinds
        }

    @property
    def main_metrics(self) -> CocoMetrics:
        """The metrics of the kind of the headline."""
        return self.metrics[self.kinds[-1]]

    @cached_property
    def matching(self) -> Matching:
        """The assignment of detections to objects, by the kind of the headline."""
        return match(self.detections, self.truths, self.kinds[-1], self.sigmas)

    @property
    def note(self) -> str:
        present = len(self.matching.truths.label.unique())
        return "" if present == len(self.classes) else f"{present:,} of {pluralize(len(self.classes), 'class')} present"

    @property
    def value(self) -> float:
        """The average precision; NaN without objects."""
        return self.main_metrics["ap"]

    @property
    def score(self) -> float:
        return 0.0 if math.isnan(self.value) else self.value

    @property
    def value_text(self) -> str:
        return _percent(self.value)

    def epoch_metrics(self) -> dict[str, float]:
        values = {f"{PREFIXES[kind]}_ap": self.metrics[kind]["ap"] for kind in self.kinds}
        return {name: 0.0 if math.isnan(value) else value for name, value in values.items()}

    def summary(self) -> dict[str, float | int]:
        """Return the metrics that can be measured.

        Those of COCO have the prefix box_, mask_ or keypoint_; see `CocoMetrics`. missed, false: numbers of objects and
        of detections at the thresholds.
        """
        numbers: dict[str, float | int] = {
            "n": self.n, "objects": len(self.matching.truths.label), "missed": int(self.is_missed.sum()),
            "false": int(self.is_false.sum()),
        }  # fmt: skip
        for kind in self.kinds:
            values = self.metrics[kind].values
            numbers |= {f"{PREFIXES[kind]}_{name}": value for name, value in values.items() if not math.isnan(value)}
        return numbers

    def text(self) -> str:
        parts = [
            f"{PREFIXES[kind]} AP {_percent(self.metrics[kind]['ap'])}, AP50 {_percent(self.metrics[kind]['ap50'])}"
            for kind in reversed(self.kinds)
        ]
        return f"{', '.join(parts)}, {pluralize(self.n, 'image')}{self.note and f'; {self.note}'}"

    def table(self) -> MetricTable:
        """Return the average precision, missed and false objects of each class with objects or false detections.

        detections: at the threshold of the class, without those of crowds: correct and false ones.
        """
        truths, detections, classes = self.matching.truths, self.matching.detections, len(self.classes)
        counted = self.matching.counted(self.thresholds) & ~detections.ignored
        columns = (
            Column("class", "class"), Column("objects", "objects", ","), Column("detections", "detections", ","),
            Column("missed", "missed", ","), Column("false", "false", ","), Column("threshold", "threshold", ".2f"),
            *(
                Column(f"{PREFIXES[kind]}_{name}", f"{PREFIXES[kind]} {name.upper()}", ".1%")
                for kind in self.kinds for name in ("ap", "ap50")
            ),
        )  # fmt: skip
        counts = (
            torch.bincount(labels, minlength=classes).tolist()
            for labels in (
                truths.label, detections.label[counted], truths.label[self.is_missed], detections.label[self.is_false]
            )
        )  # fmt: skip
        precisions = (
            values for kind in self.kinds for values in (self.metrics[kind].class_ap, self.metrics[kind].class_ap50)
        )
        rows = rows_of([self.classes, *counts, self.thresholds.tolist(), *(values.tolist() for values in precisions)])
        return MetricTable(columns, tuple(row for row in rows if row[1] or row[4]))

    def figures(self) -> dict[str, PageFigure]:
        return result_figures(self.main_metrics, self.matching, self.thresholds, self.classes, self.similarity)

    # --- images

    @cached_property
    def is_missed(self) -> Tensor:
        """(objects,): whether an object is missed at the thresholds."""
        return self.matching.missed(self.thresholds)

    @cached_property
    def is_false(self) -> Tensor:
        """(detections,): whether a detection at the thresholds is false."""
        return self.matching.false(self.thresholds)

    @cached_property
    def error_counts(self) -> Tensor:
        """(2, n): missed objects and false detections of each image."""
        images = (self.matching.truths.image[self.is_missed], self.matching.detections.image[self.is_false])
        return torch.stack([torch.bincount(each, minlength=self.n) for each in images])

    def shown(self, image: int) -> Objects:
        """Return the detections of an image at the thresholds."""
        objects = self.detections[image]
        return objects if objects.scores is None else objects.take(objects.scores >= self.thresholds[objects.labels])

    def worst(self, limit: int) -> list[tuple[int, str, str]]:
        """Return the images with most missed and false objects: which these are, and all objects of the image."""
        total = self.error_counts.sum(0)
        ranked = total.argsort(descending=True, stable=True)[:limit].tolist()
        return [(image, self._errors(image), self._target(image)) for image in ranked if total[image]]

    def _errors(self, image: int) -> str:
        detections, truths = self.matching.detections, self.matching.truths
        kinds = {
            "missed": truths.label[self.is_missed & (truths.image == image)],
            "false": detections.label[self.is_false & (detections.image == image)],
        }
        return "; ".join(
            f"{kind}: {count_text([self.classes[i] for i in labels.tolist()])}"
            for kind, labels in kinds.items() if len(labels)
        )  # fmt: skip

    def _target(self, image: int) -> str:
        return count_text([self.classes[i] for i in self.truths[image].labels.tolist()])

    def image_rows(self, sources: Sequence[str]) -> list[tuple[Prediction, str, bool]]:
        """Return (prediction, objects, correct): an image is correct if nothing is missed or false in it."""
        correct = (self.error_counts.sum(0) == 0).tolist()
        rows: list[tuple[Prediction, str, bool]] = []
        for image, source in enumerate(sources):
            prediction = DetectionPrediction(
                source, objects=self.shown(image), classes=self.classes, skeleton=self.skeleton
            )
            counts = Counter(self.classes[i] for i in self.truths[image].labels.tolist())
            target = "|".join(f"{count} {name}" for name, count in counts.most_common())
            rows.append((prediction, target, correct[image]))
        return rows

    def annotated(self, image: int, pixels: Tensor) -> Tensor:
        """Return the image with its objects, and beside it, the image with the detections at the thresholds."""
        return draw_both(pixels, self.truths[image], self.shown(image), self.classes, self.skeleton)


class BoxResult(DetectionResult):
    """The result of object detection."""

    headline = "box_ap"
    headline_name = "box AP"
    kinds = ("boxes",)


class MaskResult(DetectionResult):
    """The result of instance segmentation."""

    headline = "mask_ap"
    headline_name = "mask AP"
    similarity = "mask IoU"
    worst_lead = WORST_LEAD.format("mask IoU")
    kinds = ("boxes", "masks")


class KeypointResult(DetectionResult):
    """The result of keypoint detection."""

    headline = "keypoint_ap"
    headline_name = "keypoint AP"
    kinds = ("boxes", "keypoints")
    similarity = "OKS"
    worst_lead = WORST_LEAD.format("object keypoint similarity (OKS)")

    @cached_property
    def keypoint_counts(self) -> tuple[Tensor, Tensor]:
        """(correct (distances, points), labeled (points,)): numbers of keypoints; see `pck.correct_keypoints`."""
        matching = match(self.detections, self.truths, "boxes")
        return correct_keypoints(self.detections, self.truths, matching, self.thresholds)

    @property
    def pck(self) -> Tensor:
        """(distances, points): the share of correct keypoints at the thresholds, NaN for those never labeled."""
        correct, labeled = self.keypoint_counts
        return correct / labeled.where(labeled > 0, torch.nan)

    def summary(self) -> dict[str, float | int]:
        """Return the metrics.

        keypoint_pck05, keypoint_pck10 and keypoint_pck20: the mean share of correct keypoints at these distances.
        """
        means = self.pck.nanmean(1).tolist()
        shares = {f"keypoint_pck{distance * 100:02.0f}": mean for distance, mean in zip(DISTANCES, means, strict=True)}
        return super().summary() | {name: mean for name, mean in shares.items() if not math.isnan(mean)}

    def more_tables(self) -> dict[str, MetricTable]:
        """Return the share of correct keypoints (PCK) of each keypoint."""
        columns = (
            Column("keypoint", "keypoint"), Column("labeled", "labeled", ","),
            *(Column(f"pck{distance * 100:02.0f}", f"PCK@{distance:.2f}", ".1%") for distance in DISTANCES),
        )  # fmt: skip
        names = () if self.skeleton is None else self.skeleton.names
        labeled = self.keypoint_counts[1].int().tolist()
        return {"Keypoints": MetricTable(columns, tuple(zip(names, labeled, *self.pck.tolist(), strict=False)))}


def _percent(share: float) -> str:
    return "not measurable" if math.isnan(share) else f"{share:.1%}"
