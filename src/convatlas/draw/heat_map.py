"""Heat maps over their image, and the curves that measure them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.draw.style import INK, NOTE, RIGHT, TRAIN, style_axes

MIN_SIDE = 224
"""Smaller images are enlarged by a whole factor, because outlines need this room."""

COLORMAP = "inferno"
"""Its brightness increases with the value, so that it can be read without color."""

OPACITY = 0.55

OUTLINE = 0.5
"""Value whose outline is drawn."""

FINE = 0.5
"""Maps on a grid of at least this share of the pixels are points: they have no outline, and the largest values, of
single pixels, are cut off."""

CUT = 0.995
"""Quantile of a fine map that gets the color of the maximum."""

LINES: Mapping[str, Mapping[str, Any]] = {
    "heat map": {"color": RIGHT, "linestyle": "-", "linewidth": 2.0, "marker": "o"},
    "edge map": {"color": TRAIN, "linestyle": "--", "linewidth": 1.3, "marker": "s"},
    "random map": {"color": NOTE, "linestyle": ":", "linewidth": 1.3, "marker": "^"},
}
"""Lines of the curves; without color their styles and markers differ."""


def overlay(pixels: Tensor, heatmap: Tensor, *, fine: bool = False) -> Tensor:
    """Return a gray image below the colors of its heat map, with the outline of the values above 0.5: (3, h, w) uint8.

    pixels: (channels, h, w), from 0 to 255. heatmap: (h, w) in [0, 1]. fine: see `FINE`. An image of less than
    `MIN_SIDE` pixels is enlarged.
    """
    import matplotlib

    factor = enlargement(pixels)
    gray = enlarge(pixels[:3].float().mean(0, keepdim=True), factor)
    size = (heatmap.shape[-2] * factor, heatmap.shape[-1] * factor)
    values = F.interpolate(heatmap[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]
    if fine:
        values = values / max(float(values.flatten().quantile(CUT)) if values.numel() < 2**24 else 1.0, 1e-12)
    values = values.clamp(0, 1)
    colors = torch.from_numpy(matplotlib.colormaps[COLORMAP](values.numpy())[..., :3]).permute(2, 0, 1) * 255
    drawn = (1 - OPACITY) * (0.35 * 255 + 0.65 * gray) + OPACITY * colors
    if not fine:
        inside = (values >= OUTLINE)[None, None].float()
        width = max(1, round(min(size) / 160))
        inner, outer = inside + F.max_pool2d(-_padded(inside, width), 2 * width + 1, 1), _grown(inside, width) - inside
        drawn = drawn.where(~outer[0].bool(), torch.tensor(0.0)).where(~inner[0].bool(), torch.tensor(255.0))
    return drawn.round().clamp(0, 255).byte()


def _padded(inside: Tensor, width: int) -> Tensor:
    """Return a mask whose border values continue outside, so that the border of the image is no outline."""
    return F.pad(inside, (width,) * 4, mode="replicate")


def _grown(inside: Tensor, width: int) -> Tensor:
    return F.max_pool2d(_padded(inside, width), 2 * width + 1, 1)


def enlargement(pixels: Tensor) -> int:
    """Return the factor by which an image (channels, h, w) is enlarged."""
    return max(1, math.ceil(MIN_SIDE / max(pixels.shape[-2:])))


def enlarge(pixels: Tensor, factor: int) -> Tensor:
    """Return images (..., h, w) whose pixels are repeated in both directions."""
    return pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1) if factor > 1 else pixels


def plot_curves(axes: Any, curves: Mapping[str, Tensor], *, title: str, x: str, legend: bool) -> None:
    """Draw confidence curves (steps + 1,) over the share of pixels; the names are those of `LINES`."""
    for name, values in curves.items():
        shares = torch.linspace(0, 100, len(values))
        axes.plot(shares, values, label=name, markersize=3.2, markevery=2, **LINES[name])
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.02, 1.02)
    style_axes(axes, x=x, y="confidence", title=title)
    if legend:
        axes.legend(frameon=False, fontsize=7, labelcolor=INK, handlelength=2.6, loc="best")
