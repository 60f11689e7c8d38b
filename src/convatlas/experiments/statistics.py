"""Statistics of few seeds: paired differences with intervals and effect sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Effect:
    """A mean difference over seeds.

    low, high: 95 % interval of Student's t distribution; infinite for one seed. size: Hedges' g of paired differences,
    the mean difference over its standard deviation with the correction for few seeds; infinite for equal differences,
    0 if all are 0. seeds: number of pairs.
    """

    name: str
    metric: str
    difference: float
    low: float
    high: float
    size: float
    seeds: int

    @property
    def is_positive(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0

    @property
    def is_negative(self) -> bool:
        """Whether the interval lies below 0."""
        return self.high < 0

    def text(self) -> str:
        interval = f"95 % interval {self.low:+.3g} to {self.high:+.3g}" if math.isfinite(self.low) else "one seed"
        return f"{self.name}: {self.metric} {self.difference:+.3g} ({interval}, g = {self.size:.2g}, n = {self.seeds})"


def paired_effect(name: str, metric: str, values: ArrayLike, baseline: ArrayLike) -> Effect:
    """Return the effect of values (n,) against a baseline (n,), paired by position."""
    ours, theirs = np.asarray(values, float), np.asarray(baseline, float)
    differences = ours - theirs
    number = len(differences)
    if number == 0:
        raise ValueError(f"{name}: no pair of {metric}")
    mean = float(differences.mean())
    if number == 1:
        return Effect(name, metric, mean, -math.inf, math.inf, 0.0, 1)
    deviation = float(differences.std(ddof=1))
    if deviation <= 1e-12 * np.abs([ours, theirs]).max():  # equal but for rounding
        deviation = 0.0
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, number - 1)) * deviation / math.sqrt(number)
    correction = 1 - 3 / (4 * (number - 1) - 1) if number > 2 else 1.0
    size = correction * mean / deviation if deviation else math.copysign(math.inf, mean) if mean else 0.0
    return Effect(name, metric, mean, mean - half, mean + half, size, number)
