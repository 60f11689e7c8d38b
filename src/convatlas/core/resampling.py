"""Resized images, and parts of resized images that are computed without the rest.

interpolation: "nearest", "bilinear" or "bicubic".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(
    pixels: Tensor, size: tuple[int, int], interpolation: str, *, antialias: bool, in_float32: bool = False
) -> Tensor:
    """Return images ([n,] channels, h, w), uint8 or float32, resized to `size` (height, width).

    in_float32: compute uint8 in float32 and round, as `torchvision.transforms.functional.resize` does. By default they
        are computed with weights of 16 bits, as in `torchvision.transforms.v2`; the results differ by 1 at most.
    """
    if in_float32 and pixels.dtype == torch.uint8 and interpolation != "nearest":
        images = pixels if pixels.ndim == 4 else pixels[None]
        resized = [_resize_in_float32(image[None], size, interpolation, antialias=antialias) for image in images]
        return torch.cat(resized) if pixels.ndim == 4 else resized[0][0]
    smooth = interpolation != "nearest"
    if min(pixels.shape[-2:]) == 1:  # torch reads uint8 of one row or column with unusual strides wrongly
        pixels = pixels.clone(memory_format=torch.contiguous_format)
    batch = F.interpolate(
        pixels if pixels.ndim == 4 else pixels[None],
        size,
        mode=interpolation,
        align_corners=False if smooth else None,
        antialias=antialias and smooth,
    )
    return batch if pixels.ndim == 4 else batch[0]


def _resize_in_float32(image: Tensor, size: tuple[int, int], interpolation: str, *, antialias: bool) -> Tensor:
    """Return one image (1, channels, h, w); one by one, because float32 takes four times the memory."""
    values = F.interpolate(image.float(), size, mode=interpolation, align_corners=False, antialias=antialias)
    return values.round_().clamp_(0, 255).to(torch.uint8)


def resize_part(
    pixels: Tensor, size: tuple[int, int], start: int, length: int, interpolation: str, *, antialias: bool
) -> Tensor:
    """Return `length` rows, or columns if `size` is wider than high, from `start` on of images resized to `size`.

    Time and memory follow `length`, not the long side of `size`. The pixels are exactly those of `resize` if they are
    uint8 and antialiased, or nearest; others differ by the rounding of torch's coordinates, uint8 by at most 2.
    """
    rows = size[0] > size[1]
    axis = -2 if rows else -1
    first, matrix, largest = _weights(
        pixels.shape[axis], size[axis], torch.arange(start, start + length), interpolation, antialias=antialias
    )
    part = pixels.narrow(axis, first, matrix.shape[1])
    # columns are resampled before rows, with rounding in between, as torch does
    if rows:
        part = resize(part, (matrix.shape[1], size[1]), interpolation, antialias=antialias)
        return _resample(part, matrix, largest, rows=True)
    part = _resample(part, matrix, largest, rows=False)
    return resize(part, (size[0], length), interpolation, antialias=antialias)


def _resample(pixels: Tensor, matrix: Tensor, largest: float, *, rows: bool) -> Tensor:
    """Multiply rows or columns of images by a matrix of weights.

    uint8: as torch, with weights of 16 bits. Sums of products of integers are exact in float64.
    """
    if pixels.dtype == torch.uint8:
        bits = next(bits for bits in range(23) if bits == 22 or int(0.5 + largest * 2 ** (bits + 1)) >= 2**15)
        matrix = (matrix * 2**bits + torch.where(matrix < 0, -0.5, 0.5)).trunc()
    values = matrix @ pixels.double() if rows else pixels.double() @ matrix.T
    if pixels.dtype == torch.uint8:
        values = ((values + 2 ** (bits - 1)) / 2**bits).floor().clamp(0, 255)
    return values.to(pixels.dtype)


def _weights(
    inputs: int, outputs: int, numbers: Tensor, interpolation: str, *, antialias: bool
) -> tuple[int, Tensor, float]:
    """Return how some outputs of an axis are computed: (first input, weights (outputs, inputs), largest weight of all).

    numbers: (n,) of the outputs among all `outputs`.
    """
    index, weights = _taps(inputs, outputs, numbers, interpolation, antialias=antialias)
    first = int(index.min())
    matrix = torch.zeros(len(numbers), int(index.max()) + 1 - first, dtype=torch.float64)
    matrix.scatter_add_(1, index - first, weights)
    # the largest weight of all outputs sets the precision; of an enlarged axis, that of the first output does, too
    others = torch.arange(outputs if inputs > outputs else 1)
    return first, matrix, float(_taps(inputs, outputs, others, interpolation, antialias=antialias)[1].max())


def _taps(inputs: int, outputs: int, numbers: Tensor, interpolation: str, *, antialias: bool) -> tuple[Tensor, Tensor]:
    """Return the inputs of each output, and their weights: (n, taps), as torch's `interpolate` has them."""
    scale = inputs / outputs
    if interpolation == "nearest":
        index = (numbers.float() * torch.tensor(scale, dtype=torch.float32)).long()[:, None].clamp(max=inputs - 1)
        return index, torch.ones(index.shape, dtype=torch.float64)
    stretch = max(scale, 1.0) if antialias else 1.0
    support = (1 if interpolation == "bilinear" else 2) * stretch
    center = scale * (numbers.double() + 0.5)
    start = center - support + 0.5
    start = start.trunc().clamp(min=0) if antialias else start.floor()
    index = start.long()[:, None] + torch.arange(2 * math.ceil(support) + 1)
    distance = (index - center[:, None] + 0.5) / stretch
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance, -0.5 if antialias else -0.75)
    if antialias:  # what lies outside does not count; without antialiasing, the edge is repeated
        weights = weights.where(index < (center + support + 0.5).long().clamp(max=inputs)[:, None], 0)
        weights = weights / weights.sum(1, keepdim=True)
    return index.clamp(0, inputs - 1), weights


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """The convolution kernel of Keys (1981) with parameter `a`."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return near.where(x < 1, far.where(x < 2, 0))
