"""Layers that select, scale, pad or reorder channels and pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.compose import Chain, Layer, Pair
from convatlas.core.cost_rules import same
from convatlas.core.outline import Box, always, outline
from convatlas.core.signal import PairSignal, Signal, Tally, rule, walk


class Select(nn.Module):
    """x[:, start:stop]: a range of channels, without a copy."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]

    def extra_repr(self) -> str:
        return f"{self.start}, {self.stop}"


class Scale(Layer):
    """x * factor, a constant."""

    allocates_output = True

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor}"


class LayerScale(Layer):
    """x * gain, one learned gain per channel that starts small (Touvron et al. 2021, used by ConvNeXt)."""

    allocates_output = True

    def __init__(self, channels: int, *, start: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain[:, None, None] * x


@torch.fx.wrap  # the number of axes is not known while torch.fx traces
def drop_path(x: Tensor, rate: float) -> Tensor:
    """Return (n, ...) with zeros for a fraction `rate` of the images, and the others divided by 1 - `rate`."""
    keep = 1 - rate
    return x * x.new_empty(len(x), *(1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class DropPath(Layer):
    """Stochastic depth: in training, the branch is dropped for a fraction `rate` of the images (Huang et al. 2016)."""

    returns_input = True

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.rate) if self.training and self.rate else x

    def extra_repr(self) -> str:
        return f"{self.rate}"


def linear_drop_rates(rate: float, count: int) -> list[float]:
    """Return the drop rates of `count` blocks: linear from 0, reaching `rate` behind the last (Huang et al. 2016)."""
    return [rate * i / count for i in range(count)]


class ChannelsLast(Chain):
    """Layers in series on (n, h, w, channels), so that linear layers and layer norms act on each pixel.

    Input and output are (n, channels, h, w). `permute` copies nothing; it changes the strides only.
    """

    show_title = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for layer in self._modules.values():
            x = layer(x)
        return x.permute(0, 3, 1, 2)


def same_border(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the pixels before and after an axis of `size` pixels under TensorFlow's padding "SAME".

    A window of `kernel` then gives ceil(size / stride) outputs; an odd pixel goes to the end.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@torch.fx.wrap  # the border depends on the size of the map, which is not known while torch.fx traces
def pad_same(x: Tensor, kernel: tuple[int, int], stride: int, value: float) -> Tensor:
    """Return maps (..., h, w) with the border of `same_border`."""
    (height, width), (rows, columns) = x.shape[-2:], kernel
    return F.pad(x, (*same_border(width, columns, stride), *same_border(height, rows, stride)), value=value)


class SamePad(nn.Module):
    """TensorFlow's padding "SAME" for a window of `kernel` and `stride`, computed from the size of each map.

    value: of the border.
    """

    def __init__(self, kernel: int | tuple[int, int], stride: int, *, value: float = 0.0) -> None:
        super().__init__()
        self.kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.stride, self.value = stride, value

    def forward(self, x: Tensor) -> Tensor:
        return pad_same(x, self.kernel, self.stride, self.value)

    def extra_repr(self) -> str:
        return f"{self.kernel}, stride={self.stride}, value={self.value}"


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, and zeros for the additional channels, half of them on each side.

    The shortcut without parameters (He et al. 2015, section 3.3, option A).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride

    def forward(self, x: Tensor) -> Tensor:
        new = self.outputs - self.inputs
        kept = x[..., :: self.stride, :: self.stride]  # of clips every frame
        return F.pad(kept, (0, 0) * (x.ndim - 2) + (new // 2, new - new // 2))

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, stride={self.stride}"


class TakeCurrent(Layer):
    """The output of the last cell, from the pair that NASNet's cells pass on."""

    returns_input = True

    def forward(self, x: Pair) -> Tensor:
        return x.now


for _elementwise in (Scale, LayerScale, DropPath):
    rule.register(_elementwise, same)
for _kind, _text in {
    LayerScale: "scale",
    DropPath: "drop path",
    SamePad: "",
    TakeCurrent: "",
    PadShortcut: "pad",
}.items():
    always(_kind, _text)


@outline.register
def _(layer: Scale) -> Box:
    return Box((f"× {layer.factor:g}",), "trim")


@outline.register
def _(layer: Select) -> Box:
    return Box((f"channels {layer.start}–{layer.stop - 1}",), "trim")


@rule.register
def _(layer: nn.ChannelShuffle, x: Signal, tally: Tally) -> Signal:
    if x.channels % layer.groups:
        raise tally.error(
            layer, f"the number of channels must be a multiple of {layer.groups} groups, got {x.channels}"
        )
    return same(layer, x, tally)


@rule.register
def _(layer: Select, x: Signal, tally: Tally) -> Signal:
    if layer.stop > x.channels:
        raise tally.error(layer, f"selects channels up to {layer.stop}, got {x.channels}")
    return tally.add(layer, x, x.like((layer.stop - layer.start, *x.spatial)))


@rule.register
def _(layer: ChannelsLast, x: Signal, tally: Tally) -> Signal:
    positions = math.prod(x.spatial)
    for name, inner in layer.named_children():
        with tally.inside(name):
            if isinstance(inner, nn.Linear):
                if x.channels != inner.in_features:
                    raise tally.error(inner, f"expects {inner.in_features} channels, got {x.channels}")
                y = x.like((inner.out_features, *x.spatial))
                macs = positions * inner.in_features * inner.out_features
                biases = y.size if inner.bias is not None else 0
                x = tally.add(inner, x, y, macs=macs, activations=y.size, connections=macs + biases)
            elif isinstance(inner, nn.LayerNorm):
                if inner.normalized_shape != (x.channels,):
                    raise tally.error(inner, f"expects {inner.normalized_shape} channels, got {x.channels}")
                x = same(inner, x, tally)
            else:
                x = walk(inner, x, tally)
    return x


@rule.register
def _(layer: SamePad, x: Signal, tally: Tally) -> Signal:
    *frames, height, width = x.spatial
    borders = [(0, 0)] * len(frames)
    borders += [
        same_border(size, kernel, layer.stride) for size, kernel in zip((height, width), layer.kernel, strict=True)
    ]
    padded = (size + sum(border) for size, border in zip(x.spatial, borders, strict=True))
    return tally.add(layer, x, replace(x, shape=(x.channels, *padded), reach=x.reach.pad(borders)))


@rule.register
def _(layer: PadShortcut, x: Signal, tally: Tally) -> Signal:
    if x.channels != layer.inputs:
        raise tally.error(layer, f"expects {layer.inputs} channels, got {x.channels}")
    strides = [1] * (len(x.spatial) - 2) + [layer.stride] * 2  # over time 1
    spatial = tuple(-(-size // stride) for size, stride in zip(x.spatial, strides, strict=True))
    stride = tuple(before * own for before, own in zip(x.stride, strides, strict=True))
    ones, zeros = [1] * len(strides), [0] * len(strides)
    reach = x.reach.slide(spatial, ones, strides, zeros, ones)
    return tally.add(layer, x, replace(x, shape=(layer.outputs, *spatial), stride=stride, reach=reach))


@rule.register
def _(layer: TakeCurrent, x: PairSignal, tally: Tally) -> Signal:
    return tally.add(layer, x.now, x.now)
