"""Quantities with units: what is read, what is refused, and the dimension that a message names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from convatlas.system.quantities import (
    COUNT,
    DIMENSIONS,
    POINTS,
    SHARE,
    SIZE,
    TIME,
    Dimension,
    Interval,
    count,
    interval,
    points,
    seconds,
    share,
    size,
)

DIMENSION = st.sampled_from(DIMENSIONS)
NUMBER = st.decimals(min_value=0, max_value=10**6, places=3, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (seconds, "10ms", 0.01), (seconds, "30 s", 30), (seconds, "5min", 300), (seconds, "1h", 3600),
        (seconds, "2.5us", 2.5e-6), (seconds, "0", 0), (seconds, "1e3ms", 1),
        (count, "30M", 30_000_000), (count, "150000000.0", 150_000_000), (count, "2.5k", 2500), (count, "1e8", 10**8),
        (count, "0", 0), (count, "64", 64),
        (size, "5MB", 5_000_000), (size, "32MiB", 32 * 2**20), (size, "2GB", 2 * 10**9), (size, "1.5KiB", 1536),
        (share, "80%", 0.8), (share, "0.2", 0.2), (share, "0", 0), (share, "1", 1), (share, "100%", 1),
        (points, "0.5pp", 0.005), (points, "0", 0), (points, "2 pp", 0.02),
    ],
)  # fmt: skip
def test_quantities_are_read_in_the_base_unit(parse: Callable[[str], float], text: str, value: float) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (seconds, "5M", "5M is a count; write a time such as 10ms"),
        (seconds, "30", "30 has no unit; write a time such as 10ms"),
        (seconds, "10 MB", "10 MB is a size in bytes; write a time such as 10ms"),
        (seconds, "5m", "5m has the unknown unit 'm'; write a time such as 10ms"),
        (seconds, "soon", "'soon' is not a time; write a time such as 10ms"),
        (seconds, "-5ms", "must be a time >= 0, got -5ms"),
        (seconds, "1e999s", "must be a finite number, got 1e999s"), (seconds, "nan", "'nan' is not a time"),
        (seconds, "1.2.3s", "is not a time"), (seconds, "", "is not a time"), (seconds, "1_000s", "is not a time"),
        (count, "30ms", "30ms is a time; write a count such as 5M"),
        (count, "5MB", "5MB is a size in bytes; write a count such as 5M"),
        (count, "0.5", "must be an integer, got 0.5"), (count, "-1", "must be a count >= 0, got -1"),
        (size, "5M", "5M is a count; write a size in bytes such as 32MB"),
        (size, "1024", "1024 has no unit; write a size in bytes such as 32MB"),
        (size, "0.5B", "must be an integer, got 0.5B"),
        (share, "20", "must be a share in [0, 1], got 20; write it such as 20%"),
        (share, "120%", "must be a share in [0, 1], got 120%"), (share, "5pp", "is a difference in percentage points"),
        (points, "0.5", "0.5 has no unit; write a difference in percentage points such as 0.5pp"),
        (points, "0.5%", "0.5% is a share; write a difference in percentage points such as 0.5pp"),
        (points, "101pp", "must be at most 100pp, got 101pp"),
    ],
)  # fmt: skip
def test_a_wrong_unit_is_refused_with_the_one_that_is_meant(
    parse: Callable[[str], float], text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=r"such as|must be") as refused:
        parse(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@given(DIMENSION, NUMBER, st.data())
def test_round_trip(dimension: Dimension, number: object, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(sorted(dimension.units)))
    value = dimension.parse(f"{number}{unit}")
    assert dimension.parse(dimension.format(value)) == pytest.approx(value, rel=1e-15, abs=0)


@given(DIMENSION, DIMENSION, NUMBER, st.data())
def test_every_unit_of_another_dimension_is_refused(
    meant: Dimension, other: Dimension, number: object, data: st.DataObject
) -> None:
    unit = data.draw(st.sampled_from(sorted(other.units)))
    assume(unit not in meant.units and number)
    with pytest.raises(ValueError, match=f"write {meant.name} such as {meant.example}"):
        meant.parse(f"{number}{unit}")


@given(st.sampled_from([seconds, count, size, share, points, interval]), st.text())
def test_any_text_gives_a_quantity_or_one_line(parse: Callable[[str], object], text: str) -> None:
    message = ""
    try:
        parse(text)
    except ValueError as refused:
        message = str(refused)
    assert not message or "such as" in message or "must be" in message


def test_examples_are_of_their_dimension() -> None:
    assert [dimension.parse(dimension.example) for dimension in DIMENSIONS] == [0.01, 5e6, 32e6, 0.2, 0.005]


@pytest.mark.parametrize(
    ("dimension", "value", "text"),
    [(TIME, 0.002, "2ms"), (TIME, 300, "5min"), (COUNT, 5e7, "50M"), (SIZE, 32 * 2**20, "32MiB"), (SHARE, 0.2, "20%"),
     (POINTS, 0.005, "0.5pp"), (COUNT, 64, "64"), (TIME, 0, "0us"), (TIME, 335, "335s")],
)  # fmt: skip
def test_quantities_are_written_in_a_suitable_unit(dimension: Dimension, value: float, text: str) -> None:
    assert dimension.format(value) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", Interval(seconds=30)), ("100", Interval(steps=100)), ("100 steps", Interval(steps=100)),
     ("1 step", Interval(steps=1)), ("2min", Interval(seconds=120))],
)  # fmt: skip
def test_an_interval_is_a_time_or_a_number_of_steps(text: str, expected: Interval) -> None:
    assert interval(text) == expected


@pytest.mark.parametrize("text", ["0", "-3", "5M", "often", "30s steps", "1.5 steps", "0 steps", "20%", ""])
def test_other_intervals_are_refused(text: str) -> None:
    if text == "5M":
        assert interval("5M steps") == Interval(steps=5_000_000)
    with pytest.raises(ValueError, match="must be a time such as 30s or a number of steps such as 100"):
        interval(text)
