"""Quantities as text: a number with the unit of its dimension, such as 10ms, 30M, 5MB, 80% and 0.5pp.

One function reads each dimension. All of them raise ValueError with a message that names the dimension that is meant:
`5M is a count; write a time such as 10ms`. A number without a unit is accepted where it cannot be misread: counts,
shares in [0, 1], and zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from numbers import Real

from convatlas.errors import InputError


@dataclass(frozen=True)
class Dimension:
    """A kind of quantity.

    name: with its article, as it is written into messages.
    units: symbol -> size in the base unit. The empty symbol stands for a number without a unit.
    example: a quantity of this dimension, as a user would write it.
    """

    name: str
    units: Mapping[str, str]
    example: str

    def parse(self, text: str) -> float:
        """Return the quantity in the base unit. Raises ValueError for another dimension and for a negative number."""
        match = _NUMBER.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not {self.name}; write {self.name} such as {self.example}")
        number, unit = Decimal(match["number"]), match["unit"]
        if unit not in self.units and not (unit == "" and number == 0):
            raise ValueError(f"{text} {_describe_unit(unit)}; write {self.name} such as {self.example}")
        value = float(number * Decimal(self.units.get(unit, "1")))
        if value < 0:
            raise ValueError(f"must be {self.name} >= 0, got {text}")
        if not isfinite(value):
            raise ValueError(f"must be a finite number, got {text}")
        return value

    def format(self, value: float) -> str:
        """Return a text that `parse` reads back as `value`, in the largest unit in which it is short."""
        exact = Decimal(repr(float(value)))
        texts = [
            f"{(exact / Decimal(size)).normalize():f}{unit}"
            for unit, size in sorted(self.units.items(), key=lambda item: -float(item[1]))
        ]
        large = [text for text, size in zip(texts, sorted(map(float, self.units.values()), reverse=True), strict=True)
                 if size <= value and self.parse(text) == value]  # fmt: skip
        return next((text for text in large if len(text) <= 12), texts[-1])


_NUMBER = re.compile(r"(?P<number>[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?)\s*(?P<unit>[^\W\d_]*%?)")

TIME = Dimension("a time", {"us": "1e-6", "ms": "1e-3", "s": "1", "min": "60", "h": "3600", "d": "86400"}, "10ms")
COUNT = Dimension("a count", {"": "1", "k": "1e3", "M": "1e6", "G": "1e9"}, "5M")
SIZE = Dimension(
    "a size in bytes",
    {"B": "1", "kB": "1e3", "MB": "1e6", "GB": "1e9", "TB": "1e12"}
    | {f"{prefix}iB": str(1024**power) for power, prefix in enumerate("KMGT", 1)},
    "32MB",
)
SHARE = Dimension("a share", {"": "1", "%": "1e-2"}, "20%")
POINTS = Dimension("a difference in percentage points", {"pp": "1e-2"}, "0.5pp")
DIMENSIONS = (TIME, COUNT, SIZE, SHARE, POINTS)


def _describe_unit(unit: str) -> str:
    """Return what a quantity with this unit is, as the predicate of a sentence."""
    if not unit:
        return "has no unit"
    other = next((dimension for dimension in DIMENSIONS if unit in dimension.units), None)
    return f"is {other.name}" if other else f"has the unknown unit {unit!r}"


def seconds(text: str) -> float:
    """Return a time in seconds: 10ms, 30s, 5min, 1h."""
    return TIME.parse(text)


def count(text: str) -> int:
    """Return a count: 64, 5M, 2.5k. Raises ValueError unless it is an integer."""
    return _integer(COUNT, text)


def size(text: str) -> int:
    """Return a size in bytes: 5MB, 32MiB. Raises ValueError unless it is an integer number of bytes."""
    return _integer(SIZE, text)


def as_number(value: object, dimension: Dimension, where: str) -> float:
    """Return a quantity that a program gives as a number in the base unit, or as text such as "5M".

    Raises InputError, which begins with `where`, for anything else.
    """
    if isinstance(value, str):
        try:
            return dimension.parse(value)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{where}: must be a number, or a text such as {dimension.example!r}, got {value!r}")
    return float(value)


def share(text: str) -> float:
    """Return a share in [0, 1]: 0.2 or 20%."""
    value = SHARE.parse(text)
    if value > 1:
        raise ValueError(f"must be a share in [0, 1], got {text}; write it such as {SHARE.example}")
    return value


def points(text: str) -> float:
    """Return a difference of two shares, given in percentage points: 0.5pp is 0.005."""
    value = POINTS.parse(text)
    if value > 1:
        raise ValueError(f"must be at most 100pp, got {text}")
    return value


def _integer(dimension: Dimension, text: str) -> int:
    value = dimension.parse(text)
    if value != int(value):
        raise ValueError(f"must be an integer, got {text}")
    return int(value)


@dataclass(frozen=True)
class Interval:
    """How often something is repeated: every `seconds`, or every `steps`; the other one is 0."""

    seconds: float = 0.0
    steps: int = 0


def interval(text: str) -> Interval:
    """Return an interval: a time such as 30s, or a number of steps such as 100 or `100 steps`."""
    number = text.strip().removesuffix("steps").removesuffix("step").strip()
    if number != text.strip() or number.isdecimal():
        try:
            steps = count(number)
        except ValueError:
            steps = 0
        if steps < 1:
            raise ValueError(f"must be a time such as 30s or a number of steps such as 100, got {text}")
        return Interval(steps=steps)
    try:
        return Interval(seconds=seconds(text))
    except ValueError:
        raise ValueError(f"must be a time such as 30s or a number of steps such as 100, got {text}") from None
