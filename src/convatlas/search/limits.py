"""Limits of a device: latency, parameters, MACs, bytes of the model file, memory; and the objective under a latency."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from convatlas.core.record import Record
from convatlas.errors import SearchError
from convatlas.search.counts import Counts
from convatlas.system.quantities import COUNT, SIZE, TIME, Dimension, as_number

Objective = Literal["hard", "soft"]
"""How accuracy and latency make one number; see `reward`."""

EXPONENTS: dict[Objective, tuple[float, float]] = {"hard": (0.0, -1.0), "soft": (-0.07, -0.07)}
"""Exponents of latency / target below and above the target (Tan et al. 2018, MnasNet, section 3, figure 3)."""

_LIMITS: dict[str, tuple[Dimension, str]] = {
    "latency_s": (TIME, "latency"), "params": (COUNT, "parameters"), "macs": (COUNT, "MACs"),
    "file_bytes": (SIZE, "model file"), "memory_bytes": (SIZE, "memory"),
}  # fmt: skip


def hard_limits(limits: Limits, objective: Objective) -> Limits:
    """Return the limits that no network may exceed; raises SearchError for a soft objective without a latency."""
    if objective == "hard":
        return limits
    if limits.latency_s is None:
        raise SearchError("objective: soft needs a latency to compare with; give --max-latency")
    return replace(limits, latency_s=None)


def reward(accuracy: float, latency: float, target: float, objective: Objective = "hard") -> float:
    """Return accuracy x (latency / target)^w, with the exponent w below and above the target; the accuracy without one.

    With "soft", twice the latency costs 5 % of the accuracy everywhere; with "hard" it costs half of it above the
    target, and nothing below.
    """
    if math.isinf(target):
        return accuracy
    below, above = EXPONENTS[objective]
    return float(accuracy * (latency / target) ** (below if latency <= target else above))


@dataclass(frozen=True)
class Limits(Record):
    """Upper limits for one image: latency in seconds, parameters, MACs, bytes of the model file and of the memory.

    None for no limit. Texts such as "8ms", "2M" and "4MB" become numbers.
    """

    error = SearchError

    latency_s: float | None = None
    params: float | None = None
    macs: float | None = None
    file_bytes: float | None = None
    memory_bytes: float | None = None

    def __post_init__(self) -> None:
        for name, (dimension, _) in _LIMITS.items():
            if isinstance(text := getattr(self, name), str):
                object.__setattr__(self, name, as_number(text, dimension, f"Limits: {name}"))
        super().__post_init__()
        for name, (dimension, _) in _LIMITS.items():
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise SearchError(f"Limits: {name} must be > 0, such as {dimension.example}, got {limit}")

    def __str__(self) -> str:
        texts = [
            f"{noun} {_text(dimension, limit)}"
            for name, (dimension, noun) in _LIMITS.items()
            if (limit := getattr(self, name)) is not None
        ]
        return ", ".join(texts) or "no limit"

    @property
    def target_s(self) -> float:
        """The limit of the latency in seconds; infinite if there is none."""
        return math.inf if self.latency_s is None else self.latency_s

    def compared_latency(self, latency_s: float) -> float:
        """Return the latency that is compared beside the reward: with a limit, 1 for all, because the reward has it."""
        return latency_s if self.latency_s is None else 1.0

    def exceeded(self, counts: Counts, latency_s: float | None = None) -> str:
        """Return which limit a network is above, and by what, such as "latency 9ms > 8ms"; empty if none."""
        values = {
            "latency_s": latency_s, "params": counts.parameters, "macs": counts.macs,
            "file_bytes": counts.file_bytes, "memory_bytes": counts.memory_bytes,
        }  # fmt: skip
        for name, value in values.items():
            limit = getattr(self, name)
            if limit is not None and value is not None and value > limit:
                dimension, noun = _LIMITS[name]
                return f"{noun} {_text(dimension, value)} > {_text(dimension, limit)}"
        return ""


def _text(dimension: Dimension, value: float) -> str:
    """Return a quantity with four digits."""
    rounded = float(f"{value:.4g}")
    return f"{rounded / 1e6:g}MB" if dimension is SIZE else dimension.format(rounded)
