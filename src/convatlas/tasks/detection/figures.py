"""The figures of a detector's result, with the tables beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convatlas.core.table import Table
from convatlas.draw import precision_recall
from convatlas.draw.names import numbered
from convatlas.draw.page import PageFigure
from convatlas.tasks.detection.coco import CocoMetrics
from convatlas.tasks.detection.matching import SIZES, Matching, size_numbers

MAX_ROWS = 25
"""Maximum number of rows in the table of missed and false objects."""


def result_figures(
    metrics: CocoMetrics, matching: Matching, thresholds: Tensor, classes: Sequence[str], similarity: str
) -> dict[str, PageFigure]:
    """Return the figures of a result by their heading.

    thresholds: (classes,), the minimum scores. similarity: what detections and objects are compared by, such as "IoU".
    """
    average_precisions = np.stack([metrics.class_ap50, metrics.class_ap75])
    titles = [f"{similarity} {least}" for least in (0.5, 0.75)]
    curves = precision_recall.precision_recall(metrics.precision, average_precisions, classes, titles)
    missed, false = matching.missed(thresholds), matching.false(thresholds)
    return {
        "Precision and recall": PageFigure(
            curves,
            "Recall is the share of a class's objects that are detected, precision the share of its detections that "
            "are correct, for each minimum score. The closer to the upper right corner, the better; the average "
            "precision is the area below a curve. Of many classes, those with the lowest one have a color.",
            numbered(classes),
        ),
        "Missed and false objects": PageFigure(
            precision_recall.missed_and_false(_by_size(matching, missed, false)),
            "Objects by their area: small is below 32 x 32 pixels, large is at least 96 x 96. Detections count if "
            "their score is at least the threshold of their class, and are correct if their "
            f"{similarity} is at least 0.5.",
            {}, ("Missed and false by class and size", _table(matching, missed, false, classes)),
        ),
    }  # fmt: skip


def _by_size(matching: Matching, missed: Tensor, false: Tensor) -> dict[str, tuple[int, int, int]]:
    """Return size -> (detected, missed, false)."""
    truths, detections = size_numbers(matching.truths.area), size_numbers(matching.detections.area)
    counts = (
        torch.bincount(each, minlength=len(SIZES)).tolist()
        for each in (truths[~missed], truths[missed], detections[false])
    )
    return dict(zip(SIZES, zip(*counts, strict=True), strict=True))


def _table(matching: Matching, missed: Tensor, false: Tensor, classes: Sequence[str]) -> Table:
    """Return the numbers of missed and false objects by class and size; a row for each pair that has most of them."""

    def counts(labels: Tensor, areas: Tensor) -> Tensor:
        return torch.bincount(labels * len(SIZES) + size_numbers(areas), minlength=len(classes) * len(SIZES))

    truths, detections = matching.truths, matching.detections
    lost = counts(truths.label[missed], truths.area[missed])
    wrong = counts(detections.label[false], detections.area[false])
    total = lost + wrong
    rows = [
        (classes[i // len(SIZES)], SIZES[i % len(SIZES)], *(f"{int(each[i]):,}" for each in (lost, wrong)))
        for i in total.argsort(descending=True, stable=True)[:MAX_ROWS].tolist() if total[i]
    ]  # fmt: skip
    return Table(("class", "size", "missed", "false"), tuple(rows), right=frozenset((2, 3)))
