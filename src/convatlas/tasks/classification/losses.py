"""Losses, and how outputs that were trained with them become probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.data.loader import one_hot
from convatlas.errors import SpecError


def cross_entropy(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-log softmax(outputs)[label]; `smoothing` spreads that share of the target over all classes."""
    return F.cross_entropy(outputs, labels, label_smoothing=smoothing, reduction="none")


def focal(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-(1 - p)² log p of the true class's probability p: easy images count less (Lin et al. 2017, equation 4)."""
    log = outputs.log_softmax(1)
    return -(one_hot(labels, outputs.shape[1]) * (1 - log.exp()).square() * log).sum(1)


def squared_error(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean squared distance to targets +1 (the class) and -1 (all others) (LeCun et al. 1989)."""
    return (outputs - (one_hot(labels, outputs.shape[1]) * 2 - 1)).square().mean(1)


RUBBISH = 0.1
"""The penalty j of the "rubbish class" in the MAP loss; the paper gives no number."""


def maximum_a_posteriori(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """y_label + log(e^-j + sum_i e^-y_i), where y = -outputs are penalties (LeCun et al. 1998, equation 9).

    That is cross entropy with one more class of constant output -j, the images of no class.
    """
    rubbish = outputs.new_full((len(outputs), 1), -RUBBISH)
    targets = labels if labels.ndim == 1 else F.pad(labels, (0, 1))
    return F.cross_entropy(torch.cat([outputs, rubbish], 1), targets, reduction="none")


def margin(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Sum over the classes of T max(0, 0.9 - |v|)² + 0.5 (1 - T) max(0, |v| - 0.1)².

    `outputs` are the lengths |v| of the classes' capsules, T is 1 for the true class (Sabour et al. 2017, equation 4).
    """
    truth = one_hot(labels, outputs.shape[1])
    there, absent = (0.9 - outputs).clamp(min=0).square(), (outputs - 0.1).clamp(min=0).square()
    return (truth * there + 0.5 * (1 - truth) * absent).sum(1)


def binary_cross_entropy(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-log of the probability that each class is there, or is not: (n, classes); `smoothing` draws targets to 1/2."""
    return F.binary_cross_entropy_with_logits(outputs, labels + smoothing * (0.5 - labels), reduction="none")


EASY, MARGIN = 4.0, 0.05
"""The focusing of absent classes and the shift of their probability that the authors of the asymmetric loss use."""


def asymmetric(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-log p where the class is there, and -q⁴ log(1 - q) with q = max(p - 0.05, 0) where it is not: (n, classes).

    The many absent classes that are easy do not count (Ridnik et al. 2021, equation 7, with their constants).
    """
    p = outputs.sigmoid()
    shifted = (p - MARGIN).clamp(min=0)
    there, absent = F.logsigmoid(outputs), shifted.pow(EASY) * torch.log1p(-shifted)
    return -(labels * there + (1 - labels) * absent)


def _shares(outputs: Tensor) -> Tensor:
    """Return non-negative outputs, such as the lengths of capsules, made to sum to one."""
    lengths = outputs.clamp(min=1e-9)
    return lengths / lengths.sum(1, keepdim=True)


def _expectation(outputs: Tensor) -> Tensor:
    """Outputs trained on targets +-1 with squared error estimate 2p - 1; return p, made to sum to one."""
    p = ((outputs + 1) / 2).clamp(min=1e-6)
    return p / p.sum(1, keepdim=True)


@dataclass(frozen=True)
class Criterion:
    """A loss (outputs, labels, smoothing) -> (n,), and how outputs trained with it become probabilities.

    Labels are class numbers (n,), or the shares of the classes (n, classes) where images are mixed.
    several: an image may be of several classes, or of none; labels are (n, classes), and so are the losses.
    """

    loss: Callable[[Tensor, Tensor, float], Tensor]
    probabilities: Callable[[Tensor], Tensor]
    several: bool = False

    @property
    def logits(self) -> bool:
        """Whether the outputs are logits, which a temperature can calibrate."""
        return self.several or self.probabilities is _softmax

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return (n,): whether the answer is the label; with several classes, whether all of them are."""
        if self.several:
            return ((outputs > 0) == (labels > 0.5)).all(1)
        return outputs.argmax(1) == labels


def _softmax(outputs: Tensor) -> Tensor:
    return outputs.softmax(1)


CRITERIA: dict[str, Criterion] = {
    "cross_entropy": Criterion(cross_entropy, _softmax),
    "focal": Criterion(focal, _softmax),
    "squared_error": Criterion(squared_error, _expectation),
    "map": Criterion(maximum_a_posteriori, _softmax),
    "margin": Criterion(margin, _shares),
    "binary_cross_entropy": Criterion(binary_cross_entropy, Tensor.sigmoid, several=True),
    "asymmetric": Criterion(asymmetric, Tensor.sigmoid, several=True),
}

SMOOTHED = ("cross_entropy", "binary_cross_entropy")
"""The losses that know `smoothing`."""


def loss_for(loss: str, *, several: bool) -> str:
    """Return the loss for data whose images may be of `several` classes: cross entropy becomes binary.

    Raises SpecError for another loss that does not go with the data.
    """
    if several and loss == "cross_entropy":
        return "binary_cross_entropy"
    if CRITERIA[loss].several != several:
        fitting = ", ".join(name for name, criterion in CRITERIA.items() if criterion.several == several)
        held = "images of several classes" if several else "one class for each image"
        raise SpecError(f"recipe.loss: {loss} is not for {held}; choose {fitting}")
    return loss


def class_weights(labels: Tensor, classes: int, balance: float) -> Tensor | None:
    """Return the weight of each class in the loss (classes,): its share to the power of -balance; None for 0.

    labels: class numbers (n,): the mean weight of the images is 1. Or (n, classes) of 0 and 1: the weight of a class
        that is there beside one that is not.
    """
    if not balance:
        return None
    if labels.ndim == 2:
        there = labels.sum(0).clamp(min=1)
        return ((len(labels) - there).clamp(min=1) / there) ** balance
    counts = torch.bincount(labels, minlength=classes).float()
    weights = counts.clamp(min=1) ** -balance
    return weights * counts.sum() / (weights * counts).sum()
