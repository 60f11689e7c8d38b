"""Which networks are within a latency limit, with latencies that are given instead of measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import convatlas as ca
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.errors import SearchError
from convatlas.search import latency as latency_module
from convatlas.search import setup
from convatlas.search.contestant import BASELINES, hand_baselines
from convatlas.search.counts import Counts
from convatlas.search.latency import Latency, LatencyMeter, LatencyModel
from convatlas.search.limits import Limits
from convatlas.search.screen import Screen
from convatlas.search.setup import _choose_width
from convatlas.tasks.classification.single_label import Classification

METER = LatencyMeter(Preprocessing(32, 32, mean=(0.5,) * 3, std=(0.5,) * 3), Classification(tuple("abc")))
FAST = LatencyModel("torch", 1, "here", (0.0,) * 18 + (0.001,), 0.05, 0.97, 30)
LIMIT_S = 0.01


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Spec]]:
    """Latencies and shares of other processes by a function of the number of the measurement and the spec."""

    def give(seconds: Callable[[int, Spec], float], other_load: float = 0.0) -> list[Spec]:
        measured: list[Spec] = []

        def measure(meter: LatencyMeter, specs: Sequence[Spec], **options: Any) -> list[Latency]:
            measured.append(specs[0])
            found = seconds(len(measured), specs[0])
            return [Latency(found, found, found, 0.0, other_load)]

        monkeypatch.setattr(LatencyMeter, "measure", measure)
        monkeypatch.setattr(latency_module, "PAUSE_S", 0.0)
        return measured

    return give


def test_baselines_that_are_slower_than_predicted_are_narrowed(given: Callable[..., list[Spec]]) -> None:
    def seconds(number: int, spec: Spec) -> float:
        return 1e-8 * Counts.of(spec, classes=3, channels=3).parameters

    given(seconds)
    screen = Screen(Limits(latency_s=LIMIT_S), METER, FAST, measures=True)
    found = {each.name: each for each in hand_baselines(resolution=32, small=True, latency_of=screen.latency)}
    assert set(found) == set(BASELINES)
    assert all(each.latency_s == seconds(0, each.spec) < LIMIT_S for each in found.values())
    assert found["lenet5_modern"].spec != ca.spec("lenet5_modern")


def test_networks_that_are_predicted_far_above_the_limit_are_not_measured(given: Callable[..., list[Spec]]) -> None:
    measured = given(lambda number, spec: 0.0)
    screen = Screen(Limits(latency_s=0.0005), METER, FAST, measures=True)
    assert screen.latency(ca.spec("cifar_resnet20")) is None
    assert not measured


@pytest.mark.parametrize(
    ("other_load", "times", "measurements", "latency"),
    [
        (0.5, (0.012, 0.009), 2, 0.009),
        (0.5, (0.012, 0.012, 0.011, 0.001), 3, 0.011),
        (0.0, (0.012, 0.009), 1, 0.012),
        (0.5, (0.030, 0.009), 1, 0.030),  # far above the limit
        (0.5, (0.009, 0.001), 1, 0.009),
    ],
)
def test_a_latency_above_the_limit_is_measured_again_where_other_processes_disturb(
    given: Callable[..., list[Spec]], other_load: float, times: Sequence[float], measurements: int, latency: float
) -> None:
    measured = given(lambda number, spec: times[number - 1], other_load)
    assert METER.measure_one(ca.spec("cifar_resnet20"), limit_s=LIMIT_S).seconds == latency
    assert len(measured) == measurements


def test_a_single_round_is_not_disturbed_by_itself() -> None:
    """Of a network far above the limit."""
    alone = latency_module._summarize([[0.02, 0.03]], 0.0)
    assert (alone.seconds, alone.is_disturbed) == (0.02, False)
    assert latency_module._summarize([[0.02], [0.03], [0.025]], 0.0).spread == pytest.approx(0.25)
    assert latency_module._summarize([[0.02]], 0.5).is_disturbed


def test_a_system_without_locks_has_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "count_cores", lambda: 8)
    assert setup._default_workers("quick", "cpu") == 4
    monkeypatch.setattr(setup, "HAS_LOCKS", False)
    assert setup._default_workers("quick", "cpu") == 1


def test_baselines_are_not_widened_beyond_what_learns_in_the_time() -> None:
    def widest(is_timely: Callable[[Spec], bool]) -> dict[str, Spec]:
        found = hand_baselines(resolution=32, small=True, latency_of=lambda spec: 0.001, is_timely=is_timely)
        return {each.name: each.spec for each in found}

    timely, late = widest(lambda spec: True), widest(lambda spec: False)
    assert set(timely) == set(late) == set(BASELINES)
    assert late["cifar_resnet20"] == ca.spec("cifar_resnet20")
    for name in BASELINES:
        assert ca.cost(ca.build(late[name])).macs < ca.cost(ca.build(timely[name])).macs


def test_the_width_of_a_space_suits_the_limits_and_the_time() -> None:
    counted = {
        width: [
            Counts.of(ca.spec("cifar_resnet20").scaled(width=width * each), classes=3, channels=3) for each in (1, 2)
        ]
        for width in (2.0, 1.0, 0.5)
    }
    macs = {width: [each.macs for each in counts] for width, counts in counted.items()}
    assert macs[1.0][1] == macs[2.0][0]

    def chosen(limits: Limits, most_macs: float) -> float:
        return _choose_width(counted, limits, FAST, 0.2, most_macs)[0]

    assert _choose_width(counted, Limits(), FAST, 0.2, macs[1.0][0]) == (1.0, 0.5)
    assert _choose_width(counted, Limits(), FAST, 0.2, 0) == (0.5, 0.0)
    assert chosen(Limits(), math.inf) == 2.0
    assert chosen(Limits(), macs[2.0][0]) == 2.0  # half of them
    assert chosen(Limits(), macs[1.0][0]) == 1.0
    assert chosen(Limits(), 0) == 0.5  # none learns enough: the smallest ones
    assert chosen(Limits(macs=macs[0.5][1]), math.inf) == 1.0
    assert chosen(Limits(macs=macs[1.0][1]), macs[0.5][0]) == 0.5
    with pytest.raises(SearchError, match="too low for the networks of the space"):
        chosen(Limits(macs=1), math.inf)


def test_the_error_of_a_latency_model_is_that_on_networks_of_the_space() -> None:
    def counts(name: str, width: float) -> Counts:
        return Counts.of(ca.spec(name).scaled(width=width), classes=3, channels=3)

    space = [counts("cifar_resnet20", width) for width in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)]
    measured = [(each, 1e-10 * each.macs + 1e-4) for each in space]
    model = LatencyModel.fit(measured, [(counts("mobilenet_v2", 1.0), 1.0)], engine="torch", threads=1)
    assert model.networks == 9
    assert model.error_share < 1e-6
    assert model.rank_correlation == pytest.approx(1)
    assert model.predict(counts("mobilenet_v2", 1.0)) == pytest.approx(1.0, rel=0.01)
    assert model.knows(counts("mobilenet_v2", 0.5))
