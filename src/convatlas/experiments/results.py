"""The results of an experiment: the metrics of every trial, by arm and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.experiments.statistics import Effect, paired_effect


@dataclass(frozen=True)
class Row:
    """A trial that was measured. seconds: CPU time, which is no result."""

    arm: str
    seed: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    seconds: float = 0.0


@dataclass(frozen=True)
class Results:
    """The rows of an experiment in the order of its trials."""

    rows: tuple[Row, ...] = field(default=())

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, condition: Callable[[Row], bool] | None = None, **settings: Any) -> Results:
        """Return the rows that fulfil a condition, and have these settings."""
        return Results(
            tuple(
                row
                for row in self.rows
                if (condition is None or condition(row))
                and all(row.settings.get(name) == value for name, value in settings.items())
            )
        )

    def of(self, arm: str) -> Results:
        """Return the rows of an arm."""
        return self.where(lambda row: row.arm == arm)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms, in the order of their first trial."""
        return tuple(dict.fromkeys(row.arm for row in self.rows))

    def values(self, arm: str, metric: str) -> NDArray[np.float64]:
        """Return a metric of an arm by seed (seeds,). Raises KeyError if a row lacks it."""
        rows = sorted(self.of(arm), key=lambda row: row.seed)
        return np.array([row.metrics[metric] for row in rows])

    def mean(self, arm: str, metric: str) -> float:
        return float(self.values(arm, metric).mean())

    def spread(self, arm: str, metric: str) -> float:
        """Return the standard deviation over the seeds; 0 for one seed."""
        values = self.values(arm, metric)
        return float(values.std(ddof=1)) if np.ptp(values) else 0.0

    def compare(self, arm: str, baseline: str, metric: str) -> Effect:
        """Return how much larger a metric of an arm is than that of a baseline; trials are paired by seed."""
        pairs = {row.seed: row.metrics[metric] for row in self.of(baseline)}
        own = [(row.metrics[metric], pairs[row.seed]) for row in self.of(arm) if row.seed in pairs]
        return paired_effect(f"{arm} - {baseline}", metric, *np.array(own).reshape(-1, 2).T)
