"""Statistics of few seeds: equal to scipy's, and honest about one seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from convatlas.experiments.results import Results, Row
from convatlas.experiments.statistics import paired_effect

numbers = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=8))
def test_the_interval_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    values, baseline = np.array(pairs).T
    effect = paired_effect("a - b", "accuracy", values, baseline)
    if np.ptp(values - baseline) < 1e-9:
        assert effect.low == pytest.approx(effect.high)
        return
    interval = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert effect.is_positive == (effect.low > 0)
    reversed_effect = paired_effect("b - a", "accuracy", baseline, values)
    assert reversed_effect.size == pytest.approx(-effect.size)
    assert reversed_effect.is_negative == effect.is_positive


def test_one_seed_proves_nothing() -> None:
    effect = paired_effect("a - b", "accuracy", [1.0], [0.0])
    assert not effect.is_positive
    assert not math.isfinite(effect.low)
    assert "one seed" in effect.text()


def test_equal_differences_have_an_infinite_effect_size() -> None:
    assert paired_effect("a - b", "accuracy", [2, 3, 4], [1, 2, 3]).size == math.inf
    assert paired_effect("a - b", "accuracy", [0.3, 0.2, 0.4], [0.2, 0.1, 0.3]).size == math.inf
    assert paired_effect("a - b", "accuracy", [1, 2, 3], [1, 2, 3]).size == 0


def test_results_are_paired_by_seed_whatever_the_order() -> None:
    rows = [Row("a", 1, {}, {"x": 5.0}), Row("b", 0, {}, {"x": 1.0}), Row("a", 0, {}, {"x": 3.0}),
            Row("b", 1, {}, {"x": 2.0}), Row("a", 2, {}, {"x": 9.0})]  # fmt: skip
    results = Results(tuple(rows))
    assert results.arms == ("a", "b")
    assert results.values("a", "x").tolist() == [3, 5, 9]
    effect = results.compare("a", "b", "x")
    assert (effect.difference, effect.seeds) == (2.5, 2)
