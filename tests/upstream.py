"""Networks of torchvision and timm with random weights, for comparison with ours."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.models.card import Library, Variant
from convatlas.models.catalog import CATALOG, FAMILIES
from convatlas.models.keys import remap_keys

PAIRS = [(name, library) for name, row in CATALOG.items() for library in row.upstream]
"""(our name, library) of every network with an upstream implementation."""


@contextmanager
def without_init() -> Iterator[None]:
    """Build networks without initializing their weights, which takes longer than running them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, function in inspect.getmembers(nn.init, inspect.isfunction):
            if name.endswith("_"):
                patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
            del function
        yield


def scramble(network: nn.Module, seed: int = 0) -> None:
    """Give a network random weights and norm statistics, in ranges that keep its activations finite and nonzero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            if not tensor.is_floating_point():
                continue
            values = torch.empty_like(tensor).normal_(generator=generator)
            if name == "running_var":
                values = values.abs_().mul_(0.5).add_(0.5)
            elif tensor.ndim >= 2:
                values = values.mul_((2 / max(1, tensor[0].numel())) ** 0.5)
            elif name == "weight":
                values = values.mul_(0.2).add_(1)
            else:
                values = values.mul_(0.1)
            tensor.data.copy_(values)


def theirs(name: str, library: Library, *, auxiliary: bool = False) -> nn.Module:
    """Return the upstream network, its weights not initialized."""
    row = CATALOG[name]
    peer = row.upstream[library]
    with without_init():
        if library == "timm":
            timm = pytest.importorskip("timm")
            return cast(nn.Module, timm.create_model(peer))
        import torchvision

        options: dict[str, Any] = {}
        if row.transforms_input:  # GoogLeNet and Inception v3
            options = {"aux_logits": auxiliary, "init_weights": False}
        return cast(nn.Module, torchvision.models.get_model(peer, **options))


def ours(row: Variant) -> Network:
    with without_init():
        return row.spec.build(classes=row.classes, channels=row.preprocessing.channels)


def moved(row: Variant, network: nn.Module, library: str) -> Network:
    """Return our network with the weights of theirs, copied by the key rules."""
    family = next(f for f in FAMILIES.values() if any(type(v.spec) is type(row.spec) for v in f.variants.values()))
    mine = ours(row)
    mine.load_state_dict(remap_keys(network.state_dict(), family.key_mappings[library](row.spec), mine.state_dict()))
    return mine


def images(row: Variant, *, resolution: int, batch: int = 2) -> Tensor:
    channels, *space = row.spec.input_shape(row.preprocessing.channels)
    shape = (*space[:-2], resolution, resolution)
    return torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(1))
