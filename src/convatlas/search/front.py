"""The area that a Pareto front of accuracy and cost dominates, and by how much a candidate may enlarge it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from convatlas.core.pareto import pareto_front

Floats = NDArray[np.floating]


def hypervolume(accuracy: Floats, cost: Floats, *, least_accuracy: float, most_cost: float) -> float:
    """Return the area that the points dominate, within the limits; 0 if no point is within them."""
    inside = (accuracy > least_accuracy) & (cost < most_cost)
    accuracy, cost = accuracy[inside], cost[inside]
    front = pareto_front(accuracy, cost)
    widths = np.diff(np.append(cost[front], most_cost))
    return float(np.sum(widths * (accuracy[front] - least_accuracy)))


def expected_improvement(mean: Floats, std: Floats, best: float) -> Floats:
    """Return E[max(0, y - best)] for normal y, (n,) (Mockus 1975)."""
    u = (mean - best) / std
    improvement: Floats = std * (u * ndtr(u) + np.exp(-0.5 * u**2) / math.sqrt(2 * math.pi))
    return improvement


def expected_growth(
    mean: Floats, std: Floats, cost: Floats, front_accuracy: Floats, front_cost: Floats, *, least_accuracy: float,
    most_cost: float,
) -> Floats:  # fmt: skip
    """Return by how much each candidate is expected to enlarge the area that a front dominates, (n,).

    That is the expected hypervolume improvement (Emmerich et al. 2006) for a normal accuracy and a known cost: between
    two neighbors of the front, the width that the candidate covers times its expected improvement on the cheaper one.
    """
    growth = np.zeros_like(mean)
    lows = np.concatenate(([-np.inf], front_cost))
    highs = np.append(front_cost, most_cost)
    for low, high, best in zip(lows, highs, (least_accuracy, *front_accuracy), strict=True):
        width = np.clip(high - np.maximum(low, cost), 0, None)
        covers = width > 0
        growth[covers] += width[covers] * expected_improvement(mean[covers], std[covers], best)
    return growth
