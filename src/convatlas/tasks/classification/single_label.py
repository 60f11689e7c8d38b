"""Classification with one label for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from convatlas.draw import charts
from convatlas.errors import DataError
from convatlas.tasks.classification import metrics
from convatlas.tasks.classification.labels import check_same_classes, class_indices
from convatlas.tasks.classification.losses import SINGLE_LABEL, Loss, class_weights, mean_loss, one_hot
from convatlas.tasks.table import Column, MetricTable, counted, rows_of
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration, Criterion, Prediction, Result, SplitTargets, TableRows, Task, register

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL_COLUMNS = ("label", "class", "category")
"""Names of the column of a table that holds the label."""

UNKNOWN = "unknown"
"""The text of a prediction whose most probable class is below the threshold."""


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """Probabilities of all classes, the most probable first.

    labels: the predicted classes: the most probable one, unless it is below the threshold; in multi-label
        classification, all at or above their thresholds.
    """

    probabilities: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The most probable class; empty for an unreadable image."""
        return next(iter(self.probabilities), "")

    @property
    def probability(self) -> float:
        """The probability of the most probable class; 0 for an unreadable image."""
        return self.probabilities.get(self.label, 0.0)

    @property
    def text(self) -> str:
        """The predicted classes, or "unknown"."""
        return "" if self.error else ", ".join(self.labels) or UNKNOWN

    def to_plain(self, top: int | None = None) -> dict[str, Any]:
        if self.error:
            return super().to_plain(top)
        return {
            "source": self.source, "text": self.text, "label": self.label, "probability": self.probability,
            "labels": list(self.labels), "probabilities": dict(list(self.probabilities.items())[:top]),
        }  # fmt: skip

    def cells(self, top: int) -> tuple[str, ...]:
        likely = list(self.probabilities.items())[:top]
        return (self.text, *(f"{probability:7.2%}  {name}" for name, probability in likely))


@dataclass(frozen=True, repr=False)
class ClassificationResult(Result):
    """Probabilities (n, classes) beside the true labels (n,)."""

    probabilities: Tensor
    labels: Tensor
    loss: float
    classes: tuple[str, ...]

    headline = "accuracy"

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> Tensor:
        """(n,): the most probable class."""
        return self.probabilities.argmax(1)

    @property
    def wrong(self) -> Tensor:
        """(n,): whether the prediction differs from the label."""
        return self.predicted != self.labels

    @property
    def num_errors(self) -> int:
        return int(self.wrong.sum())

    @property
    def accuracy(self) -> float:
        return 1 - self.num_errors / self.n

    @property
    def score(self) -> float:
        return self.accuracy

    @property
    def confusion(self) -> Tensor:
        """(classes, classes) counts: row = true class, column = predicted class."""
        classes = len(self.classes)
        return torch.bincount(self.labels * classes + self.predicted, minlength=classes**2).view(classes, classes)

    @property
    def confidence(self) -> Tensor:
        """(n,): the probability of the predicted class."""
        return self.probabilities.amax(1)

    def summary(self) -> dict[str, float | int]:
        """Return the metrics.

        accuracy with the bounds of its 95 % interval; top5; macro_f1 and balanced_accuracy: means over the classes;
        ece: the expected calibration error.
        """
        confusion = self.confusion
        low, high = metrics.accuracy_interval(self.n - self.num_errors, self.n)
        return {
            "n": self.n, "num_errors": self.num_errors, "accuracy": self.accuracy, "accuracy_low": low,
            "accuracy_high": high, "top5": metrics.top_k_accuracy(self.probabilities, self.labels, 5),
            "macro_f1": float(torch.nanmean(metrics.f1(confusion))),
            "balanced_accuracy": float(torch.nanmean(metrics.recall(confusion))), "loss": self.loss,
            "ece": metrics.expected_calibration_error(self.confidence, ~self.wrong),
        }  # fmt: skip

    def text(self) -> str:
        return f"accuracy {self.accuracy:.2%}, {self.num_errors:,} of {counted(self.n, 'image')} wrong"

    def table(self) -> MetricTable:
        counts = self.confusion
        columns = (
            Column("class", "class"), Column("n", "images", ","), Column("correct", "correct", ","),
            Column("accuracy", "accuracy", ".2%"), Column("f1", "F1", ".2%"),
        )  # fmt: skip
        values = (counts.sum(1), counts.diag(), metrics.recall(counts), metrics.f1(counts))
        return MetricTable(columns, rows_of([self.classes, *(value.tolist() for value in values)]))

    def figures(self) -> dict[str, Figure]:
        return {
            "Confusion matrix": charts.confusion(self.confusion, self.classes),
            "Calibration": charts.reliability(metrics.reliability_bins(self.confidence, ~self.wrong)),
        }

    def worst(self, limit: int) -> list[tuple[int, str, str]]:
        wrong = self.wrong.nonzero().flatten()
        ranked = wrong[self.confidence[wrong].argsort(descending=True)][:limit].tolist()
        return [
            (
                i,
                f"{self.classes[int(self.predicted[i])]} {float(self.confidence[i]):.1%}",
                self.classes[int(self.labels[i])],
            )
            for i in ranked
        ]


