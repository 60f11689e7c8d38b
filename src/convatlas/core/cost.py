"""What a network costs, read off the tree in one walk: shapes, parameters, MACs, activations, receptive field.

Nothing is run and nothing is guessed: every layer has a rule, and a layer without one is an error.
A rule for a layer of your own takes the place of its forward pass::

    @rule.register
    def _(layer: MyLayer, x: Signal, tally: Tally) -> Signal:
        return tally.add(layer, x, x.like(shape), macs=...)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, singledispatch
from typing import Any, cast

from torch import nn

from convatlas.core.compose import Chain, Concat, Join, Product, Sum
from convatlas.core.network import Auxiliary, Network, steps
from convatlas.errors import CostError


@dataclass(frozen=True)
class Signal:
    """What flows along a tree: a shape, and how far each of its elements sees into the input image.

    shape: (channels, *space) without the batch; (features,) once flattened.
    field: receptive field in input pixels along each axis of space, leaving global gates aside.
    stride: distance in input pixels between neighboring elements.
    whole: every element has seen the whole image (after global pooling, flattening, a global gate).
    depth: layers that multiply by weights on the longest way so far, gates aside: the "50" of ResNet-50.
    """

    shape: tuple[int, ...]
    field: tuple[int, ...]
    stride: tuple[int, ...]
    whole: bool = False
    depth: int = 0

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def space(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def like(self, shape: tuple[int, ...]) -> Signal:
        """Return this signal with another shape."""
        return replace(self, shape=shape)


@dataclass(frozen=True)
class PairSignal:
    """The signals of a `Pair`: of the last layer, and of the one before it."""

    now: Signal
    before: Signal


@dataclass(frozen=True)
class Layer:
    """One layer of the walk.

    macs: multiply-adds of convolutions, linear layers and matrix products.
    activations: elements of the output, counted for layers that hold parameters or multiply (norms left out).
    connections: inputs of every unit plus its bias, as LeCun et al. count them.
    """

    path: str
    kind: str
    input: Signal
    output: Signal
    parameters: int
    macs: int
    activations: int
    connections: int


@dataclass(frozen=True)
class Cost:
    """The exact cost of one image through a network; totals are sums over `layers`, in order of the walk.

    auxiliary: layers that only training uses; their parameters count, their multiply-adds do not.
    signals: what flows out of each layer on the way from the input to the output, by its path.
    """

    layers: tuple[Layer, ...]
    input: Signal
    output: Signal
    auxiliary: tuple[Layer, ...] = ()
    signals: Mapping[str, Signal] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in (*self.layers, *self.auxiliary))

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions, linear layers and matrix products (never "FLOPs")."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activations(self) -> int:
        return sum(layer.activations for layer in self.layers)

    @property
    def connections(self) -> int:
        return sum(layer.connections for layer in self.layers)

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """Pixels of the input, along each axis, that the last local layer (before the image is pooled away) sees."""
        local = [self.input.field, *(layer.output.field for layer in self.layers if not layer.output.whole)]
        return tuple(max(axis) for axis in zip(*local, strict=True))


@dataclass
class Tally:
    """Collects the layers of a walk; `add` is called by every rule."""

    layers: list[Layer] = field(default_factory=list)
    signals: dict[str, Signal] = field(default_factory=dict)
    _path: list[str] = field(default_factory=list)
    _counted: set[int] = field(default_factory=set)

    @property
    def path(self) -> str:
        return ".".join(self._path)

    def inside(self, name: str) -> Tally:
        """Return the context in which the layer `name` is walked."""
        self._path.append(name)
        return self

    def __enter__(self) -> None:
        """The path was taken when the context was made."""

    def __exit__(self, *_: object) -> None:
        self._path.pop()

    def add(
        self, layer: nn.Module, x: Signal, y: Signal, *, macs: int = 0, activations: int = 0, connections: int = 0
    ) -> Signal:
        """Record `layer` with its own parameters, each counted once however often it is used; return `y`."""
        parameters = _count(layer, self._counted)
        kind = type(layer).__name__
        if macs:
            y = replace(y, depth=x.depth + 1)
        self.layers.append(Layer(self.path, kind, x, y, parameters, macs, activations, connections))
        return y

    def refuse(self, layer: nn.Module, why: str) -> CostError:
        return CostError(f"{self.path or 'network'} ({type(layer).__name__}): {why}")


def _count(tree: nn.Module, counted: set[int]) -> int:
    """Return the number of parameters that are not `counted` yet, and count them (quicker than tree.parameters())."""
    total, found = 0, [tree]
    for layer in found:
        for parameter in layer._parameters.values():
            if parameter is not None and id(parameter) not in counted:
                counted.add(id(parameter))
                total += parameter.numel()
        found += [child for child in layer._modules.values() if child is not None]
    return total


def cost(tree: nn.Module, shape: Sequence[int] | None = None) -> Cost:
    """Return the cost of one image of `shape` = (channels, *space) through `tree`.

    Without `shape`, the shape a Network was built for is taken. Raises CostError that names the layer where a layer is
    not known or the image is too small or has another number of channels.
    """
    if shape is None:
        if not isinstance(tree, Network):
            raise CostError(f"the input shape of a {type(tree).__name__} is not known: give (channels, height, width)")
        shape = tree.input_shape
    x = Signal(tuple(shape), (1,) * (len(shape) - 1), (1,) * (len(shape) - 1))
    tally = Tally()
    y = walk(tree, x, tally)
    layers = len(tally.layers)
    if isinstance(tree, Network):
        for name, part in tree.auxiliary.items():
            with tally.inside("auxiliary"), tally.inside(name):
                walk(part, tally.signals[cast(Auxiliary, part).at], tally)
    measured = Cost(tuple(tally.layers[:layers]), x, y, tuple(tally.layers[layers:]), tally.signals)
    held = _count(tree, set())
    if measured.parameters != held:
        raise CostError(f"{type(tree).__name__} holds {held:,} parameters, but its layers {measured.parameters:,}")
    return measured


@singledispatch
def rule(layer: nn.Module, x: Any, tally: Tally) -> Any:
    """What a kind of layer does to a signal; `rule.register` adds a kind."""
    raise tally.refuse(layer, "the cost of this layer is not known; add a rule with convatlas.core.cost.rule.register")


_RULED = rule.registry
"""The kinds of layers that have a rule; `object` stands for the rest."""


def walk(layer: nn.Module, x: Signal, tally: Tally) -> Signal:
    """Carry the signal `x` through `layer`, note the cost in `tally`, and return the layer's output signal."""
    kind = type(layer)
    known = next(base for base in kind.__mro__ if base in _RULED)
    if known is not object and kind.forward is not known.forward:  # type: ignore[attr-defined]
        raise tally.refuse(layer, f"its forward pass is not that of {known.__name__}; add a rule for it")
    y: Signal = rule(layer, x, tally)
    return y


