"""The standings of a search: its finalists, its winner, and the Pareto front, from the evaluations in the store."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from convatlas.core.pareto import pareto_front
from convatlas.search.contestant import Contestant
from convatlas.search.store import SAME_AS, Evaluation

SEED_MARK = "-seed"
"""In the name of a contestant that is trained with another seed."""


def network_name(name: str) -> str:
    """Return the name of a contestant without the mark of another seed."""
    return name.partition(SEED_MARK)[0]


PROMOTED = 3
"""One of so many contestants continues at the next fidelity."""


def promoted(number: int) -> int:
    """Return how many of so many contestants continue at the next fidelity."""
    return math.ceil(number / PROMOTED)


@dataclass(frozen=True)
class Standing:
    """A contestant, with its evaluations at the highest fidelity that it reached.

    accuracies, rewards: of one seed each; the reward is what is compared: the accuracy, unless a soft objective weighs
    it with the latency. latency: seconds for one image. number: of its first trial.
    """

    contestant: Contestant
    fidelity: float
    accuracies: tuple[float, ...]
    rewards: tuple[float, ...]
    latency: float
    parameters: int
    macs: int
    number: int

    @property
    def accuracy(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.accuracies)

    def reward(self, seeds: int = 0) -> float:
        """The mean reward over so many seeds; over all by default."""
        return statistics.fmean(self.rewards[: seeds or len(self.rewards)])

    @property
    def is_candidate(self) -> bool:
        return self.contestant.kind == "candidate"


def standings(evaluations: Sequence[Evaluation]) -> list[Standing]:
    """Return all contestants with results, the best first: by fidelity, then by accuracy; of equal ones baselines.

    One whose training failed later, because it diverged for instance, is out.
    """
    groups: dict[str, list[Evaluation]] = {}
    failed = {each.plain["name"] for each in evaluations if has_failed(each)}
    for each in evaluations:
        if each.state == "complete" and each.plain["kind"] != "supernet" and each.plain["name"] not in failed:
            groups.setdefault(network_name(str(each.plain["name"])), []).append(each)
    found = []
    for group in groups.values():
        top = max(each.fidelity for each in group)
        counted = list({each.key: each for each in reversed(group) if each.fidelity == top}.values())[::-1]
        metrics = counted[0].metrics
        found.append(Standing(
            Contestant.read(counted[0].plain), top, tuple(each.metrics["accuracy"] for each in counted),
            tuple(each.metrics.get("reward", each.metrics["accuracy"]) for each in counted),
            min(each.metrics["latency"] for each in group), int(metrics["parameters"]), int(metrics["macs"]),
            min(each.number for each in group),
        ))  # fmt: skip
    return sorted(found, key=lambda each: (-each.fidelity, -each.reward(), each.is_candidate, each.number))


def has_failed(evaluation: Evaluation) -> bool:
    """Return whether an evaluation failed, and nobody continues it, or does the same."""
    is_same = evaluation.error.startswith(SAME_AS)
    return evaluation.state == "failed" and not evaluation.is_continued and not is_same


def leaders(found: Sequence[Standing]) -> list[Standing]:
    """Return the best candidate and the best of the others, at the highest fidelity; either may be missing."""
    return _firsts([each for each in found if each.fidelity == found[0].fidelity])


def finalists(found: Sequence[Standing]) -> list[Standing]:
    """Return the best candidate and the best of the others, of those with the most seeds: one seed may be lucky."""
    top = [each for each in found if each.fidelity == found[0].fidelity]
    most = {
        is_candidate: max((len(each.rewards) for each in top if each.is_candidate is is_candidate), default=0)
        for is_candidate in (True, False)
    }
    return _firsts([each for each in top if len(each.rewards) == most[each.is_candidate]])


def _firsts(found: Sequence[Standing]) -> list[Standing]:
    """Return the first candidate and the first of the others."""
    firsts = (next((each for each in found if each.is_candidate is kind), None) for kind in (True, False))
    return [each for each in firsts if each is not None]


def winner(found: Sequence[Standing]) -> Standing | None:
    """Return the finalist with the better mean over equally many seeds; a candidate must be better, not equal."""
    finals = finalists(found)
    seeds = min((len(each.rewards) for each in finals), default=1)
    return max(finals, key=lambda each: (each.reward(seeds), not each.is_candidate), default=None)


def front(found: Sequence[Standing]) -> list[Standing]:
    """Return the contestants of the highest fidelity that no other one beats in accuracy and latency."""
    top = [each for each in found if each.fidelity == found[0].fidelity] if found else []
    if not top:
        return []
    return [top[i] for i in pareto_front([each.accuracy for each in top], [each.latency for each in top])]
