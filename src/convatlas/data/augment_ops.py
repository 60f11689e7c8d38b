"""Random operations on color and geometry: TrivialAugment and RandAugment, in whole batches on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.data.decode.pixels import LUMA
from convatlas.data.rng import BatchRandom, Purpose

Policy = Literal["none", "trivial", "rand"]
"""trivial: one operation of random strength (Müller, Hutter 2021); rand: two of strength `magnitude` (Cubuk 2020)."""

MAX_MAGNITUDE = 30
"""The magnitude of RandAugment at which operations have their full strength."""

ColorOperation = Callable[[Tensor, Tensor], Tensor]
"""(pixels (batch, channels, h, w) from 0 to 255, strength (batch,)) -> pixels."""


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """other + factor (pixels - other), within 0 to 255."""
    return torch.lerp(other.expand_as(pixels), pixels, factor.view(-1, 1, 1, 1)).clamp(0, 255)


def to_gray(pixels: Tensor) -> Tensor:
    """Return the brightness (batch, 1, h, w): the luma of ITU-R 601 of three channels, the mean of other numbers."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    weights = pixels.new_tensor(LUMA).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True)


def adjust_brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(pixels, torch.zeros_like(pixels[:, :1]), factor)


def adjust_contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(pixels, to_gray(pixels).mean((2, 3), keepdim=True), factor)


def adjust_saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(pixels, to_gray(pixels), factor)


def sharpen(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed copy, whose border is not smoothed, as in Pillow."""
    kernel = pixels.new_tensor(((1, 1, 1), (1, 5, 1), (1, 1, 1))).div_(13).expand(pixels.shape[1], 1, 3, 3)
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(pixels, kernel, groups=pixels.shape[1])
    return _blend(pixels, smooth, factor)


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    step = torch.pow(2, 8 - bits.round()).view(-1, 1, 1, 1)
    return (pixels / step).floor() * step


def solarize(pixels: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(pixels >= threshold.view(-1, 1, 1, 1), 255 - pixels, pixels)


def autocontrast(pixels: Tensor, _: Tensor) -> Tensor:
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(high > low, (pixels - low) * (255 / (high - low).clamp(min=1e-6)), pixels)


def equalize(pixels: Tensor, _: Tensor) -> Tensor:
    """Equalize the histogram of each channel, as Pillow does."""
    n, c, h, w = pixels.shape
    values = pixels.round().clamp(0, 255).long().view(n * c, h * w)
    counts = torch.zeros(n * c, 256, device=pixels.device, dtype=torch.long)
    counts.scatter_add_(1, values, torch.ones_like(values))
    last = counts.gather(1, values.amax(1, keepdim=True))
    step = (h * w - last) // 255
    table = ((counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)).clamp(0, 255)
    spread = table.gather(1, values).to(pixels.dtype).view_as(pixels)
    return torch.where((step > 0).view(n, c, 1, 1), spread, pixels)


@dataclass(frozen=True)
class Operation:
    """An operation with its strength at magnitude 0 and 1.

    color: the function that changes colors; or entry: the place in the 2x3 matrix that changes the geometry. signed:
    whether the strength gets a random sign.
    """

    name: str
    low: float
    high: float
    signed: bool = False
    color: ColorOperation | None = None
    entry: tuple[int, int] | None = None


OPERATIONS: tuple[Operation, ...] = (
    Operation("identity", 0, 0),
    Operation("shear x", 0, 0.3, signed=True, entry=(0, 1)),
    Operation("shear y", 0, 0.3, signed=True, entry=(1, 0)),
    Operation("translate x", 0, 0.9, signed=True, entry=(0, 2)),  # as a fraction of half the side
    Operation("translate y", 0, 0.9, signed=True, entry=(1, 2)),
    Operation("rotate", 0, math.radians(30), signed=True),
    Operation("brightness", 0, 0.9, signed=True, color=adjust_brightness),
    Operation("color", 0, 0.9, signed=True, color=adjust_saturation),
    Operation("contrast", 0, 0.9, signed=True, color=adjust_contrast),
    Operation("sharpness", 0, 0.9, signed=True, color=sharpen),
    Operation("posterize", 8, 4, color=posterize),
    Operation("solarize", 255, 0, color=solarize),
    Operation("autocontrast", 0, 0, color=autocontrast),
    Operation("equalize", 0, 0, color=equalize),
)
WIDE_STRENGTH = {
    "shear x": 0.99,
    "shear y": 0.99,
    "translate x": 0.29,
    "translate y": 0.29,
    "rotate": math.radians(135),
    "brightness": 0.99,
    "color": 0.99,
    "contrast": 0.99,
    "sharpness": 0.99,
    "posterize": 2,
}
"""The strength at magnitude 1 in TrivialAugment (wide), if it differs from that in RandAugment."""


def apply_operations(pixels: Tensor, random: BatchRandom, *, policy: Policy, magnitude: int, fill: int) -> Tensor:
    """Apply random operations to each image: one of random strength (trivial), or two of the given magnitude (rand)."""
    for turn in range(1 if policy == "trivial" else 2):
        chosen = (random.uniform(Purpose.OPERATION + turn) * len(OPERATIONS)).long()
        if policy == "trivial":
            share = random.uniform(Purpose.STRENGTH + turn)
        else:
            share = torch.full_like(random.uniform(Purpose.STRENGTH), magnitude / MAX_MAGNITUDE)
        sign = torch.where(random.bernoulli(Purpose.SIGN + turn, 0.5), -1.0, 1.0)
        matrix = torch.eye(2, 3, device=pixels.device).repeat(len(pixels), 1, 1)
        for i, operation in enumerate(OPERATIONS):
            rows = (chosen == i).nonzero().flatten()
            if not len(rows):
                continue
            high = WIDE_STRENGTH.get(operation.name, operation.high) if policy == "trivial" else operation.high
            strength = operation.low + share[rows] * (high - operation.low)
            strength = strength * sign[rows] if operation.signed else strength
            if operation.color:
                factor = 1 + strength if operation.signed else strength
                pixels = pixels.index_copy(0, rows, operation.color(pixels[rows], factor))
            elif operation.entry:
                matrix[rows, operation.entry[0], operation.entry[1]] += strength
            elif operation.name == "rotate":
                cos, sin = strength.cos(), strength.sin()
                matrix[rows, :, :2] = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        warped = (matrix != torch.eye(2, 3, device=pixels.device)).flatten(1).any(1).nonzero().flatten()
        if len(warped):
            grid = F.affine_grid(matrix[warped], [len(warped), *pixels.shape[1:]], align_corners=False)
            moved_pixels = F.grid_sample(pixels[warped] - fill, grid, mode="bilinear", align_corners=False) + fill
            pixels = pixels.index_copy(0, warped, moved_pixels)
    return pixels.clamp(0, 255)
