"""The standings of a search: its finalists, its winner, and the Pareto front, from the evaluations in the store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convatlas.core.pareto import pareto_front
from convatlas.search.contestant import Contestant
from convatlas.search.store import SAME_AS, Evaluation

FINAL_MARK = "-final-"
"""In the name of a finalist, before the time of the search."""

PROMOTED, LEAST_PROMOTED = 3, 2
"""One of so many contestants continues at the next fidelity, and at least so many: the order may change later."""

EXPONENT, STEADY_EPOCHS, LAST_EPOCHS = 0.34, 20, 134
"""The error falls by this power of the epochs in the first ones; then the power falls with the logarithm of the epochs,
to zero at the last ones: about as that of residual networks on CIFAR-10 (docs/results.md)."""


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
    highest fidelity last. epochs: of its training so far. model_reward: of its model file, which has the best epoch.
    """

    contestant: Contestant
    fidelity: float
    accuracy: float
    reward: float
    latency: float
    parameters: int
    macs: int
    number: int
    curve: tuple[tuple[float, float], ...]
    epochs: float
    model_reward: float

    @property
    def name(self) -> str:
        return network_name(self.contestant.name)

    @property
    def is_candidate(self) -> bool:
        return self.contestant.kind == "candidate"

    def expected(self, fidelity: float) -> float:
        """Return the reward to expect at a higher fidelity."""
        return expected_reward(self.accuracy, self.reward, self.epochs, fidelity / self.fidelity)


def expected_reward(accuracy: float, reward: float, epochs: float, times: float) -> float:
    """Return the reward to expect of a training of so many epochs when it is so many times as long.

    The error falls by a power of the epochs that is smaller in later ones, when the images are known: in the same time,
    small networks, which see them more often, are ahead at first and less so in the end.
    """
    if accuracy <= 0:
        return reward
    fall = _log_fall(max(1.0, times) * epochs) - _log_fall(epochs)
    return (1 - (1 - accuracy) * math.exp(-fall)) * reward / accuracy


def _log_fall(epochs: float) -> float:
    """Return by how much the logarithm of the error falls in so many epochs, apart from a constant."""
    begin, end = math.log(STEADY_EPOCHS), math.log(LAST_EPOCHS)
    now = min(math.log(epochs), end)
    return EXPONENT * (now - max(0.0, now - begin) ** 2 / (2 * (end - begin)))


def standings(evaluations: Sequence[Evaluation], *, time_s: float | None = None) -> list[Standing]:
    """Return all contestants with results, the best first: by fidelity, then by accuracy; of equal ones baselines.

    time_s: the finalists of a search of so many seconds instead, by the reward of their model files: one that was
    stopped may be better than the one that was trained to its end. One whose training failed later, because it diverged
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

    def place(each: Standing) -> tuple[float, ...]:
        best = (-each.fidelity, -each.reward) if time_s is None else (-each.model_reward, -each.fidelity)
        return *best, each.is_candidate, each.number

    return sorted(found, key=place)


def _standing(group: Sequence[Evaluation], searched: Sequence[Evaluation]) -> Standing:
    """Return the standing of a contestant from its evaluations. searched: those of its network in the search."""
    last = max(group, key=lambda each: each.fidelity)
    accuracies = {each.fidelity: each.metrics["accuracy"] for each in (*searched, *group)}
    metrics = last.metrics
    measured = [each for each in group if not each.metrics["predicted"]]
    return Standing(
        Contestant.read(last.plain), last.fidelity, metrics["accuracy"], metrics["reward"],
        min(each.metrics["latency"] for each in measured or group), int(metrics["parameters"]), int(metrics["macs"]),
        min(each.number for each in group),
        tuple((fidelity, accuracies[fidelity]) for fidelity in sorted(accuracies) if fidelity <= last.fidelity),
        metrics["epochs"], metrics["model_reward"],
    )  # fmt: skip


def has_failed(evaluation: Evaluation) -> bool:
    """Return whether an evaluation failed, and nobody continues it, or does the same."""
    is_same = evaluation.error.startswith(SAME_AS)
    return evaluation.state == "failed" and not evaluation.is_continued and not is_same


def finalists(found: Sequence[Standing], fidelity: float, *, candidates: int) -> list[Standing]:
    """Return so many candidates, at most, and the other network of which most is expected at this fidelity.

    They are among those of the highest fidelity so far; candidates come first.
    """
    top = sorted(_top(found), key=lambda each: -each.expected(fidelity))
    best = [each for each in top if each.is_candidate][:candidates]
    return [*best, *[each for each in top if not each.is_candidate][:1]]


def front(found: Sequence[Standing]) -> list[Standing]:
    """Return the contestants of the highest fidelity that no other one beats in accuracy and latency."""
    top = _top(found)
    if not top:
        return []
    return [top[i] for i in pareto_front([each.accuracy for each in top], [each.latency for each in top])]


def _top(found: Sequence[Standing]) -> list[Standing]:
    return [each for each in found if each.fidelity == found[0].fidelity]