@rule.register(nn.Sequential)
@rule.register(Chain)
@rule.register(Network)
def _(chain: nn.Module, x: Signal, tally: Tally) -> Signal:
    for name, layer in steps(chain):
        with tally.inside(name):
            x = walk(layer, x, tally)
            tally.signals[tally.path] = x.now if isinstance(x, PairSignal) else x
    return x


@rule.register(Join)
@rule.register(Sum)
def _(join: Join, x: Signal, tally: Tally) -> Signal:
    outputs = []
    for name, branch in steps(join):
        with tally.inside(name):
            outputs.append(walk(branch, x, tally))
    shapes = [y.shape for y in outputs]
    try:
        if isinstance(join, Concat):
            (space,) = {y.space for y in outputs}
            shape = (sum(y.channels for y in outputs), *space)
        else:
            # along each axis all are as long as the longest, or one long
            shape = tuple(max(axis) for axis in zip(*shapes, strict=True))
            if any(size not in (1, longest) for shape_ in shapes for size, longest in zip(shape_, shape, strict=True)):
                raise ValueError
    except ValueError:
        raise tally.refuse(join, f"branches of shapes {shapes} cannot be joined") from None
    # a global gate sees everything; what the others see is the useful number
    local = [y for y in outputs if not y.whole] or outputs
    return Signal(
        shape,
        tuple(max(axis) for axis in zip(*(y.field for y in local), strict=True)),
        local[0].stride,
        whole=all(y.whole for y in outputs),
        depth=(min if isinstance(join, Product) else max)(y.depth for y in outputs),
    )


