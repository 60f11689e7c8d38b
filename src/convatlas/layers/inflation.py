"""Inflation of layers: from those of a network for images to those of a network for clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convatlas.core.compose import Join, Sum
from convatlas.core.network import Network, is_chain, named_layers
from convatlas.errors import SpecError
from convatlas.layers.channels import DropPath, PadShortcut, SamePad, Scale, Select
from convatlas.layers.init import is_empty

Pool = nn.MaxPool2d | nn.AvgPool2d
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Time:
    """How far a layer reaches over time. kernel: frames of a k x k kernel; None: k."""

    kernel: int | None
    stride: int

    def kernel_of(self, size: tuple[int, int]) -> int:
        """Return the frames of a kernel of this height and width; 1x1 reads single frames, and so do 1xk and kx1."""
        least = min(size)
        return least if self.kernel is None or least == 1 else self.kernel


def inflate(network: Network, *, kernel: int | None, strides: Sequence[int]) -> None:
    """Replace the layers of a network for images by those for clips, in place; paths and names stay.

    kernel: frames of each k x k kernel, k > 1; None: k, as in I3D. strides: over time, of the layers that have a stride
    over space, in the order in which they run; 1 for those behind. Pooling with a stride over space alone keeps every
    frame (Carreira and Zisserman 2017, section 2.1, and figure 3).
    Weights are as large as the network's: a kernel of t frames is drawn with the variance of the k x k kernel / t.
    Auxiliary parts are removed. Raises SpecError for a layer that has no counterpart.
    """
    if type(network) is not Network:
        raise SpecError(f"Inflated: a {type(network).__name__} cannot be inflated; choose another body")
    network.auxiliary = nn.ModuleDict()
    strided = 0  # layers with a stride so far

    def replace(layer: nn.Module, path: str) -> nn.Module:
        nonlocal strided
        if is_chain(layer):
            for name, inner in list(named_layers(layer)):
                setattr(layer, name, replace(inner, f"{path}{name}."))
            return layer
        if isinstance(layer, Join) and type(layer).forward in (Join.forward, Sum.forward):
            start, ends = strided, []
            for name, branch in list(named_layers(layer)):
                strided = start
                layer[name] = replace(branch, f"{path}{name}.")
                ends.append(strided)
            strided = max(ends)
            return layer
        if isinstance(layer, KEPT):
            return layer
        if type(layer) not in TABLE:
            raise SpecError(f"Inflated: {path[:-1]}, a {type(layer).__name__}, cannot be inflated; choose another body")
        has_stride = max(_pair(getattr(layer, "stride", 1))) > 1
        stride = strides[strided] if has_stride and strided < len(strides) else 1
        strided += has_stride
        return TABLE[type(layer)](layer, Time(kernel, stride))

    replace(network, "")


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _convolution(layer: nn.Conv2d, time: Time) -> nn.Module:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise SpecError(f"Inflated: a convolution with the padding {layer.padding} cannot be inflated")
    kernel = time.kernel_of(_pair(layer.kernel_size))
    size, stride, border, dilation = map(_pair, (layer.kernel_size, layer.stride, layer.padding, layer.dilation))
    inflated = nn.Conv3d(
        layer.in_channels, layer.out_channels, (kernel, *size), (time.stride, *stride), ((kernel - 1) // 2, *border),
        (1, *dilation), layer.groups, bias=layer.bias is not None,
    )  # fmt: skip
    if not is_empty(layer):
        _draw_like(inflated, layer)
    return inflated


@torch.no_grad()
def _draw_like(inflated: nn.Conv3d, layer: nn.Conv2d) -> None:
    """Draw the weights with the variance of the layer's divided by the frames; a kernel of one frame keeps them."""
    frames = inflated.kernel_size[0]
    if frames == 1:
        inflated.weight.copy_(layer.weight.unsqueeze(2))
    else:
        inflated.weight.normal_().mul_((layer.weight.square().mean() / frames).sqrt())
    if inflated.bias is not None and layer.bias is not None:
        inflated.bias.copy_(layer.bias)


def _norm(layer: nn.BatchNorm2d, time: Time) -> nn.Module:
    inflated = nn.BatchNorm3d(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    if not is_empty(layer):
        inflated.load_state_dict(layer.state_dict())
    return inflated


def _window(layer: Pool, time: Time) -> tuple[Triple, Triple, Triple]:
    """Return kernel, stride and padding over time and space; over time as over space, or 1, 1 and 0."""
    size, stride, padding = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding)
    if max(stride) > 1 and time.stride == 1:
        return (1, *size), (1, *stride), (0, *padding)
    return (min(size), *size), (time.stride, *stride), (min(padding), *padding)


def _max_pool(layer: nn.MaxPool2d, time: Time) -> nn.Module:
    return nn.MaxPool3d(*_window(layer, time), ceil_mode=layer.ceil_mode)


def _average_pool(layer: nn.AvgPool2d, time: Time) -> nn.Module:
    kernel, stride, padding = _window(layer, time)
    return nn.AvgPool3d(kernel, stride, padding, layer.ceil_mode, layer.count_include_pad)


def _adaptive_pool(layer: nn.AdaptiveAvgPool2d, time: Time) -> nn.Module:
    size = _pair(layer.output_size)
    return nn.AdaptiveAvgPool3d(1 if size == (1, 1) else (1, *size))


TABLE: dict[type[nn.Module], Callable[[Any, Time], nn.Module]] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.Dropout2d: lambda layer, time: nn.Dropout3d(layer.p, layer.inplace),
}
"""Layer for images -> its counterpart for clips."""

KEPT = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU,
    nn.ELU, nn.Dropout, nn.LocalResponseNorm, nn.ChannelShuffle, nn.Flatten, nn.Linear, DropPath, PadShortcut,
    SamePad, Scale, Select,
)  # fmt: skip
"""Layers that read maps with any number of axes."""
