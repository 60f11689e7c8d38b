"""Ticks of logarithmic axes: two to eight, in plain numbers, for any range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

MAX_DECADES = 1.5
"""Above this length of an axis, in powers of ten, only powers of ten are labeled."""

MAX_TICKS = 6

SMALLEST, LARGEST = 1e-300, 1e300
"""The range that an axis can have."""

MIN_RATIO = 1.02
"""Minimum ratio of the ends of an axis, so that rounding errors do not look like a curve."""

LARGEST_PLAIN, SMALLEST_PLAIN = 100_000, 0.0005
"""Between these, numbers are written without an exponent and without a unit prefix."""

PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def log_ticks(low: float, high: float) -> list[float]:
    """Return the ticks of a logarithmic axis from `low` to `high`, 0 < low < high.

    Powers of ten where the axis is longer than `MAX_DECADES`; otherwise the multiples 1, 2, 5 or 1, 3 of them, or
    evenly spaced numbers, whichever gives three to six.
    """
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if math.log10(high / low) > MAX_DECADES and last > first:
        step = -(-(last - first + 1) // MAX_TICKS)
        return [10.0**power for power in range(last - (last - first) // step * step, last + 1, step)]
    for ticks in (_multiples(low, high, (1, 2, 5)), _multiples(low, high, (1, 3))):
        if 3 <= len(ticks) <= MAX_TICKS:
            return ticks
    return min(_evenly_spaced(low, high), key=lambda ticks: (abs(len(ticks) - 4), len(ticks)))


def _multiples(low: float, high: float, factors: Iterable[int]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    values = (float(f"{factor}e{power}") for power in powers for factor in factors)
    return [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def _evenly_spaced(low: float, high: float) -> Iterator[list[float]]:
    """Yield ticks at multiples of 1, 2, 2.5 and 5 times the powers of ten around a quarter of the range."""
    power = math.floor(math.log10((high - low) / 4))
    for exponent in (power, power + 1):
        for factor in ("1", "2", "2.5", "5"):
            step = float(f"{factor}e{exponent}")
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if 2 <= last - first + 1 <= MAX_TICKS:
                yield [number * step for number in range(first, last + 1)]


def tick_texts(ticks: Iterable[float]) -> list[str]:
    """Return the ticks of one axis as text: with large ones all in k, M and G, such as 10k, 300k, 1M."""
    values = list(ticks)
    if not LARGEST_PLAIN <= max(map(abs, values), default=0) < 1000 * PREFIXES[0][0]:
        return [_text(value) for value in values]
    return [_prefixed(value) for value in values]


def _prefixed(value: float) -> str:
    factor, prefix = next((pair for pair in PREFIXES if abs(value) >= pair[0] * (1 - 1e-9)), (1.0, ""))
    return f"{_text(value / factor)}{prefix}"


def _text(value: float) -> str:
    """Return a number as text, such as 0.02, 3 or 1e-06."""
    rounded = float(f"{value:.6g}")
    if not SMALLEST_PLAIN <= abs(rounded) < LARGEST_PLAIN:
        return f"{rounded:g}"
    return f"{rounded:.12f}".rstrip("0").rstrip(".")


def set_log_axis(axis: Any, values: Iterable[float], *, min_ratio: float = MIN_RATIO, margin: float = 0.05) -> None:
    """Make an axis logarithmic and let it cover `values`; linear if one of them is 0 or less.

    axis: matplotlib's x or y axis. min_ratio: minimum ratio of its ends. margin: as a share of the axis, on both sides.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0:
        return
    log_low, log_high = (math.log10(min(max(end, SMALLEST), LARGEST)) for end in (min(finite), max(finite)))
    pad = max(margin * (log_high - log_low), (math.log10(min_ratio) - (log_high - log_low)) / 2)
    low, high = 10 ** max(log_low - pad, -300.0), 10 ** min(log_high + pad, 300.0)
    axes, name = axis.axes, axis.axis_name
    getattr(axes, f"set_{name}lim")(low, high)  # first: a scale that changes would compute limits of its own
    getattr(axes, f"set_{name}scale")("log")
    ticks = log_ticks(low, high)
    axis.set_ticks(ticks, tick_texts(ticks))
    axis.set_ticks([], minor=True)
