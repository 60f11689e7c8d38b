"""A study: the candidates that a search evaluated, and the best of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convatlas.core.pareto import pareto_front
from convatlas.core.record import to_plain
from convatlas.core.table import Table
from convatlas.errors import SearchError, nearest

ACCURACY, LATENCY = "accuracy", "latency"
"""Metrics of a search: accuracy is maximized, latency, if it is there, minimized."""

SHOWN = 20
"""Most rows of the table of a study."""


@dataclass(frozen=True)
class Trial:
    """One evaluation. number: from 0 on. fidelity: 1 is the truth. error: why it has no metrics, or empty."""

    number: int
    candidate: Mapping[str, Any]
    fidelity: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def accuracy(self) -> float:
        return self.metrics[ACCURACY]

    @property
    def latency(self) -> float:
        """The latency; 0 if the search has none."""
        return self.metrics.get(LATENCY, 0.0)

    @property
    def is_complete(self) -> bool:
        """Whether it was evaluated without an error, at full fidelity."""
        return not self.error and self.fidelity == 1

    def to_plain(self) -> dict[str, Any]:
        """Return the trial as dicts, numbers and strings."""
        return {
            "number": self.number, "candidate": to_plain(self.candidate), "fidelity": self.fidelity,
            "metrics": dict(self.metrics), "error": self.error,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Study:
    """The trials of a search, in order."""

    trials: tuple[Trial, ...]

    @property
    def complete(self) -> tuple[Trial, ...]:
        """Trials without an error, at full fidelity."""
        return tuple(trial for trial in self.trials if trial.is_complete)

    @property
    def front(self) -> tuple[Trial, ...]:
        """The trials that no other one beats in both accuracy and latency, the fastest first."""
        trials = self.complete
        accuracy, latency = (np.array([getattr(trial, name) for trial in trials]) for name in (ACCURACY, LATENCY))
        return tuple(trials[i] for i in pareto_front(accuracy, latency))

    def best(self, **limits: float) -> Trial:
        """Return the most accurate trial within limits, such as `max_latency=8.0`, `max_params=2e6`: of any metric.

        Raises SearchError for a metric that is not there, and if no trial is within the limits.
        """
        trials = self.complete
        if not trials:
            raise SearchError("study: must have a trial of full fidelity without an error")
        known = [f"max_{name}" for name in self._metrics]
        for name, limit in limits.items():
            if name not in known:
                raise SearchError(f"best: no limit {name!r}{nearest(name, known)}; limits are {', '.join(known)}")
            if not isinstance(limit, int | float) or math.isnan(limit):
                raise SearchError(f"best: {name} must be a number, got {limit!r}")
        inside = [
            trial
            for trial in trials
            if all(trial.metrics.get(name.removeprefix("max_"), math.inf) <= limit for name, limit in limits.items())
        ]
        if not inside:
            least = {
                name: min(trial.metrics.get(name.removeprefix("max_"), math.inf) for trial in trials) for name in limits
            }
            told = ", ".join(f"{name} {value:g}" for name, value in least.items())
            raise SearchError(f"best: no trial is within the limits; the smallest are {told}")
        return max(inside, key=lambda trial: trial.accuracy)

    @property
    def _metrics(self) -> list[str]:
        """The metrics that any complete trial has."""
        return list(dict.fromkeys(name for trial in self.complete for name in trial.metrics))

    def to_json(self) -> str:
        """Return all trials as JSON; an option that JSON does not know becomes text."""
        return json.dumps([trial.to_plain() for trial in self.trials], indent=1, default=str)

    def __repr__(self) -> str:
        failed = sum(bool(trial.error) for trial in self.trials)
        note = f", {failed} failed" if failed else ""
        if not self.complete:
            return f"{len(self.trials)} trials{note}"
        metrics, names = self._metrics, list(self.complete[0].candidate)
        rows = tuple(
            (str(trial.number), *(f"{trial.metrics[name]:.4g}" if name in trial.metrics else "-" for name in metrics),
             *(str(trial.candidate[name]) for name in names))
            for trial in self.front[:SHOWN]
        )  # fmt: skip
        table = Table(("trial", *metrics, *names), rows, right=frozenset(range(1 + len(metrics))))
        return f"{len(self.trials)} trials{note}; Pareto front:\n{table!r}"
