"""Control maps, which an explanation must be better than: random noise, and the edges of the image."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
"""Horizontal derivative; its transpose is the vertical one (Sobel and Feldman 1968)."""


def random_map(pixels: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return uniform noise on a grid, resized to `size`: the same for the same image.

    pixels: the image or clip, whose bytes are the seed. grid, size: ([frames,] h, w).
    """
    generator = torch.Generator().manual_seed(zlib.crc32(pixels.contiguous().numpy().tobytes()))
    return resize_map(torch.rand(tuple(grid), generator=generator), size)


def edge_map(pixels: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return the magnitude of the Sobel gradient, averaged over the cells of a grid and resized to `size`.

    pixels: ([frames,] channels, h, w). grid, size: ([frames,] h, w). The grid is that of the explanation, because finer
    maps have other insertion and deletion curves whatever they show.
    """
    gray = pixels.float().mean(-3).reshape(-1, 1, *pixels.shape[-2:])
    kernel = torch.tensor(SOBEL)
    padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    across, down = F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None]).unbind(1)
    magnitude = torch.hypot(across, down).reshape(*pixels.shape[:-3], *pixels.shape[-2:])
    return resize_map(pool_map(magnitude, grid), size)


def pool_map(values: Tensor, grid: Sequence[int]) -> Tensor:
    """Return a map ([frames,] h, w) averaged over the cells of a grid."""
    pool: Any = F.adaptive_avg_pool3d if len(grid) == 3 else F.adaptive_avg_pool2d
    pooled: Tensor = pool(values[None], tuple(grid))[0]
    return pooled


def resize_map(values: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map ([frames,] h, w) resized to `size`, linearly."""
    if tuple(values.shape) == tuple(size):
        return values
    mode = "trilinear" if values.ndim == 3 else "bilinear"
    return F.interpolate(values[None, None], tuple(size), mode=mode, align_corners=False)[0, 0]
