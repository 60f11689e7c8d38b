"""Search over anything: `explore` evaluates the candidates of a space, those that are worth it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from convatlas.errors import SearchError, brief
from convatlas.search.explorer import FIDELITIES, Explorer, checked_fidelities
from convatlas.search.space import Candidate, Space, space_of
from convatlas.search.study import ACCURACY, LATENCY, Study, Trial
from convatlas.system.progress import Progress, progress_callback

Evaluate = Callable[[Any, float], Mapping[str, float]]
"""(candidate, fidelity) -> metrics. candidate: a dict, or the spec of a space of specs. fidelity: 0 < f <= 1, 1 is the
truth."""

ROUNDING = 1e-6
"""By how much the sum of fidelities may be above the budget."""

MAX_FAILURES = 5
"""Number of errors after which a search without any result of this fidelity stops."""

LEAST_BUDGET = 3
"""Smallest budget in which candidates are evaluated with a lower fidelity first."""


def explore(
    space: Space | Any, evaluate: Evaluate, *, budget: float = 300, seed: int = 0,
    fidelities: Sequence[float] = FIDELITIES, on_trial: Callable[[Trial], None] = lambda trial: None,
    progress: Progress | bool = True,
) -> Study:  # fmt: skip
    """Search the candidates with the best accuracy at every latency.

    space: a `Space`, or a spec with `choose(...)` in its cells.
    evaluate: returns {"accuracy": ..., "latency": ...} of a candidate, in any unit, and further metrics if there are
        any; without a latency, only accuracy counts. An exception becomes the error of the trial, and so do metrics
        that are no numbers, such as the accuracy of a training that diverged.
    budget: number of evaluations; one of a fidelity f counts f. Below 3, all are of the full fidelity.
    fidelities: each candidate is evaluated with the lowest one at first, and with the next one if it is still worth
        it; (1,) for the full one only. Where the fidelity does not matter, this is noticed after a few candidates.
    on_trial: is called with each trial, as soon as it is there.
    progress: a callback, True for a progress bar in terminals and notebooks, or False.

    A candidate is evaluated once with a fidelity; the search ends early when there is nothing left. Equal seeds give
    equal trials.
    Raises SearchError if the first evaluations of a fidelity all fail, and for a space without allowed candidates.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.number) or not 1 <= budget < math.inf:
        raise SearchError(f"explore: budget must be a number of evaluations >= 1, got {budget!r}")
    space, budget = space_of(space), float(budget)
    levels = checked_fidelities(fidelities)
    explorer = Explorer(space, seed=seed, budget=budget, fidelities=levels if budget >= LEAST_BUDGET else (1.0,))
    trials, spent = list[Trial](), 0.0
    with progress_callback(progress) as report:
        while (asked := explorer.ask()) is not None and spent + asked[1] <= budget + ROUNDING:
            before = next((each.metrics for each in trials if not each.error), None)
            trials.append(trial := _evaluate(space, evaluate, *asked, len(trials), before))
            spent += trial.fidelity
            on_trial(trial)
            if trial.error:
                explorer.drop(asked[0])
                same = [each for each in trials if each.fidelity == trial.fidelity]
                if len(same) == MAX_FAILURES and all(each.error for each in same):
                    raise SearchError(
                        f"explore: the first {MAX_FAILURES} evaluations of fidelity {trial.fidelity:g} failed: "
                        f"{trial.error}"
                    )
            else:
                explorer.tell(
                    asked[0], accuracy=trial.accuracy, latency=trial.latency or 1.0, fidelity=trial.fidelity
                )  # fmt: skip
            report("search", round(spent), math.ceil(budget))
    if not trials:
        raise SearchError("explore: no candidate of the space was found that is allowed")
    return Study(tuple(trials))


def _evaluate(
    space: Space, evaluate: Evaluate, candidate: Candidate, fidelity: float, number: int,
    before: Mapping[str, float] | None,
) -> Trial:  # fmt: skip
    """Return the trial of a candidate. before: metrics of an earlier one."""
    try:
        metrics = _checked(evaluate(space.value(candidate), fidelity))
        if before is not None and (LATENCY in metrics) != (LATENCY in before):
            raise SearchError(f"{LATENCY} must be among the metrics of all evaluations, or of none")
    except SearchError as error:
        return Trial(number, candidate, fidelity, error=brief(error))
    except Exception as error:
        return Trial(number, candidate, fidelity, error=f"{type(error).__name__}: {brief(error)}")
    return Trial(number, candidate, fidelity, metrics)


def _checked(metrics: Any) -> dict[str, float]:
    """Return metrics as numbers; raises SearchError for others."""
    if not isinstance(metrics, Mapping) or ACCURACY not in metrics:
        raise SearchError(f"evaluate must return a mapping with {ACCURACY!r}, got {metrics!r}")
    numbers = {}
    for name, value in metrics.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise SearchError(f"{name} must be a number, got {value!r}") from error
        if not math.isfinite(numbers[name]):
            raise SearchError(f"{name} must be finite, got {value!r}")
    if numbers.get(LATENCY, 1.0) <= 0:
        raise SearchError(f"{LATENCY} must be > 0, got {numbers[LATENCY]:g}")
    return numbers
