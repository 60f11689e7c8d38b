"""Single-label classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from convatlas.core.table import Table
from convatlas.draw import charts
from convatlas.draw.confusion import MAX_CLASSES_IN_FULL, MAX_CLASSES_WITH_NAMES
from convatlas.draw.names import numbered
from convatlas.draw.page import PageFigure
from convatlas.errors import DataError
from convatlas.tasks.classification import metrics
from convatlas.tasks.classification.base import ClassPrediction, LabelResult, LabelTask, by_probability
from convatlas.tasks.classification.labels import check_known_classes, check_same_classes, class_indices
from convatlas.tasks.classification.losses import SINGLE_LABEL, one_hot
from convatlas.tasks.registry import register
from convatlas.tasks.result import Baseline
from convatlas.tasks.table import Column, MetricTable, pluralize, rows_of
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration, SplitTargets, TableRows, Task

MAX_CONFUSED_PAIRS = 25
"""Maximum number of rows of the table of confused pairs of classes."""

LABEL_COLUMNS = ("label", "class", "category")
"""Names of the label column of a table."""


@dataclass(frozen=True, repr=False)
class ClassificationResult(LabelResult):
    """Probabilities (n, classes) and true labels (n,)."""

    headline = "accuracy"

    @property
    def predicted(self) -> Tensor:
        """(n,): the most probable class."""
        return self.probabilities.argmax(1)

    @property
    def wrong(self) -> Tensor:
        """(n,): whether the prediction differs from the label."""
        return self.predicted != self.labels

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

        accuracy with the bounds of its 95 % interval; top5, of more than five classes; macro_f1 and balanced_accuracy:
        means over the classes that have images; ece: the expected calibration error.
        """
        confusion = self.confusion
        low, high = metrics.accuracy_interval(self.n - self.num_errors, self.n)
        return {
            "n": self.n, "num_errors": self.num_errors, "accuracy": self.accuracy, "accuracy_low": low,
            "accuracy_high": high, **self._top5(),
            "macro_f1": float(torch.nanmean(metrics.f1(confusion).where(self._is_present, torch.nan))),
            "balanced_accuracy": float(torch.nanmean(metrics.recall(confusion))), "loss": self.loss,
            "ece": metrics.expected_calibration_error(self.confidence, ~self.wrong),
        }  # fmt: skip

    def _top5(self) -> dict[str, float]:
        return {"top5": metrics.top_k_accuracy(self.probabilities, self.labels, 5)} if len(self.classes) > 5 else {}

    @property
    def _is_present(self) -> Tensor:
        """(classes,): whether a class has images."""
        return torch.bincount(self.labels, minlength=len(self.classes)) > 0

    @property
    def note(self) -> str:
        present = int(self._is_present.sum())
        return "" if present == len(self.classes) else f"{present:,} of {len(self.classes):,} classes present"

    def text(self) -> str:
        wrong = f"{self.num_errors:,} of {pluralize(self.n, self.noun)} wrong"
        return f"accuracy {self.accuracy:.2%}, {wrong}{self.note and f'; {self.note}'}"

    def table(self) -> MetricTable:
        counts = self.confusion
        columns = (
            Column("class", "class"), Column("n", f"{self.noun}s", ","), Column("correct", "correct", ","),
            Column("precision", "precision", ".2%"), Column("recall", "recall", ".2%"), Column("f1", "F1", ".2%"),
        )  # fmt: skip
        values = (
            counts.sum(1), counts.diag(), metrics.precision(counts), metrics.recall(counts), metrics.f1(counts)
        )  # fmt: skip
        rows = rows_of([self.classes, *(value.tolist() for value in values)])
        return MetricTable(columns, tuple(row for row in rows if row[1]))

    def figures(self) -> dict[str, PageFigure]:
        with_names = len(self.classes) <= MAX_CLASSES_WITH_NAMES
        numbers = "" if with_names else " The classes are numbered from 1, in their order in the tables."
        names = numbered(self.classes) if with_names else {}
        pairs = None
        if self.num_errors and len(self.classes) > MAX_CLASSES_IN_FULL:
            pairs = ("Most confused classes", self._confused_pairs())
        bins = metrics.reliability_bins(self.confidence, ~self.wrong)
        return {
            "Confusion matrix": PageFigure(
                charts.confusion(self.confusion, self.classes),
                f"A row has the {self.noun}s of one true class and sums to 100 %; a column has the predictions of one "
                f"class. Correct predictions are on the diagonal; a darker cell is a larger share of its row.{numbers}",
                names, pairs,
            ),
            "Calibration": PageFigure(
                charts.reliability(bins, start=1 / len(self.classes)),
                "Predictions in groups of similar confidence, with their number below: on the dashed line, accuracy "
                "equals confidence; below it, the network is overconfident.", {},
            ),
        }  # fmt: skip

    def _confused_pairs(self) -> Table:
        """Return the pairs of a true and a predicted class with the most errors."""
        counts, classes = self.confusion, self.classes
        errors = counts.clone().fill_diagonal_(0).flatten()
        order = errors.argsort(descending=True, stable=True)[:MAX_CONFUSED_PAIRS].tolist()
        rows = [
            (classes[i // len(classes)], classes[i % len(classes)], int(errors[i]),
             float(errors[i] / counts[i // len(classes)].sum()))
            for i in order if errors[i]
        ]  # fmt: skip
        columns = (
            Column("true", "true class"), Column("predicted", "predicted class"), Column("n", f"{self.noun}s", ","),
            Column("share", "of the true class", ".1%"),
        )  # fmt: skip
        texts = MetricTable(columns, tuple(rows))
        return Table(texts.headings, tuple(texts.texts()), right=frozenset((2, 3)))

    def indices_of(self, labels: Tensor) -> list[list[int]]:
        return [[index] for index in labels.tolist()]

    def describe(self, image: int) -> tuple[str, str]:
        prediction = f"{self.classes[int(self.predicted[image])]} {float(self.confidence[image]):.1%}"
        return prediction, self.classes[int(self.labels[image])]


@register
@dataclass(frozen=True)
class Classification(LabelTask):
    """One label for each image. Targets: label (n,) int64; of mixed images also mixed (n, classes) float32."""

    name = "classification"
    short_name = "classify"
    loss_functions = SINGLE_LABEL
    losses = tuple(SINGLE_LABEL)
    min_classes = 2
    progress_columns = (
        Column("train_accuracy", "train error", ".2%", complement=True),
        Column("val_accuracy", "val error", ".2%", complement=True),
    )

    # --- targets

    @classmethod
    def label_columns(cls, columns: Sequence[str], reserved: Sequence[str]) -> tuple[str, ...] | None:
        for known in LABEL_COLUMNS:
            for column in columns:
                if column.lower() == known:
                    return (column,)
        return None

    @classmethod
    def check_row(cls, where: object, columns: Sequence[str], cells: Mapping[str, str]) -> None:
        if not cells.get(columns[0]):
            raise DataError(f"{where}: no label in the column {columns[0]}")

    @classmethod
    def from_table(
        cls, where: object, columns: Sequence[str], splits: Mapping[str, TableRows]
    ) -> tuple[Self, SplitTargets]:
        (column,) = columns
        classes = tuple(sorted({row.cells[column] for row in splits["train"]}))
        numbers = {name: i for i, name in enumerate(classes)}
        for split, rows in splits.items():
            check_known_classes(classes, {row.cells[column] for row in rows}, split=split, where=where)
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
        if classes is None and train.size and int(train.max()) >= len(train):
            raise DataError(
                f"{where}: train: labels must be class numbers from 0, each of at least one of {len(train):,} images, "
                f"got {train.max()}"
            )
        if classes is None:
            classes = tuple(map(str, range(int(train.max()) + 1 if train.size else 0)))
        targets = {}
        for split, array in arrays.items():
            if array.min() < 0 or array.max() >= len(classes):
                raise DataError(
                    f"{where}: {split}: labels must be integers in [0, {len(classes) - 1}], "
                    f"got {array.min()} to {array.max()}"
                )
            targets[split] = Targets(label=torch.from_numpy(array.astype(np.int64)))
        return cls(classes), targets

    def check_split(self, targets: Targets, split: str, where: object, *, all_classes: bool = True) -> None:
        present = {self.classes[i] for i in targets.tensor("label").unique().tolist()}
        if all_classes:
            check_same_classes(self.classes, present, split=split, where=where)

    def align(self, targets: Targets, source: Task, where: object) -> Targets:
        if not isinstance(source, Classification):
            return super().align(targets, source, where)
        numbers = class_indices(self.classes, source.classes, where, complete=False)
        return Targets(label=numbers[targets.tensor("label")])

    # --- training

    def mix(self, first: Targets, second: Targets, weight: Tensor) -> Targets:
        own, other = (one_hot(part.tensor("label"), self.outputs) for part in (first, second))
        return first.with_columns(mixed=torch.lerp(other, own, weight[:, None]))

    def train_metric(self, outputs: Tensor, targets: Targets) -> Tensor:
        """1 for a correct image, 0 for a wrong one; mixed images count by their first label."""
        return outputs.argmax(1) == targets.tensor("label")

    # --- evaluation and prediction

    def result_of(
        self, probabilities: Tensor, labels: Tensor, loss: float, calibration: Calibration
    ) -> ClassificationResult:
        return ClassificationResult(probabilities, labels, loss, self.classes)

    def calibrate(self, outputs: Tensor, targets: Targets) -> Calibration:
        if not self.loss_function.logits:
            return Calibration()
        return Calibration(metrics.fit_temperature(outputs, targets.tensor("label")))

    def predict(
        self, source: str, decoded: Tensor, calibration: Calibration, threshold: float | None = None
    ) -> ClassPrediction:
        probabilities = by_probability(self.classes, decoded)
        likely = [name for name, probability in probabilities.items() if probability >= (threshold or 0.0)]
        return ClassPrediction(source, probabilities=probabilities, labels=tuple(likely[:1]))

    def baseline(self, targets: Targets) -> Baseline | None:
        """The largest class."""
        counts = torch.bincount(targets.tensor("label"), minlength=self.outputs)
        largest, total = int(counts.max()), int(counts.sum())
        if largest == total:
            return None
        unique = int((counts == largest).sum()) == 1
        name = f"{self.classes[int(counts.argmax())]}, the largest class" if unique else "one class"
        share = largest / total
        return Baseline(f"always predicting {name}", share, metrics.upper_bound(share, total))
