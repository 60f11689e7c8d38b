"""What a network says about the images of one split, and how good that is."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from convatlas.tasks.classification import metrics


@dataclass(frozen=True)
class Result:
    """One class for each image: probabilities (n, classes) beside the true labels (n,)."""

    probabilities: Tensor
    labels: Tensor
    loss: float

    headline = "accuracy"
    """The number of `summary` by which runs are compared."""

    @property
    def predicted(self) -> Tensor:
        return self.probabilities.argmax(1)

    @property
    def wrong(self) -> Tensor:
        """(n,): whether the answer is not the label."""
        return self.predicted != self.labels

    @property
    def errors(self) -> int:
        return int(self.wrong.sum())

    @property
    def accuracy(self) -> float:
        """Share of images that are answered right."""
        return 1 - self.errors / len(self.labels)

    @property
    def score(self) -> float:
        """What chooses the best epoch."""
        return self.accuracy

    @property
    def confusion(self) -> Tensor:
        """(classes, classes) counts: row = true class, column = predicted class."""
        classes = self.probabilities.shape[1]
        return torch.bincount(self.labels * classes + self.predicted, minlength=classes**2).view(classes, classes)

    @property
    def confidence(self) -> Tensor:
        """(n,): the probability of the predicted class."""
        return self.probabilities.amax(1)

    @property
    def answers(self) -> tuple[Tensor, Tensor]:
        """Probabilities, and whether what they are given to is so: what calibration compares."""
        return self.confidence, ~self.wrong

    def summary(self) -> dict[str, float | int]:
        """Return the numbers that are written down.

        accuracy with the bounds of its 95 % interval; top5; macro_f1 and balanced_accuracy: means over the classes;
        ece: the expected calibration error.
        """
        confusion, count = self.confusion, len(self.labels)
        low, high = metrics.interval(count - self.errors, count)
        return {
            "images": count, "errors": self.errors, "accuracy": self.accuracy, "accuracy_low": low,
            "accuracy_high": high, "top5": metrics.top(self.probabilities, self.labels, 5),
            "macro_f1": metrics.mean_of(metrics.f1(confusion)),
            "balanced_accuracy": metrics.mean_of(metrics.recall(confusion)), "loss": self.loss,
            "ece": metrics.calibration_error(*self.answers),
        }  # fmt: skip


@dataclass(frozen=True)
class Tags(Result):
    """Any number of classes for each image: probabilities and true labels, 0 or 1, are (n, classes).

    thresholds: (classes,), from which probability on a class is said to be there; 1/2 where left out.
    """

    thresholds: Tensor = field(default_factory=lambda: torch.tensor(0.5))

    headline = "map"

    @property
    def predicted(self) -> Tensor:
        return self.probabilities >= self.thresholds

    @property
    def wrong(self) -> Tensor:
        return (self.predicted != self.labels.bool()).any(1)

    @property
    def counts(self) -> Tensor:
        """(3, classes): so often a class is found, overlooked, and seen where it is not."""
        said, there = self.predicted, self.labels.bool()
        return torch.stack([(said & there).sum(0), (~said & there).sum(0), (said & ~there).sum(0)])

    @property
    def precisions(self) -> Tensor:
        """(classes,): average precisions; nan where no image is of the class."""
        return metrics.average_precisions(self.probabilities, self.labels)

    @property
    def score(self) -> float:
        return metrics.mean_of(self.precisions)

    @property
    def confusion(self) -> Tensor:
        raise NotImplementedError("images of several classes have no confusion matrix")

    @property
    def confidence(self) -> Tensor:
        """(n,): how far the worst answer about an image is from the truth, or the best one where none is wrong."""
        off = (self.probabilities - self.labels).abs()
        return torch.where(self.wrong, off.where(self.predicted != self.labels.bool(), 0).amax(1), 1 - off.amax(1))

    @property
    def answers(self) -> tuple[Tensor, Tensor]:
        return self.probabilities.flatten(), self.labels.bool().flatten()

    def summary(self) -> dict[str, float | int]:
        """Return the numbers that are written down.

        map: mean average precision, with the bounds of its 95 % interval; macro_f1: the mean over the classes,
        micro_f1: over all answers; errors and accuracy count images, of which every class must be right.
        """
        low, high = metrics.interval_of_map(self.probabilities, self.labels)
        found, overlooked, invented = self.counts.double()
        f1 = 2 * found / (2 * found + overlooked + invented)
        return {
            "images": len(self.labels), "errors": self.errors, "accuracy": self.accuracy, "map": self.score,
            "map_low": low, "map_high": high, "macro_f1": metrics.mean_of(f1),
            "micro_f1": float(2 * found.sum() / (2 * found.sum() + overlooked.sum() + invented.sum()).clamp(min=1)),
            "loss": self.loss, "ece": metrics.calibration_error(*self.answers),
        }  # fmt: skip
