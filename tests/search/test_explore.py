"""Search over anything: trials, budget, errors, and that it is better than random search."""

from __future__ import annotations

import itertools
import math
import zlib
from functools import partial
from statistics import median
from typing import Any

import pytest

import convatlas as ca
from convatlas.errors import SearchError
from convatlas.search.study import Study, Trial

explore = partial(ca.search.explore, fidelities=(1,), progress=False)

SPACE = ca.search.Space({"depth": [1, 2, 3, 4, 5, 6], "width": [8, 16, 24, 32, 48, 64], "kernel": [3, 5, 7],
                         "act": ["ReLU", "SiLU", "sigmoid"], "shortcut": [False, True]})  # fmt: skip


def evaluate(candidate: dict[str, Any], fidelity: float = 1.0) -> dict[str, float]:
    """A made-up network: accuracy saturates with size, sigmoids need shortcuts; latency grows with cost."""
    size = candidate["depth"] * candidate["width"] * (1 + candidate["kernel"] / 10)
    accuracy = 1 - math.exp(-size / 150) - 0.02 * abs(candidate["kernel"] - 5)
    accuracy -= 0.3 * (candidate["act"] == "sigmoid" and not candidate["shortcut"]) - 0.01 * (
        candidate["act"] == "SiLU"
    )
    latency = 1 + candidate["depth"] * (candidate["width"] * candidate["kernel"]) ** 0.5 / 10
    return {"accuracy": accuracy, "latency": latency, "params": 1000.0 * size}


def area(study: Study) -> float:
    front = [(trial.latency, trial.accuracy) for trial in study.front]
    return sum((right - left) * accuracy for (left, accuracy), (right, _) in itertools.pairwise([*front, (20.0, 0.0)]))


def test_the_front_is_better_than_that_of_random_search() -> None:
    study = explore(SPACE, evaluate, budget=60, seed=0)
    best = Study(tuple(Trial(i, c, metrics=evaluate(c)) for i, c in enumerate(map(SPACE.decode, SPACE.all()))))
    random = [Study(best.trials[start : start + 600 : 10]) for start in range(10)]
    assert area(best) - area(study) < 0.4 * median(area(best) - area(each) for each in random)


