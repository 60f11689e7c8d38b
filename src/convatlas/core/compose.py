"""Two ways to compose layers: in sequence (`Chain`) and in parallel (`Sum`, `Concat`, `Product`).

A network is a tree. Its leaves compute (convolutions, norms, activations); its inner nodes only route. Almost every
routing in the literature is one of four, so four classes hold all topology of this library, and a block is an
expression that can be read, drawn, counted and renamed. The bottleneck of ResNet, `x + F(x)`, is::

    Sum(body=Chain(conv1=..., conv2=..., conv3=...), skip=nn.Identity())

All four are ordinary modules: `Chain` is a `nn.Sequential`, the others are `nn.ModuleDict`s with a forward pass.
Nothing is traced or compiled.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from convatlas.errors import SpecError


class Layer(nn.Module):
    """A module with three attributes for composition and drawing.

    With their defaults, the output of a layer is never overwritten.
    """

    returns_input: ClassVar[bool] = False
    """The output may be the input tensor itself, as with stochastic depth at inference, or else a new tensor."""

    allocates_output: ClassVar[bool] = False
    """The output is a new tensor, and the backward pass does not need its values: a `Sum` may add into it."""

    show_title: ClassVar[bool] = True
    """A drawing frames the block and writes its class name; False for blocks whose layers are self-explanatory."""


class Chain(Layer, nn.Sequential):
    """Composition of functions: `Chain(f, g)(x) == g(f(x))`.

    This is `nn.Sequential`, except that layers may have names, which become parts of the paths of their parameters::

        Chain(conv=nn.Conv2d(3, 64, 3), norm=nn.BatchNorm2d(64))  # conv.weight, norm.weight, norm.bias, ...
    """

    def __init__(self, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        _adopt(self, layers, named)

    def __getitem__(self, key: Any) -> Any:
        """Return one layer or, for a slice, a Chain of those layers under the same names."""
        return Chain(**dict(list(self._modules.items())[key])) if isinstance(key, slice) else super().__getitem__(key)


class Join(Layer, nn.ModuleDict, ABC):
    """Branches in parallel: every branch reads the same input, `join` makes one output of theirs.

    Topology needs nothing else: a skip connection is a branch that is the identity, a gate is a branch that ends in a
    sigmoid.
    """

    def __init__(self, *branches: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        if not branches and not named:
            raise SpecError(f"{type(self).__name__} needs at least one branch")
        _adopt(self, branches, named)

    @staticmethod
    @abstractmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        """Return one tensor made of the branches' outputs, in the order of the branches."""

    def forward(self, x: Tensor) -> Tensor:
        return self.join([branch(x) for branch in self._modules.values()])


class Sum(Join):
    """Add the branches: `Sum(f, g)(x) == f(x) + g(x)`.

    With the identity as a branch this is a residual connection: the body learns only the change of its input.

    inplace: a sum of two may add into the output of its first branch, as an activation with `inplace=True` writes into
        its input; a new tensor costs up to 8 % of a ResNet's time on a CPU. It does so only if that tensor is not
        used elsewhere: the last layer of the branch allocated it, the backward pass does not need it, and no hook
        received it. `Network.inplace(False)` turns it off.
    """

    inplace: bool = True

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return reduce(operator.add, outputs)

    def forward(self, x: Tensor) -> Tensor:
        branches = list(self._modules.values())
        outputs = [branch(x) for branch in branches]
        if len(outputs) == 2 and self.inplace and _is_alike(*outputs) and _may_overwrite_output(branches[0]):
            total: Tensor = outputs[0].add_(outputs[1])
            return total
        return self.join(outputs)


class Concat(Join):
    """Stack the channels of the branches: `Concat(f, g)(x) == torch.cat([f(x), g(x)], 1)`.

    An Inception module is a Concat of towers. A layer of DenseNet is a Concat with the identity: nothing is lost, and
    every later layer reads all earlier maps.
    """

    allocates_output = True

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(outputs), 1)


class Product(Join):
    """Multiply the branches, with broadcasting: `Product(f, g)(x) == f(x) * g(x)`.

    With the identity as a branch this is a gate: squeeze-and-excitation multiplies every channel by a number in [0, 1].
    """

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return reduce(operator.mul, outputs)

    @property
    def allocates_output(self) -> bool:  # type: ignore[override]  # the product of one branch is that branch's output
        return len(self) > 1


class Pair(NamedTuple):
    """The input of a layer that reads the outputs of the last two layers, such as a cell of NASNet."""

    now: Tensor
    before: Tensor


def is_observed(layer: nn.Module) -> bool:
    """Return whether calls of this module have side effects: it has a hook, or is compiled by itself.

    torch has no public API for this. These are the conditions under which `nn.Module.__call__` does not skip the hooks.
    """
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(hooks or layer._compiled_call_impl or _has_any_global_hook())


_ALLOCATING = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Conv3d, nn.BatchNorm3d)
"""Layers of torch whose output is a new tensor that the backward pass does not need."""


def _is_alike(a: Tensor, b: Tensor) -> bool:
    """Return whether a + b has the shape and type of a; False while torch.fx traces, when they are not known."""
    return isinstance(a, Tensor) and a.shape == b.shape and a.dtype == b.dtype


def _may_overwrite_output(layer: nn.Module) -> bool:
    """Return whether the output that a layer just computed is not used elsewhere (see `Sum`)."""
    if is_observed(layer):
        return False
    if not isinstance(layer, nn.Sequential):
        return isinstance(layer, _ALLOCATING) or (isinstance(layer, Layer) and layer.allocates_output)
    for inner in reversed(layer._modules.values()):
        if not (isinstance(inner, Layer) and inner.returns_input):
            return _may_overwrite_output(inner)
        if is_observed(inner):
            return False
    return False


# A child with such a name would hide an attribute of its parent ("train", "half", "keys", ...).
_RESERVED = frozenset([*dir(nn.Sequential()), *dir(nn.ModuleDict()), *dir(Sum), "input_shape"])


def _adopt(parent: nn.Module, layers: tuple[nn.Module, ...], named: dict[str, nn.Module]) -> None:
    """Make the layers children of `parent`: positional ones are numbered, the others keep their names."""
    children = parent._modules  # add_module would repeat the checks below, and is slow
    for i, layer in enumerate(layers):
        children[str(i)] = layer
    for name, layer in named.items():
        if name in _RESERVED:
            raise SpecError(f"branch name {name!r} collides with an attribute of every module; choose another name")
        if name in children or not (name.isidentifier() or name.isdecimal()):
            raise SpecError(f"branch name {name!r} is taken or not an identifier; choose another name")
        children[name] = layer
    for child in children.values():
        if not isinstance(child, nn.Module):
            raise TypeError(f"{type(parent).__name__}: a child must be a nn.Module, got a {type(child).__name__}")
