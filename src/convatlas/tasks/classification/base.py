"""What single-label and multi-label classification share: predictions, results and losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from convatlas.core.network import Criterion
from convatlas.tasks.classification.losses import Loss, class_weights, mean_loss
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration, Prediction, Result, Task

UNKNOWN = "unknown"
"""The text of a prediction whose most probable class is below the threshold."""


@dataclass(frozen=True, repr=False)
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

    def worst(self, limit: int) -> list[tuple[int, str, str]]:
        wrong = self.wrong.nonzero().flatten()
        ranked = wrong[self.confidence[wrong].argsort(descending=True)][:limit].tolist()
        return [(image, *self.describe(image)) for image in ranked]


@dataclass(frozen=True)
class LabelTask(Task):
    """A classification task. Targets have a column `label`; those of mixed images also `mixed`."""

    loss_functions: ClassVar[Mapping[str, Loss]]

    @property
    def loss_function(self) -> Loss:
        return self.loss_functions[self.loss_name]

    def strata(self, targets: Targets) -> Tensor:
        return targets.tensor("label")

    def class_weights(self, targets: Targets, power: float) -> Tensor | None:
        return class_weights(targets.tensor("label"), self.outputs, power)

    def labels(self, targets: Targets) -> Tensor:
        return targets.tensor("mixed" if "mixed" in targets else "label")

    def criterion(self, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Criterion:
        return lambda outputs, labels: mean_loss(self.loss_function, outputs, labels, label_smoothing, class_weights)

    def decode(self, outputs: Tensor, calibration: Calibration) -> Tensor:
        return self.loss_function.probabilities(outputs / calibration.temperature)

    def unreadable(self, source: str, error: str) -> ClassPrediction:
        return ClassPrediction(source, error)

    def prediction_columns(self, top: int) -> tuple[str, ...]:
        return ("prediction", "most probable", *("next",) * (top - 1))


def by_probability(classes: Sequence[str], probabilities: Tensor) -> dict[str, float]:
    """Return {class: probability}, the most probable first."""
    values = probabilities.tolist()
    return {classes[i]: values[i] for i in probabilities.argsort(descending=True, stable=True).tolist()}
