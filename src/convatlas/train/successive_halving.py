"""Successive halving: train all trials for a short time, keep the better half for a longer time, and so on.

Karnin et al. 2013, Jamieson and Talwalkar 2016. Each round is a rung; all rungs take the same time in total.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from convatlas.errors import RunError, brief
from convatlas.system.progress import Progress


class Trial(Protocol):
    """One of the alternatives that are compared."""

    def train(self, seconds: float) -> None:
        """Continue the training for some seconds; raises RunError if it fails."""

    def evaluate(self) -> float:
        """Return the current score; higher is better. Raises RunError if there is none."""


@dataclass(frozen=True)
class TrialRecord:
    """scores: after each rung of the trial. error: why it failed; empty if it did not."""

    scores: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class HalvingResult:
    """The outcome of a successive halving.

    ranking: indices of the trials, best first; failed ones behind those of the same rung. records: by index.
    rung_seconds: training time of each remaining trial up to the end of each rung.
    """

    ranking: tuple[int, ...]
    records: tuple[TrialRecord, ...]
    rung_seconds: tuple[float, ...]


def successive_halving(trials: Sequence[Trial], seconds: float, *, progress: Progress | None = None) -> HalvingResult:
    """Train trials for `seconds` in total and rank them; a single trial is not trained.

    There are ceil(log2(n)) rungs. A trial whose training or evaluation raises RunError is eliminated.
    """
    records = [TrialRecord() for _ in trials]
    remaining = list(range(len(trials)))
    eliminated: list[int] = []  # best first
    rung_seconds: list[float] = []
    rungs = math.ceil(math.log2(len(trials))) if trials else 0
    for rung in range(rungs):
        share = seconds / rungs / len(remaining)
        rung_seconds.append(share + (rung_seconds[-1] if rung_seconds else 0.0))
        for done, index in enumerate(remaining, 1):
            records[index] = _run(trials[index], records[index], share)
            if progress:
                progress(f"successive halving, rung {rung + 1} of {rungs}", done, len(remaining))
        failed = [index for index in remaining if records[index].error]
        ranked = sorted(
            (index for index in remaining if not records[index].error), key=lambda index: -records[index].scores[-1]
        )
        half = math.ceil(len(remaining) / 2)
        eliminated = [*ranked[half:], *failed, *eliminated]
        remaining = ranked[:half]
        if len(remaining) < 2:
            break
    return HalvingResult((*remaining, *eliminated), tuple(records), tuple(rung_seconds))


def _run(trial: Trial, record: TrialRecord, seconds: float) -> TrialRecord:
    try:
        trial.train(seconds)
        return TrialRecord((*record.scores, trial.evaluate()))
    except RunError as error:
        return TrialRecord(record.scores, brief(error))
