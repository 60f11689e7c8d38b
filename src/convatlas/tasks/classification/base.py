"""What single-label and multi-label classification share: predictions, results and losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from convatlas.core.auxiliary import Criterion
from convatlas.draw.names import MAX_NAME
from convatlas.errors import DataError, shorten
from convatlas.tasks.classification.losses import Loss, class_weights, mean_loss
from convatlas.tasks.prediction import Prediction
from convatlas.tasks.result import Result
from convatlas.tasks.score import Score, score_of
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration, Task

UNKNOWN = "unknown"
"""The text of a prediction whose most probable class is below the threshold."""

NO_CLASS = "no class"
"""The text of an image without labels."""

LABEL_SEPARATOR = "|"
"""Separates the labels of an image in a cell of a table."""


@dataclass(frozen=True, repr=False)
class ClassPrediction(Prediction):
    """Probabilities of the classes, the most probable first; all of them, or the first ones.

    labels: the predicted classes: the most probable one, unless it is below the threshold; in multi-label
        classification, all at or above their thresholds, the most probable first.
    """

    probabilities: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    plain_fields: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "source": Prediction.plain_fields["source"],
        "label": {
            "type": ["string", "null"],
            "description": "The predicted class, of several the most probable one; null if no class reaches its "
            "threshold, and with an error.",
        },
        "labels": {"type": "array", "items": {"type": "string"}, "description": "All predicted classes."},
        "probability": {
            "type": ["number", "null"], "minimum": 0, "maximum": 1,
            "description": "The probability of the most probable class; null with an error.",
        },
        "probabilities": {
            "type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
            "description": "The `top` most probable classes with their probabilities, the most probable first.",
        },
        "error": Prediction.plain_fields["error"],
    }  # fmt: skip

    @property
    def label(self) -> str | None:
        """The most probable of `labels`; None if there is none."""
        return self.labels[0] if self.labels else None

    @property
    def probability(self) -> float | None:
        """The probability of the most probable class; None for an unreadable image."""
        return next(iter(self.probabilities.values()), None)

    @property
    def text(self) -> str:
        """The predicted classes, or "unknown"."""
        return "" if self.error else ", ".join(self.labels) or UNKNOWN

    def with_top(self, top: int) -> Self:
        return replace(self, probabilities=dict(islice(self.probabilities.items(), top)))

    def to_plain(self) -> dict[str, Any]:
        return {
            "source": self.source, "label": self.label, "labels": list(self.labels), "probability": self.probability,
            "probabilities": dict(self.probabilities), "error": self.error or None,
        }  # fmt: skip

    def to_row(self, top: int) -> dict[str, Any]:
        """Return `to_plain` as a row: labels joined by |, and columns class_1, probability_1, class_2 and so on."""
        likely = list(islice(self.probabilities.items(), top))
        row: dict[str, Any] = {
            "source": self.source, "label": self.label, "labels": LABEL_SEPARATOR.join(self.labels),
            "probability": self.probability, "error": self.error or None,
        }  # fmt: skip
        for number in range(top):
            name, probability = likely[number] if number < len(likely) else (None, None)
            row |= {f"class_{number + 1}": name, f"probability_{number + 1}": probability}
        return row

    def cells(self, top: int) -> tuple[str, ...]:
        likely = islice(self.probabilities.items(), top)
        return (self.text, *(f"{probability:7.2%}  {name}" for name, probability in likely))

    @classmethod
    def headings(cls, top: int) -> tuple[str, ...]:
        return ("prediction", "most probable", *("next",) * (top - 1))


@dataclass(frozen=True, repr=False)
class LabelResult(Result):
    """Probabilities (n, classes), true labels, and their mean loss."""

    probabilities: Tensor
    labels: Tensor
    loss: float
    classes: tuple[str, ...]

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def predicted(self) -> Tensor:
        """The predictions in the form of `labels`."""

    @property
    @abstractmethod
    def wrong(self) -> Tensor:
        """(n,): whether the prediction of an image is wrong."""

    @property
    @abstractmethod
    def confidence(self) -> Tensor:
        """(n,): the confidence of each prediction, by which errors are ranked."""

    @abstractmethod
    def describe(self, image: int) -> tuple[str, str]:
        """Return the prediction and the target of an image as text."""

    @property
    def num_errors(self) -> int:
        return int(self.wrong.sum())

    @property
    def accuracy(self) -> float:
        return 1 - self.num_errors / self.n

    @abstractmethod
    def indices_of(self, labels: Tensor) -> list[list[int]]:
        """Return the class indices of each image in `labels`, or in predictions of the same form."""

    def image_rows(self, sources: Sequence[str]) -> list[tuple[Prediction, str, bool]]:
        targets, predicted = self.indices_of(self.labels), self.indices_of(self.predicted)
        rows: list[tuple[Prediction, str, bool]] = []
        for i, (source, row, wrong) in enumerate(zip(sources, self.probabilities, self.wrong.tolist(), strict=True)):
            best = int(row.argmax())
            labels = [self.classes[k] for k in sorted(predicted[i], key=lambda k: -float(row[k]))]
            prediction = ClassPrediction(source, "", {self.classes[best]: float(row[best])}, tuple(labels))
            rows.append((prediction, LABEL_SEPARATOR.join(self.classes[k] for k in targets[i]), not wrong))
        return rows

    def worst(self, limit: int) -> list[tuple[int, str, str]]:
        wrong = self.wrong.nonzero().flatten()
        ranked = wrong[self.confidence[wrong].argsort(descending=True)][:limit].tolist()
        described = [(image, self.describe(image)) for image in ranked]
        return [(image, prediction, f"is {target}") for image, (prediction, target) in described]


@dataclass(frozen=True)
class LabelTask(Task):
    """A classification task. Targets have a column `label`; those of mixed images also `mixed`."""

    options = frozenset(("tta", "ensemble", "top"))
    unused_fields = frozenset(("multi_scale", "scale_jitter"))

    loss_functions: ClassVar[Mapping[str, Loss]]

    @property
    def loss_function(self) -> Loss:
        return self.loss_functions[self.loss_name]

    def strata(self, targets: Targets) -> Tensor:
        return targets.tensor("label")

    def describe(self, targets: Targets, image: int) -> str:
        label = self.labels(targets)[image]
        if label.ndim == 0:
            return self.classes[int(label)]
        shares = sorted(zip(label.tolist(), self.classes, strict=True), key=lambda pair: -pair[0])
        texts = [
            name if share > 0.995 else f"{shorten(name, MAX_NAME)} {share:.0%}"
            for share, name in shares
            if share > 0.005
        ]
        return ", ".join(texts) or NO_CLASS

    def class_counts(self, targets: Targets) -> Tensor:
        label = targets.tensor("label")
        return label.sum(0).long() if label.ndim == 2 else label.bincount(minlength=self.outputs)

    def class_weights(self, targets: Targets, power: float) -> Tensor | None:
        return class_weights(targets.tensor("label"), self.outputs, power)

    def labels(self, targets: Targets) -> Tensor:
        return targets.tensor("mixed" if "mixed" in targets else "label")

    def criterion(self, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Criterion:
        return lambda outputs, labels: mean_loss(self.loss_function, outputs, labels, label_smoothing, class_weights)

    def decode(self, outputs: Tensor, calibration: Calibration) -> Tensor:
        return self.loss_function.probabilities(outputs / calibration.temperature)

    def evaluate(self, outputs: Tensor, targets: Targets, calibration: Calibration | None = None) -> LabelResult:
        calibration, labels = calibration or Calibration(), targets.tensor("label")
        with torch.inference_mode():
            loss = self.loss_function.function(outputs, labels, 0.0).mean().item()
            probabilities = self.decode(outputs, calibration)
        return self.result_of(probabilities, labels, loss, calibration)

    @abstractmethod
    def result_of(self, probabilities: Tensor, labels: Tensor, loss: float, calibration: Calibration) -> LabelResult:
        """Return the result for decoded outputs (n, classes), labels and their mean loss."""

    def score(self, decoded: Tensor, label: str | None = None, against: str | None = None, object: int = 0) -> Score:
        if object:
            raise DataError(f"explain: object must be 0 for {self.name}, got {object}; only detectors have objects")
        return score_of(self.classes, int(decoded.argmax()), label, against)

    def unreadable(self, source: str, error: str) -> ClassPrediction:
        return ClassPrediction(source, error)


def by_probability(classes: Sequence[str], probabilities: Tensor) -> dict[str, float]:
    """Return {class: probability}, the most probable first."""
    values = probabilities.tolist()
    return {classes[i]: values[i] for i in probabilities.argsort(descending=True, stable=True).tolist()}
