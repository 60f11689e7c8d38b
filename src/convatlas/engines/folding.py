"""Simplify networks for inference: batch norms are folded into the convolutions before them, dropout is removed."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from convatlas.core.compose import is_observed
from convatlas.core.memory_format import CHANNELS_LAST
from convatlas.core.network import Network, flatten_chains, is_chain, named_layers
from convatlas.layers.channels import DropPath
from convatlas.layers.frozen_norm import FrozenBatchNorm2d

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, FrozenBatchNorm2d)
_NO_OPERATION = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath)


@runtime_checkable
class Simplifiable(Protocol):
    """A layer that has a simpler equivalent in evaluation mode."""

    def simplify(self) -> nn.Module:
        """Return the equivalent layer."""
        ...


def fold_norms(network: Network, *, memory_format: torch.memory_format = torch.contiguous_format) -> Network:
    """Return a network with fewer layers and, up to rounding, the same outputs in evaluation mode.

    `network` is not changed, and no parameter is part of both networks. Convolutions get new weights in
    `memory_format`; the other parameters share their memory with those of `network`, and none of them requires grad.
    A network whose chains do not run as a whole is copied as it is. The paths of its `levels` stay.
    """
    if not network.chains_run_whole:
        return copy.deepcopy(network).requires_grad_(False).to(memory_format=memory_format).eval()
    twin = _copy_tree(network, _Rules(memory_format, *_levels_of(network)), {})
    assert isinstance(twin, Network)
    twin.auxiliary = nn.ModuleDict()
    twin._frozen_paths = ()  # of layers that the copy may not have
    return twin.eval()


class _Rules(NamedTuple):
    """How a tree is copied. levels: layers whose outputs are read; above: the chains that they are in."""

    memory_format: torch.memory_format
    levels: frozenset[nn.Module] = frozenset()
    above: frozenset[nn.Module] = frozenset()


def _levels_of(network: Network) -> tuple[frozenset[nn.Module], frozenset[nn.Module]]:
    paths = [path.split(".") for path in network.levels]
    above = {".".join(path[:length]) for path in paths for length in range(1, len(path))}
    return frozenset(map(network.get_submodule, network.levels)), frozenset(map(network.get_submodule, above))


def _copy_tree(layer: nn.Module, rules: _Rules, known: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy of a tree without layers that do nothing.

    known: layer -> its copy, because a layer that is used twice is copied once.
    """
    if layer in known:
        return known[layer]
    if isinstance(layer, Simplifiable):
        twin = known[layer] = _copy_tree(layer.simplify(), rules, known)
        return twin
    twin = known[layer] = _shallow_clone(layer)
    if isinstance(layer, _CONVOLUTIONS) and _has_plain_weights(layer):
        assert isinstance(twin, _CONVOLUTIONS)
        twin.weight = _constant(_to_memory_format(layer.weight.detach(), rules.memory_format))
    elif layer in rules.above:
        twin._modules = _fold_named(layer, rules, known)
    elif is_chain(layer) and not isinstance(layer, Network):
        twin = known[layer] = nn.Sequential(*_fold_chain(flatten_chains(layer.children()), rules, known))
    else:
        twin._modules = {
            name: None if child is None else _copy_tree(child, rules, known) for name, child in layer._modules.items()
        }
    return twin


def _shallow_clone(layer: nn.Module) -> nn.Module:
    """Return a copy of a module that shares the memory of its tensors and its children, but none of its parameters."""
    twin = layer.__new__(type(layer))  # copy.copy refuses modules with parametrizations
    twin.__dict__ |= layer.__dict__
    twin.__dict__.pop("_compiled_call_impl", None)  # it calls `layer`
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(getattr(layer, name))
    for name, parameter in layer._parameters.items():
        twin._parameters[name] = None if parameter is None else _constant(parameter.detach())
    return twin


def _constant(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def _has_plain_weights(layer: nn.Module) -> bool:
    """Return whether the weights are the layer's own, not computed by a parametrization, a hook or pruning."""
    return not is_observed(layer) and not layer._modules and "weight" in layer._parameters


def _fold_named(chain: nn.Module, rules: _Rules, known: dict[nn.Module, nn.Module]) -> dict[str, nn.Module | None]:
    """Return copies of the layers of a chain by name; of a convolution with its norm, the norm becomes an identity."""
    copies: dict[str, nn.Module | None] = {}
    before: tuple[str, nn.Module] | None = None
    for name, layer in named_layers(chain):
        if before and before[1] not in rules.levels and _may_fold(before[1], layer):
            copies[before[0]], copies[name] = _fold_norm(before[1], layer, rules.memory_format), nn.Identity()
            before = None
            continue
        copies[name], before = _copy_tree(layer, rules, known), (name, layer)
    return copies


def _fold_chain(layers: Iterable[nn.Module], rules: _Rules, known: dict[nn.Module, nn.Module]) -> list[nn.Module]:
    """Return copies of the layers of a chain; a batch norm that follows a convolution is folded into it."""
    copies: list[nn.Module] = []
    sources: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, _NO_OPERATION):
            continue
        before = sources[-1] if sources else None
        if before is not None and _may_fold(before, layer):
            copies[-1] = _fold_norm(before, layer, rules.memory_format)
            sources[-1] = layer  # so that a second norm is not folded
            continue
        copies.append(_copy_tree(layer, rules, known))
        sources.append(layer)
    return copies


def _may_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    if not (isinstance(norm, _NORMS) and isinstance(convolution, _CONVOLUTIONS)):
        return False
    return norm.running_mean is not None and _has_plain_weights(convolution) and not is_observed(norm)


@torch.no_grad()
def _fold_norm(convolution: nn.Module, norm: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Return one convolution for a convolution and the batch norm after it; the weights are computed in float64."""
    assert isinstance(norm, _NORMS)
    assert isinstance(convolution, _CONVOLUTIONS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.weight is not None:  # that of a norm without scale and shift is None
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    if convolution.bias is not None:
        shift = shift + convolution.bias * scale
    weight = convolution.weight * scale.view(-1, *[1] * (convolution.weight.ndim - 1))
    twin = _shallow_clone(convolution)
    twin.weight = _constant(_to_memory_format(weight.to(convolution.weight), memory_format))
    twin.bias = _constant(shift.to(convolution.weight))
    return twin


def _to_memory_format(weight: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    if memory_format is not torch.contiguous_format:
        memory_format = CHANNELS_LAST[weight.ndim]
    return weight.clone(memory_format=memory_format)