def _each(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def slide(
    layer: nn.Module,
    x: Signal,
    tally: Tally,
    *,
    channels: int,
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    ceil: bool = False,
) -> Signal:
    """Return the output of a window that slides over space, as convolutions and poolings do."""
    axes = len(x.space)
    kernels, strides, dilations = _each(kernel, axes), _each(stride, axes), _each(dilation, axes)
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernels, dilations, strict=True))
    if isinstance(padding, str):
        pads = tuple(span - 1 if padding == "same" else 0 for span in spans)
    else:
        pads = tuple(2 * p for p in _each(padding, axes))
    space = []
    for size, span, step, pad in zip(x.space, spans, strides, pads, strict=True):
        out = (size + pad - span) // step + 1
        if ceil and (size + pad - span) % step and out * step < size + pad // 2:
            out += 1  # the last window may hang over, if it starts inside the image or its left padding
        if out < 1:
            raise tally.refuse(
                layer, f"an input of {'x'.join(map(str, x.space))} px is smaller than the {span} px window; "
                "the image is too small for this network"
            )  # fmt: skip
        space.append(out)
    return Signal(
        (channels, *space),
        tuple(f + (span - 1) * s for f, span, s in zip(x.field, spans, x.stride, strict=True)),
        tuple(s * step for s, step in zip(x.stride, strides, strict=True)),
        x.whole,
        x.depth,
    )


def _expect(layer: nn.Module, x: Signal, tally: Tally, *, axes: int, channels: int | None = None) -> None:
    if len(x.space) != axes:
        raise tally.refuse(layer, f"expects {axes} axes of space, got the shape {x.shape}")
    if channels is not None and x.channels != channels:
        raise tally.refuse(layer, f"expects {channels} channels, got {x.channels}")


def _convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Signal, tally: Tally) -> Signal:
    _expect(layer, x, tally, axes=len(layer.kernel_size), channels=layer.in_channels)
    y = slide(
        layer, x, tally, channels=layer.out_channels, kernel=layer.kernel_size, stride=layer.stride,
        padding=layer.padding, dilation=layer.dilation,
    )  # fmt: skip
    macs = y.size * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    biases = y.size if layer.bias is not None else 0
    return tally.add(layer, x, y, macs=macs, activations=y.size, connections=macs + biases)


def _max_pool(layer: nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d, x: Signal, tally: Tally, *, axes: int) -> Signal:
    _expect(layer, x, tally, axes=axes)
    y = slide(
        layer, x, tally, channels=x.channels, kernel=layer.kernel_size, stride=layer.stride,
        padding=layer.padding, dilation=layer.dilation, ceil=layer.ceil_mode,
    )  # fmt: skip
    return tally.add(layer, x, y)


def _average_pool(layer: nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d, x: Signal, tally: Tally, *, axes: int) -> Signal:
    _expect(layer, x, tally, axes=axes)
    y = slide(
        layer, x, tally, channels=x.channels, kernel=layer.kernel_size, stride=layer.stride,
        padding=layer.padding, ceil=layer.ceil_mode,
    )  # fmt: skip
    return tally.add(layer, x, y)


def _pad(
    layer: nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d, x: Signal, tally: Tally, *, axes: int
) -> Signal:
    _expect(layer, x, tally, axes=axes)
    # torch lists (left, right) of the last axis first
    pairs = list(zip(layer.padding[0::2], layer.padding[1::2], strict=True))[::-1]
    space = tuple(size + sum(pair) for size, pair in zip(x.space, pairs, strict=True))
    return tally.add(layer, x, x.like((x.channels, *space)))