@register
@dataclass(frozen=True)
class Classification(Task):
    """One label for each image. Targets: label (n,) int64; of mixed images also mixed (n, classes) float32."""

    name = "classification"
    losses = tuple(SINGLE_LABEL)
    progress_columns = (
        Column("train_accuracy", "train error", ".2%", complement=True),
        Column("val_accuracy", "val error", ".2%", complement=True),
    )

    @property
    def _loss(self) -> Loss:
        return SINGLE_LABEL[self.loss_name]

    # --- targets

    @classmethod
    def label_columns(cls, columns: Sequence[str], reserved: Sequence[str]) -> tuple[str, ...] | None:
        for known in LABEL_COLUMNS:
            for column in columns:
                if column.lower() == known:
                    return (column,)
        return None

    @classmethod
    def from_table(
        cls, where: object, columns: Sequence[str], splits: Mapping[str, TableRows]
    ) -> tuple[Self, SplitTargets]:
        (column,) = columns
        for rows in splits.values():
            for row in rows:
                if not row.cells.get(column):
                    raise DataError(f"{where}: line {row.line}: no label in the column {column}")
        classes = tuple(sorted({row.cells[column] for row in splits["train"]}))
        if len(classes) < 2:
            raise DataError(f"{where}: expected at least two classes, found {len(classes)}")
        numbers = {name: i for i, name in enumerate(classes)}
        for split, rows in splits.items():
            check_same_classes(classes, {row.cells[column] for row in rows}, split=split, where=where)
        labels = {
            split: Targets(label=torch.tensor([numbers[row.cells[column]] for row in rows]))
            for split, rows in splits.items()
        }
        return cls(classes), labels

    @classmethod
    def from_arrays(
        cls, where: object, arrays: Mapping[str, Any], classes: tuple[str, ...] | None
    ) -> tuple[Self, SplitTargets] | None:
        if any(np.ndim(array) != 1 or not np.issubdtype(array.dtype, np.integer) for array in arrays.values()):
            return None
        train = arrays["train"]
        if classes is None:
            classes = tuple(map(str, range(int(train.max()) + 1 if train.size else 0)))
        if len(classes) < 2:
            raise DataError(f"{where}: expected at least two classes, found {len(classes)}")
        targets = {}
        for split, array in arrays.items():
            if array.min() < 0 or array.max() >= len(classes):
                raise DataError(
                    f"{where}: {split}: labels must be integers in [0, {len(classes) - 1}], "
                    f"got {array.min()} to {array.max()}"
                )
            present = {classes[i] for i in np.unique(array).tolist()}
            check_same_classes(classes, present, split=split, where=where)
            targets[split] = Targets(label=torch.from_numpy(array.astype(np.int64)))
        return cls(classes), targets

    def strata(self, targets: Targets) -> Tensor:
        return targets.tensor("label")

    def check_split(self, targets: Targets, split: str, where: object) -> None:
        present = {self.classes[i] for i in targets.tensor("label").unique().tolist()}
        check_same_classes(self.classes, present, split=split, where=where)

    def align(self, targets: Targets, source: Task, where: object) -> Targets:
        if not isinstance(source, Classification):
            return super().align(targets, source, where)
        return Targets(label=class_indices(self.classes, source.classes, where)[targets.tensor("label")])

    # --- training

    def mix(self, first: Targets, second: Targets, weight: Tensor) -> Targets:
        own, other = (one_hot(part.tensor("label"), self.outputs) for part in (first, second))
        return first.with_columns(mixed=torch.lerp(other, own, weight[:, None]))

    def class_weights(self, targets: Targets, power: float) -> Tensor | None:
        return class_weights(targets.tensor("label"), self.outputs, power)

    def labels(self, targets: Targets) -> Tensor:
        return targets.tensor("mixed" if "mixed" in targets else "label")

    def criterion(self, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Criterion:
        return lambda outputs, labels: mean_loss(self._loss, outputs, labels, label_smoothing, class_weights)

    def train_metric(self, outputs: Tensor, targets: Targets) -> Tensor:
        """1 for a correct image, 0 for a wrong one; mixed images count by their first label."""
        return outputs.argmax(1) == targets.tensor("label")

    # --- evaluation and prediction

    def decode(self, outputs: Tensor, calibration: Calibration) -> Tensor:
        return self._loss.probabilities(outputs / calibration.temperature)

    def evaluate(
        self, outputs: Tensor, targets: Targets, calibration: Calibration | None = None
    ) -> ClassificationResult:
        labels = targets.tensor("label")
        with torch.inference_mode():
            loss = self._loss.function(outputs, labels, 0.0).mean().item()
            probabilities = self.decode(outputs, calibration or Calibration())
        return ClassificationResult(probabilities, labels, loss, self.classes)

    def calibrate(self, outputs: Tensor, targets: Targets) -> Calibration:
        if not self._loss.logits:
            return Calibration()
        return Calibration(metrics.fit_temperature(outputs, targets.tensor("label")))

    def predict(
        self, source: str, decoded: Tensor, calibration: Calibration, threshold: float | None = None
    ) -> ClassPrediction:
        probabilities = by_probability(self.classes, decoded)
        likely = [name for name, probability in probabilities.items() if probability >= (threshold or 0.0)]
        return ClassPrediction(source, probabilities=probabilities, labels=tuple(likely[:1]))

    def chance_score(self, targets: Targets) -> float:
        """The share of the largest class."""
        label = targets.tensor("label")
        return metrics.upper_bound(float(torch.bincount(label).max()) / len(label), len(label))

    def unreadable(self, source: str, error: str) -> ClassPrediction:
        return ClassPrediction(source, error)

    def prediction_columns(self, top: int) -> tuple[str, ...]:
        return ("prediction", "most probable", *("next",) * (top - 1))


def by_probability(classes: Sequence[str], probabilities: Tensor) -> dict[str, float]:
    """Return {class: probability}, the most probable first."""
    values = probabilities.tolist()
    return {classes[i]: values[i] for i in probabilities.argsort(descending=True, stable=True).tolist()}
