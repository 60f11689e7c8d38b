"""Depthwise convolutions in bfloat16 on CPUs: the two gradients for which oneDNN has no kernel of its own.

With a stride of two the gradient of the input, and with kernels wider than three that of the weights, take 10 to 40
times as long as the convolution. Here they are written as convolutions that are fast (docs/results.md has the times).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Sides = tuple[int, int]
"""Of height and width."""


def _slow(network: nn.Module) -> Iterator[nn.Conv2d]:
    """Yield the depthwise convolutions whose gradients can be taken here, and are slow as torch has them."""
    for layer in network.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.groups == layer.in_channels == layer.out_channels > 1
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
            and (layer.stride != (1, 1) or layer.kernel_size[1] > 3)
        ):
            yield layer


def install(network: nn.Module) -> None:
    """Let the depthwise convolutions of a network take their gradients here while it learns in bfloat16."""
    for layer in _slow(network):
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def _forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        plain: Tensor = layer._conv_forward(x, layer.weight, layer.bias)
        return plain
    kind = torch.get_autocast_dtype("cpu")
    y: Tensor = _Depthwise.apply(x.to(kind), layer.weight.to(kind), layer.stride, layer.padding)
    return y if layer.bias is None else y + layer.bias.to(kind)[:, None, None]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, stride: Sides, padding: Sides) -> Tensor:
        context.save_for_backward(x, weight)
        context.stride, context.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = context.saved_tensors
        wanted_x, wanted_weight = context.needs_input_grad[:2]
        how = context.stride, context.padding
        of_x = _of_input(gradient, x, weight, *how) if wanted_x else None
        of_weight = _of_weight(gradient, x, weight, *how) if wanted_weight else None
        return of_x, of_weight, None, None


def _plain(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Sides, padding: Sides, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias as torch has them."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), mask
    )
    return found


def _of_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: Sides, padding: Sides) -> Tensor:
    """Return the gradient of the input: with strides, a convolution over the gradients with zeros between them."""
    kernel = weight.shape[2:]
    before = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
    if stride == (1, 1) or min(before) < 0:
        return _plain(gradient, x, weight, stride, padding, (True, False, False))[0]
    sides = [size + k - 1 for size, k in zip(x.shape[2:], kernel, strict=True)]
    shape = (*x.shape[:2], *sides)
    apart = torch.empty(shape, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    rows, columns = (
        slice(first, first + (count - 1) * step + 1, step)
        for first, count, step in zip(before, gradient.shape[2:], stride, strict=True)
    )
    apart[:, :, rows, columns] = gradient
    return F.conv2d(apart, weight.flip(2, 3), None, 1, 0, 1, len(weight))


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: Sides, padding: Sides) -> Tensor:
    """Return the gradient of the weights: wide kernels in strips of three columns, each that of a convolution."""
    width, step = weight.shape[3], stride[1]
    if width <= 3:
        return _plain(gradient, x, weight, stride, padding, (False, True, False))[1]
    found = torch.empty_like(weight)
    for left in [*range(0, width - 3, 3), width - 3]:
        strip, before = weight[..., left : left + 3], padding[1] - left
        after = (gradient.shape[3] - 1) * step + 3 - before - x.shape[3]
        seen = F.pad(x, (before, after, padding[0], padding[0]))  # cuts off where negative
        found[..., left : left + 3] = _plain(gradient, seen, strip, stride, (0, 0), (False, True, False))[1]
    return found
