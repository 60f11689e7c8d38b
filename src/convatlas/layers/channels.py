"""Layers that choose, scale, pad or reorder channels and pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.compose import Chain, Pair
from convatlas.core.cost import PairSignal, Signal, Tally, rule, same, walk
from convatlas.core.outline import Box, always, outline


class Select(nn.Module):
    """The channels from `start` up to `stop`, without a copy."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]

    def extra_repr(self) -> str:
        return f"{self.start}, {self.stop}"


class Scale(nn.Module):
    """x times a fixed number."""

    fresh = True

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor}"


class LayerScale(nn.Module):
    """Every channel times a learned number that starts small (Touvron et al. 2021, used by ConvNeXt)."""

    fresh = True

    def __init__(self, channels: int, *, start: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain[:, None, None] * x


class DropPath(nn.Module):
    """Stochastic depth: in training the whole branch is dropped for a share of the images (Huang et al. 2016)."""

    passing = True

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = 1 - self.rate
        return x * x.new_empty(len(x), *(1,) * (x.ndim - 1)).bernoulli_(kept).div_(kept)

    def extra_repr(self) -> str:
        return f"{self.rate}"


def rising(rate: float, count: int) -> list[float]:
    """Return the drop rates of `count` blocks: from 0, linear, `rate` after the last (Huang et al. 2016)."""
    return [rate * i / count for i in range(count)]


class ChannelsLast(Chain):
    """Layers that see (n, h, w, channels): linear layers and layer norms then work at each pixel by itself."""

    titled = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for layer in self._modules.values():
            x = layer(x)
        return x.permute(0, 3, 1, 2)


class SamePad(nn.Module):
    """Pad so that a window of `kernel` gives ceil(size / stride) outputs; an odd pixel goes to the right and bottom.

    TensorFlow's rule "SAME". `value` is what the border reads as.
    """

    def __init__(self, kernel: int, stride: int, *, value: float = 0.0) -> None:
        super().__init__()
        self.kernel, self.stride, self.value = kernel, stride, value

    def border(self, size: int) -> tuple[int, int]:
        total = max((math.ceil(size / self.stride) - 1) * self.stride + self.kernel - size, 0)
        return total // 2, total - total // 2

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return F.pad(x, (*self.border(width), *self.border(height)), value=self.value)

    def extra_repr(self) -> str:
        return f"{self.kernel}, stride={self.stride}, value={self.value}"


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the channels that are new, half of them on each side.

    The shortcut without parameters of He et al. 2015, option A.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride

    def forward(self, x: Tensor) -> Tensor:
        new = self.outputs - self.inputs
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, new // 2, new - new // 2))

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, stride={self.stride}"


class TakeCurrent(nn.Module):
    """The last of the two outputs that flow through NASNet's cells."""

    def forward(self, x: Pair) -> Tensor:
        return x.now


for _shape_kept in (Scale, LayerScale, DropPath):
    rule.register(_shape_kept, same)
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
        raise tally.refuse(layer, f"{x.channels} channels do not divide into {layer.groups} groups")
    return same(layer, x, tally)


@rule.register
def _(layer: Select, x: Signal, tally: Tally) -> Signal:
    if layer.stop > x.channels:
        raise tally.refuse(layer, f"selects channels up to {layer.stop} of {x.channels}")
    return tally.add(layer, x, x.like((layer.stop - layer.start, *x.space)))


@rule.register
def _(layer: ChannelsLast, x: Signal, tally: Tally) -> Signal:
    positions = math.prod(x.space)
    for name, inner in layer.named_children():
        with tally.inside(name):
            if isinstance(inner, nn.Linear):
                if x.channels != inner.in_features:
                    raise tally.refuse(inner, f"expects {inner.in_features} channels, got {x.channels}")
                y = x.like((inner.out_features, *x.space))
                macs = positions * inner.in_features * inner.out_features
                biases = y.size if inner.bias is not None else 0
                x = tally.add(inner, x, y, macs=macs, activations=y.size, connections=macs + biases)
            elif isinstance(inner, nn.LayerNorm):
                if inner.normalized_shape != (x.channels,):
                    raise tally.refuse(inner, f"expects {inner.normalized_shape} channels, got {x.channels}")
                x = same(inner, x, tally)
            else:
                x = walk(inner, x, tally)
    return x


@rule.register
def _(layer: SamePad, x: Signal, tally: Tally) -> Signal:
    space = tuple(size + sum(layer.border(size)) for size in x.space)
    return tally.add(layer, x, x.like((x.channels, *space)))


@rule.register
def _(layer: PadShortcut, x: Signal, tally: Tally) -> Signal:
    if x.channels != layer.inputs:
        raise tally.refuse(layer, f"expects {layer.inputs} channels, got {x.channels}")
    space = tuple(-(-size // layer.stride) for size in x.space)
    y = Signal((layer.outputs, *space), x.field, tuple(s * layer.stride for s in x.stride), x.whole, x.depth)
    return tally.add(layer, x, y)


@rule.register
def _(layer: TakeCurrent, x: PairSignal, tally: Tally) -> Signal:
    return tally.add(layer, x.now, x.now)
