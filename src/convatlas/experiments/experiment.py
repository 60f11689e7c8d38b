"""What an experiment is: a claim, trials with seeds, a measurement, and a criterion that was written before the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from convatlas.experiments.materials import Materials
from convatlas.experiments.results import Results
from convatlas.experiments.statistics import Effect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Size = Literal["smoke", "default", "full"]
"""smoke: seconds, to see that it runs; its verdict means nothing. default: minutes on 2 cores. full: the real one."""

VERDICTS = ("confirmed", "partly confirmed", "not confirmed")


@dataclass(frozen=True)
class Trial:
    """One training or measurement. arm: what is compared. settings: further plain values that `measure` needs."""

    arm: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The trial as one line of JSON; equal trials have equal keys."""
        return json.dumps([self.arm, self.seed, dict(self.settings)], sort_keys=True)


Measure = Callable[[Trial, Materials], dict[str, float]]
"""Runs one trial in its own process, on one thread; a function of the trial alone, so the same seed gives the same
numbers; torch's generator starts with the seed of the trial. Returns metrics by name."""


@dataclass(frozen=True)
class Verdict:
    """word: one of `VERDICTS`. reason: one or two sentences with the numbers. effects: what it rests on."""

    word: str
    reason: str
    effects: tuple[Effect, ...] = ()

    def __post_init__(self) -> None:
        if self.word not in VERDICTS:
            raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}, got {self.word!r}")


@dataclass(frozen=True)
class Experiment:
    """A statement of textbooks that can be run.

    claim: the statement, one sentence. source: where it is made (paper, figure or table).
    protocol: what is trained on what, and what is equal between the arms; Markdown.
    criterion: what counts as confirmed; written before the first run, with the numbers that decide.
    would_change: what would change the verdict, for instance more data.
    needs: data sets and files of weights by name; see `Materials`.
    trials: returns the trials of a size. It is called again with the results when all of them are measured, until it
        returns no new one: so a rate can be tuned first.
    measure: runs one trial. metrics: those of the table, name -> heading with unit.
    judge, draw: the verdict and the figure of the results.
    """

    name: str
    title: str
    claim: str
    source: str
    protocol: str
    criterion: str
    would_change: str
    needs: tuple[str, ...]
    trials: Callable[[Size, Results], Iterable[Trial]]
    measure: Measure
    metrics: Mapping[str, str]
    judge: Callable[[Results], Verdict]
    draw: Callable[[Results], Figure]
