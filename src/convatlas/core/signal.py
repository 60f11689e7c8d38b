"""The walk over a tree that counts its cost: signals, the tally of layers, and the rules.

Nothing is run and nothing is guessed: every kind of layer has a rule, and a layer without one is an error. The rules of
torch's layers are in `cost_rules`, those of this library's layers next to the layers. A rule for a layer of your own
takes the place of its forward pass::

    @rule.register
    def _(layer: MyLayer, x: Signal, tally: Tally) -> Signal:
        return tally.add(layer, x, x.like(shape), macs=...)

A layer that moves positions, as a stride does, also gives `replace(x, ..., reach=...)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

from torch import nn

from convatlas.core.reach import UNKNOWN, Reach
from convatlas.errors import CostError


@dataclass(frozen=True)
class Signal:
    """What flows along a tree: a shape, and the part of the input image that each of its elements depends on.

    shape: (channels, *spatial) without the batch; (features,) after flattening.
    receptive_field: in input pixels along each spatial axis; global gates are ignored.
    stride: distance in input pixels between neighboring elements.
    is_global: every element depends on the whole image (after global pooling, flattening, a global gate).
    depth: number of layers that multiply by weights on the longest path so far, gates ignored: the "50" of ResNet-50.
    reach: the input pixels that each position depends on; global gates are ignored.
    """

    shape: tuple[int, ...]
    receptive_field: tuple[int, ...]
    stride: tuple[int, ...]
    is_global: bool = False
    depth: int = 0
    reach: Reach = field(default=UNKNOWN, compare=False, repr=False)

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def spatial(self) -> tuple[int, ...]:
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
class LayerCost:
    """One layer of the walk.

    macs: multiply-adds of convolutions, linear layers and matrix products.
    activations: elements of the output, counted for layers that hold parameters or multiply (norms are not counted).
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


@dataclass
class Tally:
    """Collects the layers of a walk; every rule calls `add`."""

    layers: list[LayerCost] = field(default_factory=list)
    signals: dict[str, Signal] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)
    _counted: set[int] = field(default_factory=set)

    @property
    def path(self) -> str:
        return ".".join(self._names)

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Walk inside the child `name`: paths are below it until the context ends."""
        self._names.append(name)
        try:
            yield
        finally:
            self._names.pop()

    def add(
        self, layer: nn.Module, x: Signal, y: Signal, *, macs: int = 0, activations: int = 0, connections: int = 0
    ) -> Signal:
        """Record `layer` with its own parameters, each counted once however often it is used; return `y`."""
        parameters = count_parameters(layer, self._counted)
        if macs:
            y = replace(y, depth=x.depth + 1)
        kind = type(layer).__name__
        self.layers.append(LayerCost(self.path, kind, x, y, parameters, macs, activations, connections))
        return y

    def error(self, layer: nn.Module, problem: str) -> CostError:
        """Return the error to raise for a layer at the present path."""
        return CostError(f"{self.path or 'network'} ({type(layer).__name__}): {problem}")


def count_parameters(tree: nn.Module, counted: set[int]) -> int:
    """Return the number of parameters whose ids are not in `counted`, and add them (faster than tree.parameters())."""
    total, layers = 0, [tree]
    for layer in layers:
        for parameter in layer._parameters.values():
            if parameter is not None and id(parameter) not in counted:
                counted.add(id(parameter))
                total += parameter.numel()
        layers += [child for child in layer._modules.values() if child is not None]
    return total


@singledispatch
def rule(layer: nn.Module, x: Any, tally: Tally) -> Any:
    """Return the output signal of a layer and record its cost in `tally`; `rule.register` adds a kind of layer."""
    raise tally.error(layer, "no cost rule for this kind of layer; add one with convatlas.core.signal.rule.register")


_KINDS = rule.registry
"""The kinds of layers that have a rule; `object` stands for all others."""


def walk(layer: nn.Module, x: Signal, tally: Tally) -> Signal:
    """Return the output signal of a layer for the input signal `x`, and record the cost in `tally`.

    A subclass that overrides the forward pass of its base does not inherit the rule, which may not apply to it.
    """
    kind = type(layer)
    base = next(base for base in kind.__mro__ if base in _KINDS)
    if base is not object and kind.forward is not base.forward:  # type: ignore[attr-defined]
        raise tally.error(layer, f"its forward pass is not that of {base.__name__}; add a rule for it")
    y: Signal = rule(layer, x, tally)
    return y
