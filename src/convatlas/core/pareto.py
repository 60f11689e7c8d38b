"""The Pareto front of accuracy (larger is better) and cost (smaller is better)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pareto_front(accuracy: ArrayLike, cost: ArrayLike) -> NDArray[np.int64]:
    """Return the indices of the points that no other point dominates, the cheapest first; of equal points the first."""
    accuracy, cost = np.asarray(accuracy, dtype=float), np.asarray(cost, dtype=float)
    order = np.lexsort((-accuracy, cost))
    before = np.concatenate(([-np.inf], np.maximum.accumulate(accuracy[order])[:-1]))
    return order[accuracy[order] > before]
