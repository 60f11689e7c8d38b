"""What is measured of probabilities (n, classes) beside true labels, (n,) or (n, classes)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def top(probabilities: Tensor, labels: Tensor, count: int) -> float:
    """Return the share of images whose true class is among the `count` most probable ones."""
    first = probabilities.topk(min(count, probabilities.shape[1])).indices
    return float((first == labels[:, None]).any(1).float().mean())


def f1(confusion: Tensor) -> Tensor:
    """Return the F1 score of each class, from the counts (true class, predicted class); nan where it does not occur."""
    right, true, said = confusion.diag().double(), confusion.sum(1).double(), confusion.sum(0).double()
    return 2 * right / (true + said)


def recall(confusion: Tensor) -> Tensor:
    """Return the share of each class's images that are right; nan where it has none."""
    return confusion.diag().double() / confusion.sum(1).double()


BINS = 15


def reliability(confidence: Tensor, right: Tensor) -> list[tuple[float, float, int]]:
    """Return (mean confidence, share that is right, answers) of each of 15 equal bins of confidence that has answers.

    confidence: (answers,), the probability given to each; right: (answers,), whether it was so.
    """
    right = right.double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    rows = []
    for number in bins.unique().tolist():
        inside = bins == number
        rows.append((float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum())))
    return rows


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the expected calibration error: |confidence - accuracy|, the mean over all answers (Guo et al. 2017)."""
    return sum(count * abs(said - so) for said, so, count in reliability(confidence, right)) / len(right)


def temperature(outputs: Tensor, labels: Tensor) -> float:
    """Return what to divide logits by, so that their softmax is most likely to be right (Guo et al. 2017, section 4.2).

    The same for sigmoids, where labels are (n, classes). Between 0.25 and 10: a few images that are all right would
    ask for zero.
    """
    from scipy.optimize import minimize_scalar

    logits = outputs.double()

    def loss(log: float) -> float:
        scaled = logits / np.exp(log)
        if labels.ndim == 2:
            return float(F.binary_cross_entropy_with_logits(scaled, labels.double()))
        return float(F.cross_entropy(scaled, labels))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.25), np.log(10)), method="bounded").x))


def interval(right: int, count: int, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a share: images drawn again, with replacement, so many times."""
    shares = np.random.default_rng(seed).binomial(count, right / count, draws) / count
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)


def mean_of(values: Tensor) -> float:
    """Return the mean of the values that are numbers."""
    return float(torch.nanmean(values))


def _precisions(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the average precision of one class (draws,), where image i counts weights[draw, i] times.

    The mean, over the images of the class, of the precision among all that are at least as probable.
    """
    ordered, order = probabilities.sort(descending=True)
    counted = weights[:, order]
    hits = counted * labels[order]
    # equally probable images come together: each sees the last one's sums
    last = torch.searchsorted(-ordered.contiguous(), -ordered.contiguous(), right=True) - 1
    precision = hits.cumsum(1)[:, last] / counted.cumsum(1)[:, last].clamp(min=1)
    return (precision * hits).sum(1) / hits.sum(1)


def average_precisions(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the average precision of each class, as scikit-learn has it; nan where no image is of the class."""
    once = torch.ones(1, len(labels), dtype=torch.float64)
    columns = zip(probabilities.unbind(1), labels.double().unbind(1), strict=True)
    return torch.cat([_precisions(p, y, once) for p, y in columns])


def interval_of_map(probabilities: Tensor, labels: Tensor, *, draws: int = 200, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean average precision: images drawn again, with replacement."""
    random, count = np.random.default_rng(seed), len(labels)
    weights = torch.from_numpy(random.multinomial(count, np.full(count, 1 / count), draws)).double()
    columns = zip(probabilities.unbind(1), labels.double().unbind(1), strict=True)
    means = torch.nanmean(torch.stack([_precisions(p, y, weights) for p, y in columns]), 0)
    low, high = np.nanquantile(means.numpy(), (0.025, 0.975))
    return float(low), float(high)


def best_thresholds(probabilities: Tensor, labels: Tensor) -> list[float]:
    """Return for each class the probability from which on saying so gives the best F1 score.

    1/2 where no image is of the class. Half way between the two probabilities on both sides, so that a rounding
    decides nothing.
    """
    found = []
    for p, y in zip(probabilities.double().unbind(1), labels.double().unbind(1), strict=True):
        ordered, order = p.sort(descending=True)
        said = torch.arange(1, len(p) + 1)
        f1 = 2 * y[order].cumsum(0) / (said + y.sum())
        below = torch.cat([ordered[1:], ordered.new_zeros(1)])
        f1 = f1.where(below < ordered, -1)  # equally probable images cannot be told apart
        best = int(f1.argmax())
        found.append(float((ordered[best] + below[best]) / 2) if y.any() else 0.5)
    return found
