"""A network as it is used for answers alone: norms folded into the convolutions before them, dropout left out."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from convatlas.core.compose import unrolled
from convatlas.core.network import Network, is_chain
from convatlas.layers.channels import DropPath

Convolution = nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath)


@runtime_checkable
class Simplifiable(Protocol):
    """A layer that has a simpler equal for answers alone."""

    def simplified(self) -> nn.Module: ...


def folded(network: Network, *, layout: torch.memory_format = torch.contiguous_format) -> Network:
    """Return a network with the same outputs (to rounding) in evaluation mode, and fewer steps; `network` stays.

    Convolutions have new weights, in the memory format `layout`; all other weights are shared with `network`.
    """
    twin = _copied(network, layout, {})
    assert isinstance(twin, Network)
    twin.auxiliary = nn.ModuleDict()
    return twin.eval().requires_grad_(False)


def _copied(layer: nn.Module, layout: torch.memory_format, known: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy of a tree, without the layers that do nothing; a layer that is used twice is copied once."""
    if layer in known:
        return known[layer]
    if isinstance(layer, Simplifiable):
        twin = known[layer] = _copied(layer.simplified(), layout, known)
        return twin
    twin = known[layer] = _of_its_own(layer)
    if isinstance(layer, _CONVOLUTIONS):
        assert isinstance(twin, _CONVOLUTIONS)
        twin.weight = nn.Parameter(_laid(layer.weight.detach(), layout))
    elif is_chain(layer) and not isinstance(layer, Network):
        twin = known[layer] = nn.Sequential(*_merged(unrolled(layer.children()), layout, known))
    else:
        twin._modules = {
            name: None if child is None else _copied(child, layout, known) for name, child in layer._modules.items()
        }
    return twin


def _of_its_own(layer: nn.Module) -> nn.Module:
    """Return a module that shares the tensors of another one, but not the tables in which they are kept."""
    twin = copy.copy(layer)
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(getattr(layer, name))
    return twin


def _merged(
    layers: Iterable[nn.Module], layout: torch.memory_format, known: dict[nn.Module, nn.Module]
) -> list[nn.Module]:
    """Return the copies of the layers of a chain; a norm right behind a convolution becomes a part of it."""
    kept: list[nn.Module] = []
    sources: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, _IDLE):
            continue
        before = sources[-1] if sources else None
        if isinstance(layer, _NORMS) and isinstance(before, _CONVOLUTIONS) and layer.running_mean is not None:
            kept[-1] = _with_norm(before, layer, layout)
            sources[-1] = layer  # a second norm would not be folded
            continue
        kept.append(_copied(layer, layout, known))
        sources.append(layer)
    return kept


@torch.no_grad()
def _with_norm(convolution: Convolution, norm: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Return the convolution that does what a convolution and a batch norm do in turn; computed in float64."""
    assert isinstance(norm, _NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    if convolution.bias is not None:
        shift = shift + convolution.bias * scale
    weight = convolution.weight * scale.view(-1, *[1] * (convolution.weight.ndim - 1))
    twin = _of_its_own(convolution)
    twin.weight = nn.Parameter(_laid(weight.to(convolution.weight), layout))
    twin.bias = nn.Parameter(shift.to(convolution.weight))
    return twin


def _laid(weight: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    if weight.ndim == 5 and layout is torch.channels_last:
        layout = torch.channels_last_3d
    return weight.clone(memory_format=layout)
