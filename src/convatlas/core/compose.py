"""The two ways to compose: one after another (`Chain`) and side by side (`Sum`, `Concat`, `Product`).

Topology lives in these four classes and nowhere else. They are ordinary modules: nothing is compiled or traced.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from convatlas.errors import SpecError

# A child named like one of these would hide it ("train", "half", "keys", ...).
_RESERVED = frozenset(dir(nn.Sequential())) | frozenset(dir(nn.ModuleDict())) | {"input_shape", "join"}


def _adopt(parent: nn.Module, layers: tuple[nn.Module, ...], named: dict[str, nn.Module]) -> None:
    """Number the positional layers, keep the names of the others, and refuse names that modules use themselves."""
    children = parent._modules  # add_module would check again what is checked here
    for i, layer in enumerate(layers):
        children[str(i)] = layer
    for name, layer in named.items():
        if name in _RESERVED:
            raise SpecError(f"branch name {name!r} collides with an attribute of every module; choose another name")
        if name in children or not (name.isidentifier() or name.isdecimal()):
            raise SpecError(f"branch name {name!r} is taken or not a plain name; choose another name")
        children[name] = layer
    for child in children.values():
        if not isinstance(child, nn.Module):
            raise TypeError(f"{type(parent).__name__} is made of modules, not of {type(child).__name__}")


class Chain(nn.Sequential):
    """Layers one after another; they may be named: `Chain(conv=..., norm=...)`."""

    def __init__(self, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        _adopt(self, layers, named)

    def forward(self, input: Any) -> Any:
        for layer in unrolled(self._modules.values()):
            input = layer(input)
        return input

    def __getitem__(self, key: Any) -> Any:
        """Return one layer, or for a slice the Chain of those layers, under their names."""
        return Chain(**dict(list(self._modules.items())[key])) if isinstance(key, slice) else super().__getitem__(key)


class Join(nn.ModuleDict):
    """Branches side by side: each reads the same input; subclasses say how their outputs are joined."""

    def __init__(self, *branches: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        _adopt(self, branches, named)
        if not branches and not named:
            raise SpecError(f"{type(self).__name__} needs at least one branch")

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.join([branch(x) for branch in self._modules.values()])


_FRESH = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Conv3d, nn.BatchNorm3d)


def _ends_fresh(layer: nn.Module | None) -> bool:
    """Return whether the last layer makes a tensor that nobody else reads and that no gradient needs.

    Layers of other kinds say so with an attribute `fresh`; those that may hand on what they got have `passing`.
    """
    while isinstance(layer, nn.Sequential):
        layers = reversed(layer._modules.values())
        layer = next((inner for inner in layers if not getattr(inner, "passing", False)), None)
    return isinstance(layer, _FRESH) or getattr(layer, "fresh", False)


class Sum(Join):
    """Add the branches: ResNet is a Sum with the identity.

    Where the first branch ends in a convolution or a norm, the others are added into its output: a new tensor there
    costs up to 8 % of a ResNet's time on a CPU.
    """

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return reduce(operator.add, outputs)

    def forward(self, x: Tensor) -> Tensor:
        branches = list(self._modules.values())
        outputs = [branch(x) for branch in branches]
        if len(outputs) == 2 and _ends_fresh(branches[0]) and outputs[0].shape == outputs[1].shape:
            total: Tensor = outputs[0].add_(outputs[1])
            return total
        return self.join(outputs)


class Concat(Join):
    """Stack the branches' channels: Inception; DenseNet is a Concat with the identity."""

    fresh = True

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(outputs), 1)


class Product(Join):
    """Multiply the branches: squeeze-and-excitation is a Product with the identity."""

    fresh = True

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return reduce(operator.mul, outputs)


class Pair(NamedTuple):
    """What flows where a layer reads the outputs of the two layers before it, as NASNet's cells do."""

    now: Tensor
    before: Tensor


_IN_TURN = (Chain.forward, nn.Sequential.forward)


def _observed(layer: nn.Module) -> bool:
    """Return whether somebody asked for the call of this very module, with a hook or a forward pass of their own."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(hooks or layer._compiled_call_impl) or "forward" in layer.__dict__


def unrolled(layers: Iterable[Any]) -> Iterable[nn.Module]:
    """Return the layers, with those of the chains among them in their place; a chain that is observed stays.

    Calling a module holds its input until it returns: called in turn, a stem's output would be held through all stages,
    and inference with MobileNetV2 takes up to a seventh longer (benchmarks/families.py).
    """
    if torch.compiler.is_compiling() or _has_any_global_hook():
        return layers
    flat: list[nn.Module] = []
    for layer in layers:
        if type(layer).forward in _IN_TURN and not _observed(layer):
            flat += unrolled(layer._modules.values())
        else:
            flat.append(layer)
    return flat
