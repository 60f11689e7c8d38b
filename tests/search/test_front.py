"""Fronts, areas and expected growth, against definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from convatlas.core.pareto import pareto_front
from convatlas.search.front import expected_growth, hypervolume

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12).map(
    lambda points: np.array(points, dtype=float).T
)


@settings(max_examples=100)
@given(POINTS)
def test_the_front_is_what_no_point_dominates(points: NDArray[np.float64]) -> None:
    accuracy, cost = points
    front = pareto_front(accuracy, cost)
    assert (np.diff(cost[front]) > 0).all()
    assert (np.diff(accuracy[front]) > 0).all()
    for a, c in points.T:
        assert ((accuracy[front] >= a) & (cost[front] <= c)).any()


@settings(max_examples=50)
@given(POINTS)
def test_the_area_is_the_share_of_cells_that_are_dominated(points: NDArray[np.float64]) -> None:
    accuracy, cost = points
    cells = [
        any(a >= i + 1 and c <= j for a, c in points.T) for i in range(7) for j in range(7)
    ]  # unit cells between accuracy i and i + 1, cost j and j + 1
    assert hypervolume(accuracy, cost, least_accuracy=0, most_cost=7) == sum(cells)


def test_expected_growth_is_the_mean_growth_of_random_values() -> None:
    accuracy, cost = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 5.0])
    limits = {"least_accuracy": 0.5, "most_cost": 7.0}
    before = hypervolume(accuracy, cost, **limits)
    mean, std, place = np.array([1.5, 3.0, 4.2, 0.8]), np.array([1.0, 0.5, 0.3, 0.4]), np.array([0.5, 3.0, 6.0, 8.0])
    grown = expected_growth(mean, std, place, accuracy, cost, **limits)
    random = np.random.default_rng(0)
    for i in range(4):
        drawn = random.normal(mean[i], std[i], 4000)
        areas = [hypervolume(np.append(accuracy, a), np.append(cost, place[i]), **limits) for a in drawn]
        assert grown[i] == pytest.approx(np.mean(areas) - before, rel=0.05, abs=1e-9)
    assert grown[3] == 0
