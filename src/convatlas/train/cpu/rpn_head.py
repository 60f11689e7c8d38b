"""The head of a region proposal network, whose backward pass computes nothing but what is not zero.

A step samples 256 of the anchors of an image for its loss, of 200,000 in an image of 800 px. The gradient of the head's
outputs is zero everywhere else, and torch would multiply these zeros: a fifth of all products of a training step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from convatlas.core.compose import is_observed
from convatlas.train.cpu.boxes_fp32 import to_float32
from convatlas.train.swap_forward import swap_forward

Grads = tuple[Tensor | None, ...]


def _heads(network: nn.Module) -> Iterator[Any]:
    """Yield torchvision's heads whose layers are 3x3 convolutions with ReLU, and 1x1 convolutions."""
    rpn = sys.modules.get("torchvision.models.detection.rpn")  # a network that has one of its layers has imported it
    layers: list[Any] = list(network.modules())
    for layer in layers:
        if rpn and type(layer) is rpn.RPNHead and not any(is_observed(inner) for inner in layer.modules()):
            convolutions, outputs = _layers(layer)
            plain = all(
                type(each) is nn.Conv2d
                and (each.kernel_size, each.stride, each.groups, each.padding_mode) == (size, (1, 1), 1, "zeros")
                and each.padding == (size[0] // 2, size[1] // 2)
                and each.dilation == (1, 1)
                and each.bias is not None
                for layers, size in ((convolutions, (3, 3)), (outputs, (1, 1)))
                for each in layers
            )
            if plain and all([type(part) for part in block] == [nn.Conv2d, nn.ReLU] for block in layer.conv):
                yield layer


def _layers(head: Any) -> tuple[list[nn.Conv2d], list[nn.Conv2d]]:
    return [block[0] for block in head.conv], [head.cls_logits, head.bbox_pred]


def install(network: nn.Module) -> None:
    """Let the heads of region proposal networks compute their gradients here."""
    for layer in _heads(network):
        swap_forward(layer, _forward)


def _forward(head: Any, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    if not torch.is_grad_enabled():
        plain: tuple[list[Tensor], list[Tensor]] = to_float32(type(head).forward(head, x))
        return plain
    parameters = [parameter for layers in _layers(head) for each in layers for parameter in (each.weight, each.bias)]
    outputs = _Head.apply(len(x), *x, *parameters)
    return list(outputs[: len(x)]), list(outputs[len(x) :])


class _Head(torch.autograd.Function):
    """(number of maps, maps, weights and biases of the convolutions, of logits and of deltas) -> logits and deltas."""

    @staticmethod
    def forward(context: Any, number: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        maps, parameters = tensors[:number], tensors[number:]
        *convolutions, logits, deltas = zip(parameters[::2], parameters[1::2], strict=True)
        saved: list[Tensor] = []
        outputs: list[tuple[Tensor, Tensor]] = []
        for x in maps:
            saved.append(x)
            for weight, bias in convolutions:
                x = F.conv2d(x, weight, bias, padding=1).relu_()
                saved.append(x)
            outputs.append((F.conv2d(x, *logits).float(), F.conv2d(x, *deltas).float()))
        context.save_for_backward(*saved, *parameters)
        context.number, context.depth = number, len(convolutions)
        return *(each for each, _ in outputs), *(each for _, each in outputs)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *grads: Tensor) -> Grads:
        number, size = context.number, context.depth + 1
        saved, parameters = context.saved_tensors[: number * size], context.saved_tensors[number * size :]
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        needs_maps = any(context.needs_input_grad[1 : 1 + number])
        grad_maps: list[Tensor | None] = []
        with torch.autocast("cpu", enabled=False):
            for level in range(number):
                maps = saved[level * size : (level + 1) * size]
                pair = grads[level], grads[number + level]
                grad_maps.append(_level_backward(maps, *pair, parameters, sums, needs_map=needs_maps))
        return None, *grad_maps, *sums


def _level_backward(
    maps: Sequence[Tensor], grad_logits: Tensor, grad_deltas: Tensor, parameters: Sequence[Tensor],
    sums: Sequence[Tensor], *, needs_map: bool,
) -> Tensor | None:  # fmt: skip
    """Add the gradients of the parameters to `sums`; return that of the first map.

    maps: (n, c, h, w): the input, then the output of each convolution.
    """
    n, channels, height, width = maps[0].shape
    nonzero = (grad_logits != 0).any(1) | (grad_deltas != 0).any(1)
    at = nonzero.flatten().nonzero()[:, 0]  # indices of pixels in (n, h, w)
    grad = torch.zeros(len(at), channels)
    features = _rows(maps[-1], at)
    for i, grad_output in ((-4, grad_logits), (-2, grad_deltas)):
        rows = _rows(grad_output, at)
        sums[i].add_((rows.T @ features).view_as(sums[i]))
        sums[i + 1].add_(rows.sum(0))
        grad += rows @ parameters[i].flatten(1)
    for depth in reversed(range(len(maps) - 1)):
        weight = parameters[2 * depth]
        grad = grad * (_rows(maps[depth + 1], at) > 0)
        neighbors, inside = _neighbors(at, height, width)
        patches = _rows(maps[depth], neighbors.flatten()).view(len(at), 9, channels) * inside[:, :, None]
        taps = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # (c, 9 * c)
        sums[2 * depth].add_((grad.T @ patches.flatten(1)).view(-1, 3, 3, channels).permute(0, 3, 1, 2))
        sums[2 * depth + 1].add_(grad.sum(0))
        if depth == 0 and not needs_map:
            return None
        spread = (grad @ taps).view(-1, channels)[inside.flatten()]
        at, index = neighbors.flatten()[inside.flatten()].unique(return_inverse=True)
        grad = torch.zeros(len(at), channels).index_add_(0, index, spread)
    grad_map = torch.zeros(n * height * width, channels, dtype=maps[0].dtype)
    grad_map[at] = grad.to(maps[0].dtype)
    return grad_map.view(n, height, width, channels).permute(0, 3, 1, 2)


def _rows(maps: Tensor, at: Tensor) -> Tensor:
    """Return the values at pixels as (pixels, channels) float32; maps (n, c, h, w)."""
    plane = maps.shape[2] * maps.shape[3]
    image, pixel = at // plane, at % plane
    return maps.flatten(2)[image, :, pixel].float()


def _neighbors(at: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the indices (pixels, 9) of the pixels under a 3x3 kernel, and which of them are inside of the map."""
    y, x = at // width % height, at % width
    shifts = torch.arange(-1, 2)
    rows, columns = y[:, None, None] + shifts[:, None], x[:, None, None] + shifts
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved = at[:, None, None] + shifts[:, None] * width + shifts
    return torch.where(inside, moved, at[:, None, None]).flatten(1), inside.flatten(1)
