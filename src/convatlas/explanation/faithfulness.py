"""Faithfulness: whether the pixels that a heat map marks are those that the network uses.

Insertion adds the pixels to a blurred image, the most important ones first; deletion replaces them by the mean color
(Petsiuk et al. 2018, section 4.2). The area under the curve of the network's confidence is high for insertion and low
for deletion if the map is faithful. Both depend on the image, so a random map and an edge map are measured beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.explanation.control_maps import edge_map, random_map

STEPS = 16
"""Default number of steps from no pixel to all pixels."""

BATCH = 16
"""Images in a forward pass."""

BLUR = 1 / 20
"""Standard deviation of the blur as a share of the short side: 11 px at 224 px."""

MARGIN = 0.02
"""A map must be better than the control maps by more than this; a few pixels in another order change as much."""

Confidence = Callable[[Tensor], Tensor]
"""Returns the network's confidence (n,), in [0, 1], for pixels (n, [frames,] channels, h, w)."""


@dataclass(frozen=True, repr=False)
class Curves:
    """Confidence (steps + 1,) while pixels are inserted, and while they are deleted, in equal steps."""

    insertion: Tensor
    deletion: Tensor

    @property
    def insertion_area(self) -> float:
        """Area under the insertion curve; higher is better."""
        return area(self.insertion)

    @property
    def deletion_area(self) -> float:
        """Area under the deletion curve; lower is better."""
        return area(self.deletion)

    @property
    def difference(self) -> float:
        """Insertion minus deletion area, from -1 to 1; higher is better."""
        return self.insertion_area - self.deletion_area

    def to_plain(self) -> dict[str, Any]:
        curves = {"insertion_curve": self.insertion, "deletion_curve": self.deletion}
        return {
            "insertion": self.insertion_area, "deletion": self.deletion_area, "difference": self.difference,
            **{name: [round(value, 4) for value in curve.tolist()] for name, curve in curves.items()},
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Faithfulness:
    """The curves of a heat map, of a random map and of the edge map of the same image."""

    heatmap: Curves
    random: Curves
    edges: Curves

    @property
    def controls(self) -> dict[str, float]:
        """Insertion minus deletion of the control maps."""
        return {"an edge map": self.edges.difference, "a random map": self.random.difference}

    @property
    def is_better(self) -> bool:
        """Whether insertion minus deletion is above that of both control maps, by more than `MARGIN`."""
        return self.heatmap.difference > max(self.controls.values()) + MARGIN

    @property
    def verdict(self) -> str:
        """Whether the map is better than the control maps, in one sentence."""
        own = self.heatmap.difference
        worse = {name: value for name, value in self.controls.items() if value >= own}
        close = {name: value for name, value in self.controls.items() if value >= own - MARGIN}
        words, named = ("no better than", worse) if worse else ("not clearly better than", close)
        if self.is_better:
            words, named = "better than", self.controls
        numbers = " and ".join(f"{name} ({value:z.2f})" for name, value in named.items())
        warning = "" if self.is_better else ": do not rely on this map"
        return f"insertion minus deletion {own:z.2f}, {words} {numbers}{warning}"

    def to_plain(self) -> dict[str, Any]:
        maps = {"heatmap": self.heatmap, "random": self.random, "edges": self.edges}
        return {**{name: curves.to_plain() for name, curves in maps.items()}, "verdict": self.verdict}

    def __repr__(self) -> str:
        return self.verdict


def measure_faithfulness(
    confidence: Confidence, pixels: Tensor, heatmap: Tensor, grid: Sequence[int], *, steps: int = STEPS
) -> Faithfulness:
    """Return the insertion and deletion curves of a map and of its control maps.

    pixels: ([frames,] channels, h, w), values from 0 to 255. heatmap: ([frames,] h, w). grid: the size at which it was
    computed, before it was resized; see `edge_map`. Needs 6 * steps - 3 forward passes.
    """
    size = tuple(heatmap.shape)
    noise = random_map(pixels, grid, size)
    maps = (heatmap, noise, edge_map(pixels, grid, size))
    return Faithfulness(*measure_curves(confidence, pixels, maps, noise, steps=steps))


def measure_curves(
    confidence: Confidence, pixels: Tensor, maps: Sequence[Tensor], noise: Tensor, *, steps: int = STEPS
) -> list[Curves]:
    """Return the curves of each map ([frames,] h, w). noise: a random map, which orders pixels of equal value."""
    ranks = [rank_pixels(values, noise) for values in maps]
    empty = {True: blur(pixels), False: mean_color(pixels)}
    inner = [k * noise.numel() // steps for k in range(1, steps)]
    changed = [(rank, count, insert) for rank in ranks for insert in empty for count in inner]

    def image(number: int) -> Tensor:
        if number < 3:
            return (pixels, *empty.values())[number]
        rank, count, insert = changed[number - 3]
        first = (rank < count).unsqueeze(-3)
        return torch.where(first, pixels, empty[insert]) if insert else torch.where(first, empty[insert], pixels)

    numbers = torch.arange(len(changed) + 3).split(BATCH)
    values = torch.cat([confidence(torch.stack([image(i) for i in part.tolist()])).float().cpu() for part in numbers])
    whole, blurred, flat = values[:3].split(1)
    parts = values[3:].reshape(len(maps), 2, len(inner))
    return [Curves(torch.cat([blurred, up, whole]), torch.cat([whole, down, flat])) for up, down in parts]


def area(curve: Tensor) -> float:
    """Return the area under a curve (n,) over [0, 1], by trapezoids."""
    return float(torch.trapezoid(curve.double(), dx=1 / (len(curve) - 1)))


def rank_pixels(heatmap: Tensor, noise: Tensor) -> Tensor:
    """Return the rank of each pixel, 0 for the most important one; noise, a random map, orders equal pixels."""
    order = (heatmap.double() + 1e-9 * noise.double()).flatten().argsort(descending=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks.view(heatmap.shape)


def blur(pixels: Tensor) -> Tensor:
    """Return an image or clip ([frames,] channels, h, w) blurred by a Gaussian; see `BLUR`."""
    sigma = max(BLUR * min(pixels.shape[-2:]), 0.5)
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    values = pixels.float().reshape(-1, 1, *pixels.shape[-2:])
    values = F.conv2d(F.pad(values, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    values = F.conv2d(F.pad(values, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    return _as(pixels, values.view(pixels.shape))


def mean_color(pixels: Tensor) -> Tensor:
    """Return an image or clip ([frames,] channels, h, w) whose pixels all have its mean color."""
    axes = (-1, -2) if pixels.ndim == 3 else (-1, -2, -4)
    return _as(pixels, pixels.float().mean(axes, keepdim=True).expand(pixels.shape))


def _as(pixels: Tensor, values: Tensor) -> Tensor:
    """Return values in the type of pixels; those of bytes are rounded."""
    return values.round().clamp(0, 255).byte() if pixels.dtype == torch.uint8 else values.to(pixels.dtype)
