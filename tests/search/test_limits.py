"""Limits of a device and the objective of MnasNet."""

from __future__ import annotations

import math
from typing import Any

import pytest

from convatlas.errors import ConvatlasError
from convatlas.search.counts import Counts
from convatlas.search.limits import Limits, reward


def test_the_reward_of_mnasnet() -> None:
    assert reward(0.8, 2.0, 1.0, "soft") == pytest.approx(0.8 * 0.9526, rel=1e-4)  # twice the latency costs 5 %
    assert reward(0.8, 0.5, 1.0, "soft") > 0.8
    assert reward(0.8, 0.5, 1.0, "hard") == 0.8
    assert reward(0.8, 2.0, 1.0, "hard") == pytest.approx(0.4)
    assert reward(0.8, 2.0, math.inf) == 0.8


def test_limits() -> None:
    limits = Limits(latency_s="8ms", params="2M", file_bytes="4MB")  # type: ignore[arg-type]
    assert limits == Limits(latency_s=0.008, params=2e6, file_bytes=4e6)
    assert str(limits) == "latency 8ms, parameters 2M, model file 4MB"
    small, large = Counts(10**6, 10**8, 10**6, 10**7), Counts(3 * 10**6, 10**8, 10**6, 10**7)
    assert limits.exceeded(small, 0.007) == ""
    assert limits.exceeded(large, 0.007) == "parameters 3M > 2M"
    assert limits.exceeded(small, 0.009) == "latency 9ms > 8ms"
    assert Limits().exceeded(large, 100.0) == ""
    assert str(Limits()) == "no limit"


@pytest.mark.parametrize("given", [{"latency_s": 0}, {"params": -1}, {"macs": "8ms"}, {"memory_bytes": math.nan}])
def test_limits_that_are_none(given: dict[str, Any]) -> None:
    with pytest.raises(ConvatlasError):
        Limits(**given)
