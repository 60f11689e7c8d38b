"""Cost rules of torch's layers: the output shape, receptive field and multiply-adds of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from convatlas.core.signal import Signal, Tally, rule

Sizes = int | tuple[int, ...]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
MaxPool = nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d
AveragePool = nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d
AdaptivePool = nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d
Pad = nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def same(layer: nn.Module, x: Signal, tally: Tally) -> Signal:
    """The rule of a layer that changes values but not shapes, such as an activation."""
    return tally.add(layer, x, x)


def slide(
    layer: nn.Module,
    x: Signal,
    tally: Tally,
    *,
    channels: int,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
) -> Signal:
    """Return the output of a window that slides over the spatial axes, as in convolution and pooling."""
    axes = len(x.spatial)
    kernels, strides, dilations = _per_axis(kernel, axes), _per_axis(stride, axes), _per_axis(dilation, axes)
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernels, dilations, strict=True))
    if isinstance(padding, str):
        pads = tuple(span - 1 if padding == "same" else 0 for span in spans)
    else:
        pads = tuple(2 * p for p in _per_axis(padding, axes))
    before = tuple(pad // 2 for pad in pads)
    spatial = []
    for size, span, step, pad in zip(x.spatial, spans, strides, pads, strict=True):
        out = (size + pad - span) // step + 1
        if ceil and (size + pad - span) % step and out * step < size + pad // 2:
            out += 1  # the last window may extend beyond the image if it starts inside it or in its left padding
        if out < 1:
            raise tally.error(
                layer, f"an input of {'x'.join(map(str, x.spatial))} px is smaller than the {span} px window; "
                "the image is too small for this network"
            )  # fmt: skip
        spatial.append(out)
    return replace(
        x,
        shape=(channels, *spatial),
        receptive_field=tuple(
            f + (span - 1) * s for f, span, s in zip(x.receptive_field, spans, x.stride, strict=True)
        ),
        stride=tuple(s * step for s, step in zip(x.stride, strides, strict=True)),
        reach=x.reach.slide(spatial, spans, strides, before, dilations),
    )


def axes_of(layer: nn.Module) -> int:
    """Return the number of spatial axes of a layer of torch: 2 for `nn.MaxPool2d` and its subclasses."""
    names = (kind.__name__ for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn"))
    return next(int(name[-2]) for name in names if name[-2:] in ("1d", "2d", "3d"))


def _per_axis(value: Sizes, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _expect_axes(layer: nn.Module, x: Signal, tally: Tally) -> None:
    if len(x.spatial) != axes_of(layer):
        raise tally.error(layer, f"expects {axes_of(layer)} spatial axes, got the shape {x.shape}")


def _expect_channels(layer: nn.Module, x: Signal, tally: Tally, channels: int) -> None:
    if x.channels != channels:
        raise tally.error(layer, f"expects {channels} channels, got {x.channels}")


def _convolution(layer: Convolution, x: Signal, tally: Tally) -> Signal:
    _expect_axes(layer, x, tally)
    _expect_channels(layer, x, tally, layer.in_channels)
    y = slide(
        layer, x, tally, channels=layer.out_channels, kernel=layer.kernel_size, stride=layer.stride,
        padding=layer.padding, dilation=layer.dilation,
    )  # fmt: skip
    macs = y.size * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    biases = y.size if layer.bias is not None else 0
    return tally.add(layer, x, y, macs=macs, activations=y.size, connections=macs + biases)


def _transposed(layer: nn.ConvTranspose2d, x: Signal, tally: Tally) -> Signal:
    """The rule of a transposed convolution; every input element adds to a window of the output."""
    _expect_axes(layer, x, tally)
    _expect_channels(layer, x, tally, layer.in_channels)
    padding = _per_axis(layer.padding, 2)  # type: ignore[arg-type]  # never a text
    spatial = tuple(
        (size - 1) * step - 2 * pad + dilation * (kernel - 1) + more + 1
        for size, step, pad, dilation, kernel, more in zip(
            x.spatial, layer.stride, padding, layer.dilation, layer.kernel_size, layer.output_padding, strict=True
        )
    )
    windows = zip(spatial, layer.kernel_size, layer.stride, padding, layer.dilation, strict=True)
    y = replace(x, shape=(layer.out_channels, *spatial), reach=x.reach.spread(list(windows)))
    macs = x.size * layer.out_channels // layer.groups * math.prod(layer.kernel_size)
    biases = y.size if layer.bias is not None else 0
    return tally.add(layer, x, y, macs=macs, activations=y.size, connections=macs + biases)


def _linear(layer: nn.Linear, x: Signal, tally: Tally) -> Signal:
    if len(x.shape) != 1:
        raise tally.error(layer, f"expects features, got a map of shape {x.shape}; flatten it first")
    if x.channels != layer.in_features:
        raise tally.error(layer, f"expects {layer.in_features} features, got {x.channels}")
    y = x.like((layer.out_features,))
    biases = y.size if layer.bias is not None else 0
    macs = layer.in_features * layer.out_features
    return tally.add(layer, x, y, macs=macs, activations=y.size, connections=macs + biases)


def _batch_norm(layer: BatchNorm, x: Signal, tally: Tally) -> Signal:
    _expect_channels(layer, x, tally, layer.num_features)
    return same(layer, x, tally)


def _group_norm(layer: nn.GroupNorm, x: Signal, tally: Tally) -> Signal:
    _expect_channels(layer, x, tally, layer.num_channels)
    return same(layer, x, tally)


def _max_pool(layer: MaxPool, x: Signal, tally: Tally) -> Signal:
    _expect_axes(layer, x, tally)
    y = slide(
        layer, x, tally, channels=x.channels, kernel=layer.kernel_size, stride=layer.stride,
        padding=layer.padding, dilation=layer.dilation, ceil=layer.ceil_mode,
    )  # fmt: skip
    return tally.add(layer, x, y)


def _average_pool(layer: AveragePool, x: Signal, tally: Tally) -> Signal:
    _expect_axes(layer, x, tally)
    y = slide(
        layer, x, tally, channels=x.channels, kernel=layer.kernel_size, stride=layer.stride,
        padding=layer.padding, ceil=layer.ceil_mode,
    )  # fmt: skip
    return tally.add(layer, x, y)


def _adaptive_pool(layer: AdaptivePool, x: Signal, tally: Tally) -> Signal:
    """Pool to a fixed size: each output averages the inputs that it covers, at least one. None keeps a size."""
    _expect_axes(layer, x, tally)
    size: int | Sequence[int | None] | None = layer.output_size
    given = size if isinstance(size, Sequence) else (size,) * axes_of(layer)
    sizes = tuple(old if new is None else new for old, new in zip(x.spatial, given, strict=True))
    if min(sizes) < 1:
        raise tally.error(layer, f"its output sizes must be >= 1, got {layer.output_size}")
    if set(sizes) == {1}:
        return tally.add(layer, x, replace(x, shape=(x.channels, *sizes), is_global=True, reach=x.reach.pool(sizes)))
    windows = [
        max(-(-(i + 1) * size // out) - i * size // out for i in range(out))
        for size, out in zip(x.spatial, sizes, strict=True)
    ]
    field = tuple(f + (w - 1) * s for f, w, s in zip(x.receptive_field, windows, x.stride, strict=True))
    y = replace(x, shape=(x.channels, *sizes), receptive_field=field, reach=x.reach.pool(sizes))
    return tally.add(layer, x, y)


def _pad(layer: Pad, x: Signal, tally: Tally) -> Signal:
    _expect_axes(layer, x, tally)
    # torch lists (left, right) of the last axis first
    pairs = list(zip(layer.padding[0::2], layer.padding[1::2], strict=True))[::-1]
    spatial = tuple(size + sum(pair) for size, pair in zip(x.spatial, pairs, strict=True))
    y = replace(x, shape=(x.channels, *spatial), reach=x.reach.pad(pairs))
    return tally.add(layer, x, y)


def _flatten(layer: nn.Flatten, x: Signal, tally: Tally) -> Signal:
    if layer.start_dim != 1 or layer.end_dim != -1:
        raise tally.error(layer, "only Flatten(1) has a rule")
    return tally.add(layer, x, replace(x, shape=(x.size,), is_global=True))


_RULES: dict[Callable[..., Signal], tuple[type[nn.Module], ...]] = {
    _convolution: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    _transposed: (nn.ConvTranspose2d,),
    _linear: (nn.Linear,),
    _batch_norm: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    _group_norm: (nn.GroupNorm,),
    _max_pool: (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    _average_pool: (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    _adaptive_pool: (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    _pad: (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad2d),
    _flatten: (nn.Flatten,),
    same: (
        nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid,
        nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Softmax, nn.LogSoftmax, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
        nn.LocalResponseNorm,
    ),
}  # fmt: skip
for _function, _kinds in _RULES.items():
    for _kind in _kinds:
        rule.register(_kind, _function)
