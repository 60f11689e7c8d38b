"""Multi-label classification: any number of labels for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from convatlas.draw import charts
from convatlas.draw.names import numbered
from convatlas.draw.page import PageFigure
from convatlas.errors import DataError, listed
from convatlas.tasks.classification import metrics
from convatlas.tasks.classification.base import (
    LABEL_SEPARATOR,
    NO_CLASS,
    ClassPrediction,
    LabelResult,
    LabelTask,
    by_probability,
)
from convatlas.tasks.classification.labels import check_known_classes, class_indices
from convatlas.tasks.classification.losses import MULTILABEL
from convatlas.tasks.classification.single_label import LABEL_COLUMNS
from convatlas.tasks.registry import register
from convatlas.tasks.result import Baseline
from convatlas.tasks.table import Column, MetricTable, pluralize, rows_of
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration, SplitTargets, TableRow, TableRows, Task

LABELS_COLUMNS = ("labels", "tags", "classes")
"""Names of a column of a table that contains all labels of an image."""

YES_NO = {
    "1": True, "true": True, "yes": True, "1.0": True, "0": False, "false": False, "no": False, "0.0": False, "": False,
}  # fmt: skip
"""The values of a column for one class."""


@dataclass(frozen=True, repr=False)
class MultilabelResult(LabelResult):
    """Probabilities and true labels, 0 or 1, are (n, classes); thresholds (classes,).

    An image is correct if every class is: `accuracy` is the exact-match ratio.
    """

    thresholds: Tensor

    headline = "mAP"
    headline_name = "mean average precision"

    @property
    def predicted(self) -> Tensor:
        """(n, classes): whether a class is predicted."""
        return self.probabilities >= self.thresholds

    @property
    def wrong(self) -> Tensor:
        """(n,): whether the prediction of any class is wrong."""
        return (self.predicted != self.labels.bool()).any(1)

    @property
    def counts(self) -> Tensor:
        """(3, classes): true positives, false negatives, false positives."""
        predicted, present = self.predicted, self.labels.bool()
        return torch.stack([(predicted & present).sum(0), (~predicted & present).sum(0), (predicted & ~present).sum(0)])

    @property
    def average_precisions(self) -> Tensor:
        """(classes,); nan for a class without images."""
        return metrics.average_precisions(self.probabilities, self.labels)

    @property
    def score(self) -> float:
        return float(torch.nanmean(self.average_precisions))

    def epoch_metrics(self) -> dict[str, float]:
        return {"accuracy": self.accuracy, "mAP": self.score}

    @property
    def confidence(self) -> Tensor:
        """(n,): largest distance of a wrong probability from its label; 1 - largest distance for a correct image."""
        distance = (self.probabilities - self.labels).abs()
        wrong = distance.where(self.predicted != self.labels.bool(), 0).amax(1)
        return torch.where(self.wrong, wrong, 1 - distance.amax(1))

    def summary(self) -> dict[str, float | int]:
        """Return the metrics.

        mAP: mean average precision, with the bounds of its 95 % interval; macro_f1: the mean over the classes that have
        images;
        micro_f1: over all labels; num_errors and accuracy count images, of which every class must be correct.
        """
        low, high = metrics.map_interval(self.probabilities, self.labels)
        tp, fn, fp = self.counts.double()
        return {
            "n": self.n, "num_errors": self.num_errors, "accuracy": self.accuracy, "mAP": self.score,
            "mAP_low": low, "mAP_high": high,
            "macro_f1": float(torch.nanmean((2 * tp / (2 * tp + fn + fp)).where(self._is_present, torch.nan))),
            "micro_f1": float(2 * tp.sum() / (2 * tp.sum() + fn.sum() + fp.sum()).clamp(min=1)),
            "loss": self.loss, "ece": metrics.expected_calibration_error(*self._probabilities_and_labels),
        }  # fmt: skip

    @property
    def _is_present(self) -> Tensor:
        """(classes,): whether a class has images."""
        return self.labels.bool().any(0)

    @property
    def note(self) -> str:
        present = int(self._is_present.sum())
        return "" if present == len(self.classes) else f"{present:,} of {len(self.classes):,} classes present"

    @property
    def _probabilities_and_labels(self) -> tuple[Tensor, Tensor]:
        return self.probabilities.flatten(), self.labels.bool().flatten()

    def text(self) -> str:
        wrong = f"{self.num_errors:,} of {pluralize(self.n, self.noun)} wrong"
        return f"mean average precision {self.score:.2%}, {wrong}{self.note and f'; {self.note}'}"

    def table(self) -> MetricTable:
        columns = (
            Column("class", "class"), Column("n", f"{self.noun}s", ","),
            Column("true_positives", "true positives", ","), Column("false_positives", "false positives", ","),
            Column("average_precision", "average precision", ".2%"), Column("precision", "precision", ".2%"),
            Column("recall", "recall", ".2%"), Column("f1", "F1", ".2%"), Column("threshold", "threshold", ".2%"),
        )  # fmt: skip
        tp, fn, fp = self.counts
        f1 = 2 * tp / (2 * tp + fn + fp).clamp(min=1)
        values = (tp + fn, tp, fp, self.average_precisions, tp / (tp + fp), tp / (tp + fn), f1, self.thresholds)
        return MetricTable(columns, rows_of([self.classes, *(value.tolist() for value in values)]))

    def figures(self) -> dict[str, PageFigure]:
        bins = metrics.reliability_bins(*self._probabilities_and_labels)
        return {
            "Precision and recall": PageFigure(
                charts.precision_recall(self.probabilities, self.labels, self.average_precisions, self.classes),
                f"A point for each threshold: recall is the share of a class's {self.noun}s that are predicted, "
                "precision the share of its predictions that are correct. The closer to the upper right corner, the "
                "better.",
                numbered(self.classes),
            ),
            "Calibration": PageFigure(
                charts.reliability(bins),
                "Probabilities of all classes in groups, with their number below: on the dashed line, the share of "
                f"{self.noun}s with the class equals its probability; below it, the network is overconfident.", {},
            ),
        }  # fmt: skip

    def indices_of(self, labels: Tensor) -> list[list[int]]:
        return [row.nonzero().flatten().tolist() for row in labels]

    def describe(self, image: int) -> tuple[str, str]:
        """Return (the false positives, and the false negatives after "no"; the labels)."""
        different = (self.predicted[image] != self.labels[image].bool()).nonzero().flatten().tolist()
        predicted = self.predicted[image].tolist()
        errors = [self.classes[i] if predicted[i] else f"no {self.classes[i]}" for i in different]
        labels = [self.classes[i] for i in self.labels[image].nonzero().flatten().tolist()]
        return ", ".join(errors), ", ".join(labels) or NO_CLASS


@register
@dataclass(frozen=True)
class MultilabelClassification(LabelTask):
    """Any number of labels for each image. Targets: label (n, classes) float32, 0 or 1; of mixed images also mixed."""

    name = "multi-label classification"
    short_name = "multi-label"
    loss_functions = MULTILABEL
    losses = tuple(MULTILABEL)
    progress_columns = (
        Column("train_accuracy", "train error", ".2%", complement=True),
        Column("val_mAP", "val mAP", ".2%"),
    )

    # --- targets

    @classmethod
    def label_columns(cls, columns: Sequence[str], reserved: Sequence[str]) -> tuple[str, ...] | None:
        """Return a column that lists the labels, or else one column of 0 and 1 for each class."""
        lower = {column.lower(): column for column in reversed(columns)}
        if any(known in lower for known in LABEL_COLUMNS):
            return None
        for known in LABELS_COLUMNS:
            if known in lower:
                return (lower[known],)
        return tuple(column for column in columns if column not in reserved) or None

    @classmethod
    def check_row(cls, where: object, columns: Sequence[str], cells: Mapping[str, str]) -> None:
        if _lists_labels(columns):
            return
        wrong = next((name for name in columns if cells[name].lower() not in YES_NO), None)
        if wrong is not None:
            raise DataError(
                f"{where}: {wrong} must be 0 or 1, got {cells[wrong]!r}; without a column "
                f"{' or '.join(LABEL_COLUMNS)}, every column but file, split and group is a class"
            )

    @classmethod
    def from_table(
        cls, where: object, columns: Sequence[str], splits: Mapping[str, TableRows]
    ) -> tuple[Self, SplitTargets]:
        labels_of = _labels_in_cell if _lists_labels(columns) else _labels_in_columns
        labels = {split: [labels_of(row, columns) for row in rows] for split, rows in splits.items()}
        present = {name for names in labels["train"] for name in names}
        classes = tuple(sorted(present)) if _lists_labels(columns) else tuple(columns)
        if not classes:
            raise DataError(f"{where}: no image has a label in the column {columns[0]}")
        numbers = {name: i for i, name in enumerate(classes)}
        targets = {}
        for split, rows in labels.items():
            check_known_classes(classes, {name for names in rows for name in names}, split=split, where=where)
            matrix = torch.zeros(len(rows), len(classes))
            for i, names in enumerate(rows):
                matrix[i, [numbers[name] for name in names]] = 1
            targets[split] = Targets(label=matrix)
        return cls(classes), targets

    @classmethod
    def from_arrays(
        cls, where: object, arrays: Mapping[str, Any], classes: tuple[str, ...] | None
    ) -> tuple[Self, SplitTargets] | None:
        if any(np.ndim(array) != 2 for array in arrays.values()):
            return None
        if classes is None:
            classes = tuple(map(str, range(arrays["train"].shape[1])))
        for split, array in arrays.items():
            if array.shape[1] != len(classes) or not np.isin(array, (0, 1)).all():
                raise DataError(
                    f"{where}: {split}: labels must be 0 or 1 for each of {len(classes):,} classes, "
                    f"got {array.dtype} {array.shape}"
                )
        targets = {s: Targets(label=torch.from_numpy(array.astype(np.float32))) for s, array in arrays.items()}
        return cls(classes), targets

    def check_split(self, targets: Targets, split: str, where: object, *, all_classes: bool = True) -> None:
        label = targets.tensor("label")
        if not label.any():
            raise DataError(f"{where}: no image of the {split} split has a label; nothing can be measured")
        unused = [name for name, count in zip(self.classes, label.sum(0).tolist(), strict=True) if not count]
        if unused and all_classes and split == "train":  # a rare class may be missing in the others
            raise DataError(f"{where}: no training image has the label {listed(unused)}", kind="unused_labels")

    def align(self, targets: Targets, source: Task, where: object) -> Targets:
        if not isinstance(source, MultilabelClassification):
            return super().align(targets, source, where)
        columns = class_indices(self.classes, source.classes, where, complete=False)
        label = torch.zeros(len(targets), self.outputs)
        label[:, columns] = targets.tensor("label")
        return Targets(label=label)

    # --- training

    def mix(self, first: Targets, second: Targets, weight: Tensor) -> Targets:
        return first.with_columns(mixed=torch.lerp(second.tensor("label"), first.tensor("label"), weight[:, None]))

    def train_metric(self, outputs: Tensor, targets: Targets) -> Tensor:
        """1 for an image of which every class is correct at a probability of 1/2, 0 for others."""
        return ((outputs > 0) == (targets.tensor("label") > 0.5)).all(1)

    # --- evaluation and prediction

    def _thresholds(self, calibration: Calibration) -> tuple[float, ...]:
        return calibration.thresholds or (0.5,) * self.outputs

    def result_of(
        self, probabilities: Tensor, labels: Tensor, loss: float, calibration: Calibration
    ) -> MultilabelResult:
        thresholds = torch.tensor(self._thresholds(calibration))
        return MultilabelResult(probabilities, labels, loss, self.classes, thresholds)

    def calibrate(self, outputs: Tensor, targets: Targets) -> Calibration:
        label = targets.tensor("label")
        calibration = Calibration(metrics.fit_temperature(outputs, label))
        thresholds = metrics.fit_thresholds(self.decode(outputs, calibration), label)
        return Calibration(calibration.temperature, tuple(thresholds))

    def predict(
        self, source: str, decoded: Tensor, calibration: Calibration, threshold: float | None = None
    ) -> ClassPrediction:
        probabilities = by_probability(self.classes, decoded)
        limits = dict(zip(self.classes, self._thresholds(calibration), strict=True))
        labels = [name for name, p in probabilities.items() if p >= (limits[name] if threshold is None else threshold)]
        return ClassPrediction(source, probabilities=probabilities, labels=tuple(labels))

    def baseline(self, targets: Targets) -> Baseline | None:
        """The average precision of a random order is the share of images with the label."""
        label = targets.tensor("label")
        present = label[:, label.sum(0) > 0]
        if not present.numel() or bool(present.all()):
            return None
        share = float(present.mean())
        return Baseline(f"ranking the {self.noun}s at random", share, metrics.upper_bound(share, len(label)))


def _lists_labels(columns: Sequence[str]) -> bool:
    """Return whether the labels of an image are in one cell."""
    return len(columns) == 1 and columns[0].lower() in LABELS_COLUMNS


def _labels_in_cell(row: TableRow, columns: Sequence[str]) -> list[str]:
    """Return the labels in a cell that lists them."""
    names = (name.strip() for name in row.cells[columns[0]].split(LABEL_SEPARATOR))
    return list(dict.fromkeys(name for name in names if name))


def _labels_in_columns(row: TableRow, columns: Sequence[str]) -> list[str]:
    """Return the labels whose columns contain 1."""
    return [name for name in columns if YES_NO[row.cells[name].lower()]]
