"""A space within limits: what is measured corrects the predicted latencies of networks that are alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from convatlas.core.choice import choose
from convatlas.models.families.resnet import ResNet
from convatlas.search.budgeted import MIN_MEASURED, BudgetedSpace
from convatlas.search.latency import LatencyModel
from convatlas.search.limits import Limits
from convatlas.search.space import Candidate, SpecSpace

SPACE: Any = ResNet(
    "basic", (choose(1, 2, 3), choose(1, 2, 3)), (choose(8, 16), choose(8, 16, 24)), stem=8, small_stem=True,
    resolution=16,
)  # fmt: skip

MODEL = LatencyModel("torch", 1, "a machine", (0.0,) * 18 + (0.001,), 0.05, 0.97, 60)
"""Predicts 1 ms for every network."""


def space_within(limits: Limits) -> BudgetedSpace:
    return BudgetedSpace(SpecSpace(SPACE), limits, MODEL, classes=10, channels=3)


def truth(candidate: Candidate) -> float:
    """Return seconds: networks with a deep first stage take twice what is predicted."""
    return 0.002 if candidate["depths[0]"] == 3 else 0.00095


def test_networks_like_slow_ones_are_too_slow() -> None:
    space = space_within(Limits(latency_s=0.0012))
    candidates = [space.decode(codes) for codes in space.all()]
    np.random.default_rng(0).shuffle(candidates)
    measured, others = candidates[:18], candidates[18:]
    for each in measured:
        space.learn_latency(each, truth(each))
    assert not any(map(space.is_too_slow, measured))  # what is known is not expected
    wrong = [each for each in others if space.is_too_slow(each) != (truth(each) > 0.0012)]
    assert len(others) == 36
    assert len(wrong) <= 3


@pytest.mark.parametrize(("limit", "number"), [(0.0012, MIN_MEASURED - 1), (math.nan, 18)])
def test_nothing_is_too_slow_without_measurements_or_without_a_limit(limit: float, number: int) -> None:
    space = space_within(Limits() if math.isnan(limit) else Limits(latency_s=limit))
    candidates = [space.decode(codes) for codes in space.all()]
    for each in candidates[:number]:
        space.learn_latency(each, 1.0)
    assert not any(map(space.is_too_slow, candidates))


def test_equal_ratios_and_repeated_measurements() -> None:
    space = space_within(Limits(latency_s=0.0012))
    candidates = [space.decode(codes) for codes in space.all()]
    for each in candidates[:8]:
        space.learn_latency(each, 0.0015)
        space.learn_latency(each, 0.0001)  # a network is measured once
    assert all(map(space.is_too_slow, candidates[8:]))