def test_equal_seeds_give_equal_trials_and_none_twice() -> None:
    first, again, other = (explore(SPACE, evaluate, budget=40, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({str(trial.candidate) for trial in first.trials}) == len(first.trials) == 40
    assert [trial.number for trial in first.trials] == list(range(40))


def test_a_small_space_is_evaluated_whole() -> None:
    study = explore(
        ca.search.Space({"depth": [1, 2], "width": [8, 16], "kernel": [3], "act": ["ReLU"], "shortcut": [True]}),
        evaluate, budget=100,
    )  # fmt: skip
    assert len(study.trials) == 4


def test_a_large_space_has_a_pool() -> None:
    space = ca.search.Space({f"x{i}": range(10) for i in range(8)}, allowed=lambda c: sum(c.values()) < 60)

    def distance(candidate: dict[str, int], fidelity: float) -> dict[str, float]:
        return {"accuracy": -sum((value - 4) ** 2 for value in candidate.values())}

    study = explore(space, distance, budget=120)
    assert study.best().accuracy >= -4  # of 10^8 candidates, 1 + 16 + 112 are that near
    assert all(sum(trial.candidate.values()) < 60 for trial in study.trials)
    assert len(study.front) == 1


def test_a_failed_evaluation_is_a_trial_with_an_error() -> None:
    def failing(candidate: dict[str, Any], fidelity: float) -> dict[str, float]:
        if candidate["act"] == "sigmoid":
            raise MemoryError("out of memory")
        return evaluate(candidate)

    study = explore(SPACE, failing, budget=40)
    failed = [trial for trial in study.trials if trial.error]
    assert failed
    assert {trial.error for trial in failed} == {"MemoryError: out of memory"}
    assert len(study.trials) == 40
    assert not {trial.number for trial in study.front} & {trial.number for trial in failed}
    assert f"{len(failed)} failed" in repr(study)


def test_if_every_evaluation_fails_the_search_stops() -> None:
    with pytest.raises(SearchError, match="the first 5 evaluations of fidelity 1 failed: ZeroDivisionError: division"):
        explore(SPACE, lambda candidate, fidelity: {"accuracy": 1 / 0})


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (0.5, "must return a mapping with 'accuracy'"),
        ({"latency": 1.0}, "must return a mapping with 'accuracy'"),
        ({"accuracy": "high"}, "accuracy must be a number, got 'high'"),
        ({"accuracy": math.nan, "latency": 1.0}, "accuracy must be finite"),
        ({"accuracy": 10**400}, "accuracy must be a number, got 1000"),
        ({"accuracy": 0.5, "latency": 0.0}, "latency must be > 0, got 0"),
    ],
)
def test_metrics_that_are_no_numbers_are_errors_of_their_trials(metrics: Any, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        explore(SPACE, lambda candidate, fidelity: metrics)
    calls = iter(range(100))
    study = explore(
        SPACE, lambda candidate, fidelity: metrics if next(calls) == 7 else evaluate(candidate), budget=12
    )  # fmt: skip
    assert [trial.number for trial in study.trials if trial.error] == [7]
    assert len(study.complete) == 11


@pytest.mark.parametrize("fidelities", [(1,), (0.1, 1)])
def test_a_latency_that_only_some_evaluations_have(fidelities: tuple[float, ...]) -> None:
    def without(candidate: dict[str, Any], fidelity: float) -> dict[str, float]:
        metrics = evaluate(candidate)
        if fidelity < 1 or (fidelities == (1,) and candidate["act"] == "sigmoid"):
            del metrics["latency"]
        return metrics

    if fidelities == (1,):
        study = explore(SPACE, without, budget=30)
        assert {trial.error for trial in study.trials} == {
            "", "latency must be among the metrics of all evaluations, or of none",
        }  # fmt: skip
    else:
        with pytest.raises(SearchError, match="the first 5 evaluations of fidelity 1 failed: latency must be among"):
            explore(SPACE, without, budget=30, fidelities=fidelities)


def test_further_metrics_that_only_some_evaluations_have() -> None:
    def some(candidate: dict[str, Any], fidelity: float) -> dict[str, float]:
        metrics = evaluate(candidate)
        return metrics if candidate["act"] != "SiLU" else {name: metrics[name] for name in ("accuracy", "latency")}

    study = explore(SPACE, some, budget=30)
    assert study.best(max_params=1e9).candidate["act"] != "SiLU"
    assert "-" in repr(study)


def test_each_trial_is_told_at_once() -> None:
    told: list[int] = []

    def interrupted(candidate: dict[str, Any], fidelity: float) -> dict[str, float]:
        if len(told) == 3:
            raise KeyboardInterrupt
        return evaluate(candidate)

    with pytest.raises(KeyboardInterrupt):
        explore(SPACE, interrupted, on_trial=lambda trial: told.append(trial.number))
    assert told == [0, 1, 2]


def test_a_space_of_which_little_is_allowed() -> None:
    names = [f"n{i}" for i in range(4)]
    sparse = ca.search.Space(
        {name: range(10) for name in names}, allowed=lambda candidate: len(set(candidate.values())) == 1
    )
    study = explore(sparse, lambda candidate, fidelity: {"accuracy": candidate["n0"]}, budget=60)
    assert len(study.trials) == 10
    nothing = ca.search.Space({"x": range(10)}, allowed=lambda candidate: False)
    with pytest.raises(SearchError, match="no candidate of the space was found that is allowed"):
        explore(nothing, lambda candidate, fidelity: {"accuracy": 1})


@pytest.mark.parametrize("budget", [1, 1.2, 2, 3])
@pytest.mark.parametrize("fidelities", [(0.1, 1), (0.05, 0.2, 1)])
def test_a_small_budget_has_a_result(budget: float, fidelities: tuple[float, ...]) -> None:
    study = explore(SPACE, lambda candidate, fidelity: evaluate(candidate), budget=budget, fidelities=fidelities)
    assert study.complete
    assert sum(trial.fidelity for trial in study.trials) <= budget + 1e-6


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None])
def test_a_seed_is_an_integer(seed: Any) -> None:
    with pytest.raises(SearchError, match="seed: must be an integer >= 0"):
        explore(SPACE, evaluate, seed=seed)


def test_candidates_of_others_are_reserved_and_then_promoted() -> None:
    space = ca.search.Space({"x": range(3)})
    explorer = ca.search.Explorer(space, budget=10)
    explorer.reserve([{"x": 0}, {"x": 1}])
    asked = explorer.ask()
    assert asked is not None
    assert asked[0] == {"x": 2}
    explorer.reserve([])
    for x in range(3):
        explorer.tell({"x": x}, accuracy=0.1 * x, latency=1.0, fidelity=0.1)
    promoted = [explorer.ask() for _ in range(4)]
    assert [each[1] for each in promoted if each is not None] == [1.0] * 3


def test_a_candidate_must_reach_the_full_fidelity_in_the_time_that_is_left() -> None:
    explorer = ca.search.Explorer(SPACE, fidelities=(0.25, 1), budget=10)
    assert explorer.ask(0.6) is None
    asked = explorer.ask(0.63)  # a quarter, and half of the rest
    assert asked is not None
    assert asked[1] == 0.25
    for candidate in (asked[0], *(explorer.ask()[0] for _ in range(4))):
        explorer.tell(candidate, latency=1.0, accuracy=evaluate(candidate)["accuracy"], fidelity=0.25)
    assert explorer.ask(0.3) is None
    promoted = explorer.ask(0.4)
    assert promoted is not None
    assert promoted[1] == 1


