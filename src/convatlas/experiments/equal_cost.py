"""Networks of equal cost: the candidate whose counted multiply-adds or parameters are nearest to a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from convatlas.core.cost import Cost, cost
from convatlas.errors import ExperimentError

Candidate = TypeVar("Candidate")

TOLERANCE = 0.02
"""Largest relative difference of costs that are called equal."""


def cost_of(build: Callable[[], nn.Module], shape: Sequence[int] | None = None) -> Cost:
    """Return the cost of a network that is built without memory.

    shape: (channels, h, w) of an image; by default that of the network.
    """
    with torch.device("meta"):
        return cost(build(), shape)


def nearest_cost(
    build: Callable[[Candidate], nn.Module], candidates: Iterable[Candidate], shape: Sequence[int] | None = None,
    **targets: float,
) -> Candidate:  # fmt: skip
    """Return the candidate whose cost is nearest to the targets, such as macs=1e6; the worst of several counts.

    shape: (channels, h, w) of an image; by default that of the network.
    Raises ExperimentError if it differs from a target by more than `TOLERANCE`.
    """

    def difference(candidate: Candidate) -> float:
        counted = cost_of(partial(build, candidate), shape)
        return max(abs(float(getattr(counted, name)) / target - 1) for name, target in targets.items())

    best, least = min(((each, difference(each)) for each in candidates), key=lambda pair: pair[1])
    if least > TOLERANCE:
        wanted = ", ".join(f"{target:,.0f} {name}" for name, target in targets.items())
        raise ExperimentError(f"nearest_cost: no candidate has {wanted}; {best!r} differs by {least:.1%}")
    return best


def check_equal(costs: Mapping[str, float], what: str) -> None:
    """Raise ExperimentError if numbers by arm differ by more than `TOLERANCE` of the smallest."""
    least, most = min(costs, key=lambda arm: costs[arm]), max(costs, key=lambda arm: costs[arm])
    if costs[most] > costs[least] * (1 + TOLERANCE):
        raise ExperimentError(
            f"{what} must be equal within {TOLERANCE:.0%}, got {costs[least]:,.0f} of {least} and "
            f"{costs[most]:,.0f} of {most}"
        )
