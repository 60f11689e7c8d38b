"""Metrics of probabilities (n, classes) and true labels, (n,) or (n, classes)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def top_k_accuracy(probabilities: Tensor, labels: Tensor, count: int) -> float:
    """Return the fraction of images whose true class is among the `count` most probable ones."""
    first = probabilities.topk(min(count, probabilities.shape[1])).indices
    return float((first == labels[:, None]).any(1).float().mean())


def f1(confusion: Tensor) -> Tensor:
    """Return the F1 score of each class from counts (true, predicted); nan for a class that does not occur."""
    correct, true, predicted = confusion.diag().double(), confusion.sum(1).double(), confusion.sum(0).double()
    return 2 * correct / (true + predicted)


def recall(confusion: Tensor) -> Tensor:
    """Return the fraction of each class's images that are predicted correctly; nan for a class without images."""
    return confusion.diag().double() / confusion.sum(1).double()


def precision(confusion: Tensor) -> Tensor:
    """Return the fraction of each class's predictions that are correct; nan for a class that is never predicted."""
    return confusion.diag().double() / confusion.sum(0).double()


BINS = 15


def reliability_bins(confidence: Tensor, correct: Tensor) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, count) of each of 15 equal bins of confidence that is not empty.

    confidence: (predictions,), their probabilities; correct: (predictions,), whether they are correct.
    """
    correct = correct.double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    rows = []
    for number in bins.unique().tolist():
        inside = bins == number
        rows.append((float(confidence[inside].mean()), float(correct[inside].mean()), int(inside.sum())))
    return rows


def expected_calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Return the expected calibration error: the mean of |confidence - accuracy| (Guo et al. 2017)."""
    return sum(
        count * abs(confident - accurate) for confident, accurate, count in reliability_bins(confidence, correct)
    ) / len(correct)


def fit_temperature(outputs: Tensor, labels: Tensor) -> float:
    """Return the temperature in [0.25, 10] that minimizes the cross entropy of logits (Guo et al. 2017, section 4.2).

    outputs: (n, classes), or (n, clips, classes) for videos, whose probabilities are averaged over the clips.
    For labels (n, classes), the binary cross entropy of sigmoids. The bounds matter for few images that are all
    predicted correctly: their best temperature would be zero.
    """
    from scipy.optimize import minimize_scalar

    logits = outputs.double()

    def loss(log: float) -> float:
        scaled = logits / np.exp(log)
        if scaled.ndim == 3:
            return _loss_of_means(scaled, labels)
        if labels.ndim == 2:
            return float(F.binary_cross_entropy_with_logits(scaled, labels.double()))
        return float(F.cross_entropy(scaled, labels))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.25), np.log(10)), method="bounded").x))


def _loss_of_means(logits: Tensor, labels: Tensor) -> float:
    """Return the cross entropy of the mean probabilities over clips; logits: (n, clips, classes)."""
    if labels.ndim == 2:
        return float(F.binary_cross_entropy(logits.sigmoid().mean(1), labels.double()))
    return float(F.nll_loss(logits.softmax(-1).mean(1).clamp(min=1e-300).log(), labels))


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of an accuracy (Wilson 1927), which has a width without errors, too."""
    z, share = 1.959964, correct / count
    center, half = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def _precisions(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the average precision of one class in each sample (samples,), which has image i weights[sample, i] times.

    The mean, over the images of the class, of the precision among all that are at least as probable.
    """
    ordered, order = probabilities.sort(descending=True)
    counted = weights[:, order]
    hits = counted * labels[order]
    # equally probable images have one rank: all get the sums at the last of them
    last = torch.searchsorted(-ordered.contiguous(), -ordered.contiguous(), right=True) - 1
    precision = hits.cumsum(1)[:, last] / counted.cumsum(1)[:, last].clamp(min=1)
    return (precision * hits).sum(1) / hits.sum(1)


def average_precisions(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the average precision of each class, as in scikit-learn; nan for a class without images."""
    once = torch.ones(1, len(labels), dtype=torch.float64)
    columns = zip(probabilities.unbind(1), labels.double().unbind(1), strict=True)
    return torch.cat([_precisions(p, y, once) for p, y in columns])


def map_interval(probabilities: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean average precision: 200 samples of the images with replacement."""
    count = len(labels)
    weights = torch.from_numpy(np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), 200)).double()
    columns = zip(probabilities.unbind(1), labels.double().unbind(1), strict=True)
    means = torch.nanmean(torch.stack([_precisions(p, y, weights) for p, y in columns]), 0)
    low, high = np.nanquantile(means.numpy(), (0.025, 0.975))
    return float(low), float(high)


def fit_thresholds(probabilities: Tensor, labels: Tensor) -> list[float]:
    """Return for each class the probability threshold with the best F1 score; 1/2 for a class without images.

    A threshold lies half way between the two neighboring probabilities, so that rounding does not change predictions.
    """
    thresholds = []
    for p, y in zip(probabilities.double().unbind(1), labels.double().unbind(1), strict=True):
        ordered, order = p.sort(descending=True)
        predicted = torch.arange(1, len(p) + 1)
        f1 = 2 * y[order].cumsum(0) / (predicted + y.sum())
        below = torch.cat([ordered[1:], ordered.new_zeros(1)])
        f1 = f1.where(below < ordered, -1)  # no threshold separates equally probable images
        best = int(f1.argmax())
        thresholds.append(float((ordered[best] + below[best]) / 2) if y.any() else 0.5)
    return thresholds


def upper_bound(share: float, count: int) -> float:
    """Return a share plus two standard deviations of its estimate from `count` images."""
    return share + 2 * math.sqrt(share * (1 - share) / count)