def test_the_engine_refuses_what_is_no_result() -> None:
    explorer = ca.search.Explorer(SPACE, budget=10)
    asked = explorer.ask()
    assert asked is not None
    for values, message in [
        ({"accuracy": math.nan, "latency": 1.0}, "accuracy must be finite"),
        ({"accuracy": 0.5, "latency": 0.0}, "latency > 0"),
        ({"accuracy": 0.5, "latency": 1.0, "fidelity": 0.5}, "fidelity must be one of 0.1, 1.0, got 0.5"),
    ]:
        with pytest.raises(SearchError, match=message):
            explorer.tell(asked[0], **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [0, -1, 0.5, math.inf, math.nan, True, "300"])
def test_a_budget_is_a_number_of_evaluations(budget: Any) -> None:
    with pytest.raises(SearchError, match="budget must be a number of evaluations >= 1"):
        explore(SPACE, evaluate, budget=budget)


@pytest.mark.parametrize("budget", [1, 2, 3, 7])
def test_small_budgets(budget: int) -> None:
    assert len(explore(SPACE, evaluate, budget=budget).trials) == budget


def test_the_best_trial_is_within_the_limits() -> None:
    study = explore(SPACE, evaluate, budget=40)
    best = study.best(max_latency=3.0, max_params=100_000)
    assert best.latency <= 3
    assert best.metrics["params"] <= 100_000
    inside = [t for t in study.trials if t.latency <= 3 and t.metrics["params"] <= 100_000]
    assert best.accuracy == max(trial.accuracy for trial in inside)
    assert study.best() in study.front
    with pytest.raises(SearchError, match="no trial is within the limits; the smallest are max_latency"):
        study.best(max_latency=0.1)
    with pytest.raises(SearchError, match=r"no limit 'max_latence' \(did you mean max_latency\?\)"):
        study.best(max_latence=3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_units_do_not_matter(scale: float) -> None:
    def scaled(candidate: dict[str, Any], fidelity: float) -> dict[str, float]:
        metrics = evaluate(candidate)
        return {"accuracy": scale * metrics["accuracy"], "latency": metrics["latency"] / scale}

    study = explore(SPACE, scaled, budget=50)
    accuracy = study.best(max_latency=3.0 / scale).accuracy
    best = max(
        metrics["accuracy"] for metrics in map(evaluate, map(SPACE.decode, SPACE.all())) if metrics["latency"] <= 3
    )
    assert accuracy == pytest.approx(scale * best, rel=0.02)


@pytest.mark.parametrize("fidelities", [(0.1, 1), (0.1, 0.3, 1)])
def test_candidates_are_promoted(fidelities: tuple[float, ...]) -> None:
    def noisy(candidate: dict[str, Any], fidelity: float) -> dict[str, float]:
        metrics = evaluate(candidate)
        wrong = (1 - fidelity) * 0.1 * (zlib.crc32(str(candidate).encode()) / 2**32 - 0.5)
        return metrics | {"accuracy": 50 * fidelity + 40 * metrics["accuracy"] + 40 * wrong}

    study = explore(SPACE, noisy, budget=20, fidelities=fidelities)
    assert sum(trial.fidelity for trial in study.trials) == pytest.approx(20, abs=1)
    reached: dict[str, list[float]] = {}
    for trial in study.trials:
        reached.setdefault(str(trial.candidate), []).append(trial.fidelity)
    assert all(tuple(levels) == fidelities[: len(levels)] for levels in reached.values())
    assert {len(levels) for levels in reached.values()} == set(range(1, len(fidelities) + 1))
    assert all(trial.fidelity == 1 for trial in study.front)
    full = [noisy(SPACE.decode(codes), 1)["accuracy"] for codes in SPACE.all()]
    assert max(trial.metrics["accuracy"] for trial in study.front) > sorted(full)[-len(full) // 10]


def test_an_evaluation_without_fidelity_is_noticed() -> None:
    study = ca.search.explore(SPACE, evaluate, budget=40, progress=False)
    fidelities = [trial.fidelity for trial in study.trials]
    first_full = fidelities.index(1)
    assert first_full < 20
    assert len(study.trials) < 70
    assert set(fidelities[first_full + 8 :]) == {1}


@pytest.mark.parametrize("fidelities", [(), (0.5,), (0, 1), (1, 0.5), (0.5, 0.5, 1), (0.5, 2), (math.nan, 1), 2])
def test_fidelities_rise_to_one(fidelities: Any) -> None:
    with pytest.raises(SearchError, match="fidelities: must rise from above 0 to 1"):
        explore(SPACE, evaluate, fidelities=fidelities)


def test_equal_accuracies_and_latencies() -> None:
    study = explore(SPACE, lambda candidate, fidelity: {"accuracy": 0.1, "latency": 1.0}, budget=40)  # fmt: skip
    assert len(study.trials) == 40
    assert len(study.front) == 1
