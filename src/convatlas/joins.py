"""The two ways to compose: one after another (`Chain`) and side by side (`Sum`, `Concat`, `Product`).

Topology lives in these four classes and nowhere else. They are ordinary modules: nothing is compiled or traced.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.errors import SpecError, nearest

# A child named like one of these would hide it ("train", "half", "keys", ...).
_RESERVED = frozenset(dir(nn.Sequential())) | frozenset(dir(nn.ModuleDict())) | {"input_shape", "join"}


def _named(layers: tuple[nn.Module, ...], named: dict[str, nn.Module]) -> OrderedDict[str, nn.Module]:
    """Number the positional layers, keep the names of the others, and refuse names that modules use themselves."""
    numbered = {str(i): layer for i, layer in enumerate(layers)}
    for name in named:
        if name in _RESERVED:
            raise SpecError(f"branch name {name!r} collides with an attribute of every module; choose another name")
        if name in numbered or not (name.isidentifier() or name.isdecimal()):
            raise SpecError(f"branch name {name!r} is taken or not a plain name; choose another name")
    return OrderedDict([*numbered.items(), *named.items()])


class Chain(nn.Sequential):
    """Layers one after another; they may be named: `Chain(conv=..., norm=...)`."""

    def __init__(self, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__(_named(layers, named))

    def __getitem__(self, key: Any) -> Any:
        """Return one layer, or for a slice the Chain of those layers, under their names."""
        return Chain(**dict(list(self._modules.items())[key])) if isinstance(key, slice) else super().__getitem__(key)


class Join(nn.ModuleDict):
    """Branches side by side: each reads the same input; subclasses say how their outputs are joined."""

    def __init__(self, *branches: nn.Module, **named: nn.Module) -> None:
        super().__init__(_named(branches, named))
        if not self:
            raise SpecError(f"{type(self).__name__} needs at least one branch")

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.join([branch(x) for branch in self.values()])


class Sum(Join):
    """Add the branches: ResNet is a Sum with the identity."""

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return reduce(operator.add, outputs)


class Concat(Join):
    """Stack the branches' channels: Inception; DenseNet is a Concat with the identity."""

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(outputs), 1)


class Product(Join):
    """Multiply the branches: squeeze-and-excitation is a Product with the identity."""

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return reduce(operator.mul, outputs)


class Network(Chain):
    """The three named parts that every network has, and the (channels, height, width) it was built for."""

    def __init__(self, *, stem: nn.Module, stages: Chain, head: nn.Module, input_shape: tuple[int, ...]) -> None:
        super().__init__(stem=stem, stages=stages, head=head)
        self.input_shape = input_shape


def taps(tree: nn.Sequential, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Run a chain of chains on `x` and keep the outputs at `names`, such as "stem" or "stages.0".

    Stops after the last tap. Raises SpecError for a name that is not on the chain (a branch inside a join is not).
    """
    wanted, kept = set(names), {}
    reached: list[str] = []

    def run(chain: nn.Sequential, x: Tensor, prefix: str) -> Tensor:
        for name, layer in chain._modules.items():  # named_children leaves out a layer that is used twice
            assert layer is not None
            path = prefix + name
            x = run(layer, x, path + ".") if isinstance(layer, nn.Sequential) else layer(x)
            reached.append(path)
            if path in wanted:
                kept[path] = x
            if len(kept) == len(wanted):
                break
        return x

    run(tree, x, "")
    for name in names:
        if name not in kept:
            raise SpecError(f"no tap {name!r} on this chain{nearest(name, reached)}")
    return {name: kept[name] for name in names}
