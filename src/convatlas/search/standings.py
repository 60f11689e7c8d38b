"""The standings of a search: its finalists, its winner, and the Pareto front, from the evaluations in the store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convatlas.core.pareto import pareto_front
from convatlas.search.contestant import Contestant
from convatlas.search.store import SAME_AS, Evaluation

FINAL_MARK = "-final-"
"""In the name of a finalist, before the time of the search."""

PROMOTED, LEAST_PROMOTED = 3, 2
"""One of so many contestants continues at the next fidelity, and at least so many: the order may change later."""

MORE_MACS = 1.5
"""How many times as many MACs each further candidate among the finalists has, if there is one."""

MAX_EXPONENT = 0.5
"""Largest exponent of the power law of errors by time."""


def final_name(name: str, time_s: float) -> str:
    """Return the name under which a contestant is a finalist in a search of so many seconds."""
    return f"{name}{FINAL_MARK}{time_s:g}s"


def network_name(name: str) -> str:
    """Return the name of a contestant that may be a finalist."""
    return name.partition(FINAL_MARK)[0]


def is_final(evaluation: Evaluation, time_s: float | None = None) -> bool:
    """Return whether an evaluation is the training of a finalist, in a search of so many seconds or in any."""
    name = str(evaluation.plain["name"])
    return FINAL_MARK in name if time_s is None else name == final_name(network_name(name), time_s)


def promoted(number: int) -> int:
    """Return how many of so many contestants continue at the next fidelity."""
    return min(number, max(LEAST_PROMOTED, math.ceil(number / PROMOTED)))


@dataclass(frozen=True)
class Standing:
    """A contestant, with its evaluation at the highest fidelity that it reached.

    accuracy: on val. reward: what is compared: the accuracy, unless a soft objective weighs it with the latency.
    latency: seconds for one image. number: of its first trial. curve: fidelity and accuracy of all its evaluations, the
    highest fidelity last.
    """

    contestant: Contestant
    fidelity: float
    accuracy: float
    reward: float
    latency: float
    parameters: int
    macs: int
    number: int
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def name(self) -> str:
        return network_name(self.contestant.name)

    @property
    def is_candidate(self) -> bool:
        return self.contestant.kind == "candidate"

    def expected(self, fidelity: float) -> float:
        """Return the reward to expect at a higher fidelity, if the error falls by a power law of the time.

        The law is fitted to the logarithms of all evaluations by least squares, weighted by their times: what came late
        tells more of the end. Its exponent is at most `MAX_EXPONENT`.
        """
        if len(self.curve) < 2 or self.accuracy <= 0 or max(accuracy for _, accuracy in self.curve) >= 1:
            return self.reward
        weights, accuracies = np.array(self.curve).T
        times, errors = np.log(weights), np.log(1 - accuracies)
        slope = np.clip(np.polyfit(times, errors, 1, w=np.sqrt(weights))[0], -MAX_EXPONENT, 0.0)
        level = np.average(errors - slope * times, weights=weights)
        expected = math.exp(min(errors[-1], level + slope * math.log(fidelity)))
        return (1 - expected) * self.reward / self.accuracy


def standings(evaluations: Sequence[Evaluation], *, time_s: float | None = None) -> list[Standing]:
    """Return all contestants with results, the best first: by fidelity, then by accuracy; of equal ones baselines.

    time_s: the finalists of a search of so many seconds instead. One whose training failed later, because it diverged
    for instance, is out.
    """
    failed = {each.plain["name"] for each in evaluations if has_failed(each)}
    groups: dict[str, list[Evaluation]] = {}
    searched: dict[str, list[Evaluation]] = {}
    for each in evaluations:
        name = str(each.plain["name"])
        if each.state != "complete" or each.plain["kind"] == "supernet" or name in failed:
            continue
        if not is_final(each):
            searched.setdefault(name, []).append(each)
        elif time_s is not None and is_final(each, time_s):
            groups.setdefault(name, []).append(each)
    if time_s is None:
        groups = searched
    found = [_standing(group, searched.get(network_name(name), [])) for name, group in groups.items()]
    return sorted(found, key=lambda each: (-each.fidelity, -each.reward, each.is_candidate, each.number))


def _standing(group: Sequence[Evaluation], searched: Sequence[Evaluation]) -> Standing:
    """Return the standing of a contestant from its evaluations. searched: those of its network in the search."""
    last = max(group, key=lambda each: each.fidelity)
    accuracies = {each.fidelity: each.metrics["accuracy"] for each in (*searched, *group)}
    metrics = last.metrics
    return Standing(
        Contestant.read(last.plain), last.fidelity, metrics["accuracy"], metrics.get("reward", metrics["accuracy"]),
        min(each.metrics["latency"] for each in group), int(metrics["parameters"]), int(metrics["macs"]),
        min(each.number for each in group),
        tuple((fidelity, accuracies[fidelity]) for fidelity in sorted(accuracies) if fidelity <= last.fidelity),
    )  # fmt: skip


def has_failed(evaluation: Evaluation) -> bool:
    """Return whether an evaluation failed, and nobody continues it, or does the same."""
    is_same = evaluation.error.startswith(SAME_AS)
    return evaluation.state == "failed" and not evaluation.is_continued and not is_same


def finalists(found: Sequence[Standing], fidelity: float, *, candidates: int) -> list[Standing]:
    """Return so many candidates, at most, and the other network of which most is expected at this fidelity.

    They are among those of the highest fidelity so far; candidates come first. Short trainings favor small networks,
    and how far the error of a larger one will fall is uncertain: each further candidate is the best one that has
    `MORE_MACS` of those before, as long as there is one.
    """
    top = sorted(_top(found), key=lambda each: -each.expected(fidelity))
    open_ = [each for each in top if each.is_candidate]
    chosen: list[Standing] = []
    while open_ and len(chosen) < candidates:
        least = MORE_MACS * max((each.macs for each in chosen), default=0)
        chosen.append(next((each for each in open_ if each.macs >= least), open_[0]))
        open_.remove(chosen[-1])
    return [*chosen, *[each for each in top if not each.is_candidate][:1]]


def front(found: Sequence[Standing]) -> list[Standing]:
    """Return the contestants of the highest fidelity that no other one beats in accuracy and latency."""
    top = _top(found)
    if not top:
        return []
    return [top[i] for i in pareto_front([each.accuracy for each in top], [each.latency for each in top])]


def _top(found: Sequence[Standing]) -> list[Standing]:
    return [each for each in found if each.fidelity == found[0].fidelity]
