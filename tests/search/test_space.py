"""Search spaces: sizes, codes, samples, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convatlas.errors import SearchError
from convatlas.search.space import Space

SPACES = st.dictionaries(
    st.text(min_size=1, max_size=3),
    st.lists(st.integers(-9, 9), min_size=1, max_size=4, unique=True),
    min_size=1,
    max_size=4,
).map(Space)


@settings(max_examples=30)
@given(SPACES, st.integers(0, 2**31))
def test_codes_and_candidates_are_the_same(space: Space, seed: int) -> None:
    every = space.all()
    assert len(every) == space.size == len({str(space.decode(row)) for row in every})
    for row in every:
        assert (space.encode(space.decode(row)) == row).all()
    random = np.random.default_rng(seed)
    sample = space.sample(5, random)
    assert len(sample) == len(np.unique(sample, axis=0)) <= min(5, space.size)
    known = {row.tobytes() for row in every}
    children = space.crossover(sample, sample[::-1], random)
    assert {row.tobytes() for row in (*sample, *children, *space.mutate(sample, random, changes=2))} <= known


@settings(max_examples=30)
@given(SPACES)
def test_positions_of_ordered_choices_are_ranks(space: Space) -> None:
    every = space.all()
    places = space.positions(every)
    for name, column in zip(space.names, places.T, strict=True):
        values = [space.decode(row)[name] for row in every]
        order = np.argsort(values, kind="stable")
        assert (np.diff(column[order]) >= 0).all()
        assert column.min() == 0
        assert column.max() == (len(set(values)) > 1)


def test_only_what_is_allowed_is_drawn() -> None:
    space = Space({"x": range(10), "y": range(10)}, allowed=lambda candidate: candidate["x"] == candidate["y"])
    random = np.random.default_rng(0)
    drawn = space.sample(20, random)
    for codes in (space.all(), drawn, space.mutate(drawn, random), space.crossover(drawn, drawn[::-1], random)):
        assert all(x == y for x, y in codes)
    assert len(space.all()) == len(drawn) == 10
    assert space.size == 100


def test_a_value_is_not_another_one_that_is_equal() -> None:
    space = Space({"bias": [True, 1, None, [3, 5]]})
    assert [space.encode({"bias": value})[0] for value in (True, 1, None, [3, 5])] == [0, 1, 2, 3]
    assert not space.ordered[0]


def test_numbers_of_numpy_are_numbers() -> None:
    space = Space({"width": np.arange(8, 40, 8), "lr": np.array([0.1, 0.2])})
    assert space.choices == {"width": (8, 16, 24, 32), "lr": (0.1, 0.2)}
    assert space.ordered.all()
    assert space.encode({"width": np.int64(16), "lr": 0.2}).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "must be a mapping of names to choices"),
        ([3, 5], "must be a mapping of names to choices"),
        ({"kernel": []}, "kernel must have at least one choice"),
        ({"kernel": 3}, "kernel must have a list of choices, got 3"),
        ({"act": "relu"}, "act must have a list of choices, got 'relu'"),
        ({"kernel": [3, 5, 3]}, "kernel must have different choices, got 3 twice"),
        ({"lr": [0.1, float("nan")]}, "lr must have choices that can be compared, got nan"),
        ({"mask": [np.zeros(2), np.ones(2)]}, "mask must have choices that can be compared"),
        ({3: [1, 2]}, "names must be texts, got 3"),
    ],
)
def test_spaces_that_are_none(choices: Any, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Space(choices)


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"kernel": 3, "widht": 8, "width": 8}, r"no name 'widht' \(did you mean width\?\)"),
        ({"kernel": 3}, "the candidate must have a choice for width"),
        ({"kernel": 4, "width": 8}, "kernel must be one of 3, 5, got 4"),
    ],
)
def test_candidates_of_another_space(candidate: Any, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Space({"kernel": [3, 5], "width": [8, 16]}).encode(candidate)