def _adaptive_pool(
    layer: nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d, x: Signal, tally: Tally, *, axes: int
) -> Signal:
    """Pool to a fixed size: each output reads the inputs that it covers, one where there are fewer than outputs."""
    _expect(layer, x, tally, axes=axes)
    sizes = _each(cast("int | tuple[int, ...]", layer.output_size), axes)
    if set(sizes) == {1}:
        return tally.add(layer, x, replace(x, shape=(x.channels, *sizes), whole=True))
    windows = [
        max(-(-(i + 1) * size // out) - i * size // out for i in range(out))
        for size, out in zip(x.space, sizes, strict=True)
    ]
    seen = tuple(f + (w - 1) * s for f, w, s in zip(x.field, windows, x.stride, strict=True))
    return tally.add(layer, x, replace(x, shape=(x.channels, *sizes), field=seen))


@rule.register
def _(layer: nn.Linear, x: Signal, tally: Tally) -> Signal:
    if len(x.shape) != 1:
        raise tally.refuse(layer, f"expects features, got an image of shape {x.shape}; flatten it first")
    if x.channels != layer.in_features:
        raise tally.refuse(layer, f"expects {layer.in_features} features, got {x.channels}")
    y = x.like((layer.out_features,))
    biases = y.size if layer.bias is not None else 0
    macs = layer.in_features * layer.out_features
    return tally.add(layer, x, y, macs=macs, activations=y.size, connections=macs + biases)


@rule.register
def _(layer: nn.Flatten, x: Signal, tally: Tally) -> Signal:
    if layer.start_dim != 1 or layer.end_dim != -1:
        raise tally.refuse(layer, "only Flatten(1) has a rule")
    return tally.add(layer, x, replace(x, shape=(x.size,), whole=True))


def same(layer: nn.Module, x: Signal, tally: Tally) -> Signal:
    """The rule of a layer that changes values but not shapes, such as an activation."""
    return tally.add(layer, x, x)


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, x: Signal, tally: Tally) -> Signal:
    if x.channels != layer.num_features:
        raise tally.refuse(layer, f"expects {layer.num_features} channels, got {x.channels}")
    return same(layer, x, tally)


@rule.register
def _(layer: nn.GroupNorm, x: Signal, tally: Tally) -> Signal:
    if x.channels != layer.num_channels:
        raise tally.refuse(layer, f"expects {layer.num_channels} channels, got {x.channels}")
    return same(layer, x, tally)


_RULES: list[tuple[Callable[..., Signal], tuple[type[nn.Module], ...]]] = [
    (same, (
        nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid,
        nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Softmax, nn.LogSoftmax, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
        nn.LocalResponseNorm,
    )),
    (_batch_norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)),
    (_convolution, (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    (partial(_max_pool, axes=1), (nn.MaxPool1d,)),
    (partial(_max_pool, axes=2), (nn.MaxPool2d,)),
    (partial(_max_pool, axes=3), (nn.MaxPool3d,)),
    (partial(_average_pool, axes=1), (nn.AvgPool1d,)),
    (partial(_average_pool, axes=2), (nn.AvgPool2d,)),
    (partial(_average_pool, axes=3), (nn.AvgPool3d,)),
    (partial(_pad, axes=1), (nn.ConstantPad1d,)),
    (partial(_pad, axes=2), (nn.ConstantPad2d, nn.ZeroPad2d)),
    (partial(_pad, axes=3), (nn.ConstantPad3d,)),
    (partial(_adaptive_pool, axes=1), (nn.AdaptiveAvgPool1d,)),
    (partial(_adaptive_pool, axes=2), (nn.AdaptiveAvgPool2d,)),
    (partial(_adaptive_pool, axes=3), (nn.AdaptiveAvgPool3d,)),
]  # fmt: skip
for _apply, _types in _RULES:
    for _type in _types:
        rule.register(_type, _apply)
