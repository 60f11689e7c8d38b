"""Losses, and the probabilities of outputs that were trained with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return class numbers (n,) as class shares (n, classes); class shares are returned as they are."""
    return labels if labels.ndim == 2 else F.one_hot(labels, classes).float()


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


RUBBISH_PENALTY = 0.1
"""The penalty j of the "rubbish class" in the MAP loss; the paper gives no number."""


def maximum_a_posteriori(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """y_label + log(e^-j + sum_i e^-y_i), where y = -outputs are penalties (LeCun et al. 1998, equation 9).

    That is cross entropy with one more class of constant output -j, the images of no class.
    """
    rubbish = outputs.new_full((len(outputs), 1), -RUBBISH_PENALTY)
    targets = labels if labels.ndim == 1 else F.pad(labels, (0, 1))
    return F.cross_entropy(torch.cat([outputs, rubbish], 1), targets, reduction="none")


def margin(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Sum over the classes of T max(0, 0.9 - |v|)² + 0.5 (1 - T) max(0, |v| - 0.1)².

    `outputs` are the lengths |v| of the classes' capsules, T is 1 for the true class (Sabour et al. 2017, equation 4).
    """
    truth = one_hot(labels, outputs.shape[1])
    present, absent = (0.9 - outputs).clamp(min=0).square(), (outputs - 0.1).clamp(min=0).square()
    return (truth * present + 0.5 * (1 - truth) * absent).sum(1)


def binary_cross_entropy(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-log of the probability that each class is present, or absent: (n, classes); `smoothing` moves targets to 1/2."""
    return F.binary_cross_entropy_with_logits(outputs, labels + smoothing * (0.5 - labels), reduction="none")


EASY, MARGIN = 4.0, 0.05
"""Focusing exponent of absent classes and shift of their probability, as in the authors' code."""


def asymmetric(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-log p for a present class, -q⁴ log(1 - q) with q = max(p - 0.05, 0) for an absent one: (n, classes).

    Easy absent classes hardly contribute (Ridnik et al. 2021, equation 7, with their constants).
    """
    p = outputs.sigmoid()
    shifted = (p - MARGIN).clamp(min=0)
    present, absent = F.logsigmoid(outputs), shifted.pow(EASY) * torch.log1p(-shifted)
    return -(labels * present + (1 - labels) * absent)


def _normalize(outputs: Tensor) -> Tensor:
    """Return non-negative outputs, such as the lengths of capsules, scaled to a sum of one."""
    lengths = outputs.clamp(min=1e-9)
    return lengths / lengths.sum(1, keepdim=True)


def _expectation(outputs: Tensor) -> Tensor:
    """Outputs trained on targets +-1 with squared error estimate 2p - 1; return p, scaled to a sum of one."""
    p = ((outputs + 1) / 2).clamp(min=1e-6)
    return p / p.sum(1, keepdim=True)


@dataclass(frozen=True)
class Loss:
    """A loss and the probabilities of outputs trained with it.

    function: (outputs, labels, label_smoothing) -> (n,), or (n, classes) for multi-label classification.
    logits: whether outputs are logits, which a temperature calibrates. smoothing: whether it supports label smoothing.
    """

    function: Callable[[Tensor, Tensor, float], Tensor]
    probabilities: Callable[[Tensor], Tensor]
    logits: bool = True
    smoothing: bool = False


def _softmax(outputs: Tensor) -> Tensor:
    return outputs.softmax(1)


SINGLE_LABEL: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, _softmax, smoothing=True),
    "focal": Loss(focal, _softmax),
    "squared_error": Loss(squared_error, _expectation, logits=False),
    "lecun_map": Loss(maximum_a_posteriori, _softmax),
    "margin": Loss(margin, _normalize, logits=False),
}
"""Losses of single-label classification; labels are class indices (n,), or shares (n, classes) of mixed images."""

MULTILABEL: dict[str, Loss] = {
    "binary_cross_entropy": Loss(binary_cross_entropy, Tensor.sigmoid, smoothing=True),
    "asymmetric": Loss(asymmetric, Tensor.sigmoid),
}
"""Losses of multi-label classification; labels and losses are (n, classes)."""

SMOOTHED = tuple(name for name, loss in {**SINGLE_LABEL, **MULTILABEL}.items() if loss.smoothing)
"""The losses that support label smoothing."""


def mean_loss(
    loss: Loss, outputs: Tensor, labels: Tensor, label_smoothing: float, class_weights: Tensor | None
) -> Tensor:
    """Return the mean loss of a batch; losses of present classes are multiplied by the weights of the classes."""
    losses = loss.function(outputs.float(), labels, label_smoothing)
    if class_weights is not None and losses.ndim == 2:
        losses = losses * torch.lerp(torch.ones_like(labels), class_weights, labels)
    elif class_weights is not None:
        losses = losses * (class_weights[labels] if labels.ndim == 1 else labels @ class_weights)
    return losses.mean()


def class_weights(labels: Tensor, classes: int, power: float) -> Tensor | None:
    """Return the weight of each class in the loss (classes,): its frequency to the power of -power; None for 0.

    labels: class numbers (n,): the mean weight over the images is 1. Or (n, classes) of 0 and 1: the weight of a
        present class relative to an absent one.
    """
    if not power:
        return None
    if labels.ndim == 2:
        present = labels.sum(0).clamp(min=1)
        return ((len(labels) - present).clamp(min=1) / present) ** power
    counts = torch.bincount(labels, minlength=classes).float()
    weights = counts.clamp(min=1) ** -power
    return weights * counts.sum() / (weights * counts).sum()
