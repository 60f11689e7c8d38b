"""Heat maps: how much each position of the network's view speaks for a score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class HeatMap:
    """The heat map of one image or clip.

    values: float32 ([frames,] h, w) in [0, 1] over the network's view. grid: the size at which it was computed, before
    it was resized. completeness_error: of integrated gradients; see `attribution.integrated_gradients`.
    """

    values: Tensor
    grid: tuple[int, ...]
    completeness_error: float | None = None


def scale_to_one(maps: Tensor) -> Tensor:
    """Return non-negative maps (n, *space), each divided by its maximum; a map of zeros stays as it is."""
    highest = maps.flatten(1).amax(1).clamp(min=1e-30)
    return maps / highest.view(-1, *[1] * (maps.ndim - 1))
