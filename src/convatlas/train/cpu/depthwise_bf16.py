"""Gradients of depthwise convolutions in bfloat16 on CPUs, for the two cases in which oneDNN has no kernel.

With stride 2 the gradient of the input, and with kernels wider than 3 that of the weight, take 10 to 40 times as long
as the forward pass. Here they are rewritten as convolutions that are fast (docs/benchmarks.md has the times).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from convatlas.train.swap_forward import swap_forward

Pair = tuple[int, int]
"""(height, width)"""


def is_slow(layer: nn.Module) -> bool:
    """Return whether a layer is a depthwise convolution whose gradients are slow in torch and can be computed here."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == layer.in_channels == layer.out_channels > 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and (layer.stride != (1, 1) or layer.kernel_size[1] > 3)
    )


def install(network: nn.Module) -> None:
    """Let the depthwise convolutions of a network compute their gradients here when they train under CPU autocast."""
    for layer in network.modules():
        if is_slow(layer):
            swap_forward(layer, _forward)


def _forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return convolve(layer, x, layer.weight, layer.bias)


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output of a slow layer with another weight and bias than its own."""
    if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        plain: Tensor = layer._conv_forward(x, weight, bias)
        return plain
    dtype = torch.get_autocast_dtype("cpu")
    y: Tensor = _Depthwise.apply(x.to(dtype), weight.to(dtype), layer.stride, layer.padding)
    return y if bias is None else y + bias.to(dtype)[:, None, None]


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of x (n, c, h, w) with weight (c, 1, kh, kw)."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        context.save_for_backward(x, weight)
        context.stride, context.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = context.saved_tensors
        needs_x, needs_weight = context.needs_input_grad[:2]
        geometry = context.stride, context.padding
        grad_x = _grad_x(grad_y, x, weight, *geometry) if needs_x else None
        grad_weight = _grad_weight(grad_y, x, weight, *geometry) if needs_weight else None
        return grad_x, grad_weight, None, None


def _torch_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return torch's gradients of x, weight and bias; `mask` selects those that are computed."""
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad_y, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), mask
    )
    return grads


def _grad_x(grad_y: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Return the gradient of x: with a stride, a convolution of grad_y with zeros inserted between its values."""
    kernel = weight.shape[2:]
    before = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
    if stride == (1, 1) or min(before) < 0:
        return _torch_backward(grad_y, x, weight, stride, padding, (True, False, False))[0]
    sides = [size + k - 1 for size, k in zip(x.shape[2:], kernel, strict=True)]
    shape = (*x.shape[:2], *sides)
    dilated = torch.empty(shape, dtype=grad_y.dtype, memory_format=torch.channels_last).zero_()
    rows, columns = (
        slice(first, first + (count - 1) * step + 1, step)
        for first, count, step in zip(before, grad_y.shape[2:], stride, strict=True)
    )
    dilated[:, :, rows, columns] = grad_y
    return F.conv2d(dilated, weight.flip(2, 3), None, 1, 0, 1, len(weight))


def _grad_weight(grad_y: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Return the gradient of the weight: wide kernels in strips of 3 columns, each as for a kernel of width 3."""
    width, step = weight.shape[3], stride[1]
    if width <= 3:
        return _torch_backward(grad_y, x, weight, stride, padding, (False, True, False))[1]
    grad_weight = torch.empty_like(weight)
    for left in [*range(0, width - 3, 3), width - 3]:
        strip, before = weight[..., left : left + 3], padding[1] - left
        after = (grad_y.shape[3] - 1) * step + 3 - before - x.shape[3]
        padded = F.pad(x, (max(before, 0), max(after, 0), padding[0], padding[0]))
        shifted = padded[..., max(-before, 0) : padded.shape[3] - max(-after, 0)]
        grads = _torch_backward(grad_y, shifted, strip, stride, (0, 0), (False, True, False))
        grad_weight[..., left : left + 3] = grads[1]
    return grad_weight
