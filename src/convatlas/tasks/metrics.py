"""What is measured of probabilities (n, classes) beside true labels (n,)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def top(probabilities: Tensor, labels: Tensor, count: int) -> float:
    """Return the share of pictures whose true class is among the `count` most probable ones."""
    first = probabilities.topk(min(count, probabilities.shape[1])).indices
    return float((first == labels[:, None]).any(1).float().mean())


def f1(confusion: Tensor) -> Tensor:
    """Return the F1 score of each class, from the counts (true class, predicted class); nan where it does not occur."""
    right, true, said = confusion.diag().double(), confusion.sum(1).double(), confusion.sum(0).double()
    return 2 * right / (true + said)


def recall(confusion: Tensor) -> Tensor:
    """Return the share of each class's pictures that are right; nan where it has none."""
    return confusion.diag().double() / confusion.sum(1).double()


BINS = 15


def reliability(probabilities: Tensor, labels: Tensor) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, pictures) of each of 15 equal bins of confidence that has pictures."""
    confidence, predicted = probabilities.max(1)
    right = (predicted == labels).double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    rows = []
    for number in bins.unique().tolist():
        inside = bins == number
        rows.append((float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum())))
    return rows


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error: |confidence - accuracy|, the mean over all pictures (Guo et al. 2017)."""
    rows = reliability(probabilities, labels)
    return sum(count * abs(confidence - accuracy) for confidence, accuracy, count in rows) / len(labels)


def temperature(outputs: Tensor, labels: Tensor) -> float:
    """Return what to divide logits by, so that their softmax is most likely to be right (Guo et al. 2017, section 4.2).

    Between 0.25 and 10: a few pictures that are all right would ask for zero.
    """
    from scipy.optimize import minimize_scalar

    logits, chosen = outputs.double(), labels[:, None]

    def loss(log: float) -> float:
        return -float((logits / np.exp(log)).log_softmax(1).gather(1, chosen).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.25), np.log(10)), method="bounded").x))


def interval(right: int, count: int, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a share: pictures drawn again, with replacement, so many times."""
    shares = np.random.default_rng(seed).binomial(count, right / count, draws) / count
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)


def mean_of(values: Tensor) -> float:
    """Return the mean of the values that are numbers."""
    return float(torch.nanmean(values))
