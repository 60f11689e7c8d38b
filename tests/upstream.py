"""Networks of other libraries with random weights, to compare ours with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.models.card import Variant
from convatlas.models.catalog import CATALOG, FAMILIES
from convatlas.models.keys import remap_keys

PAIRS = [(name, library) for name, row in CATALOG.items() for library in row.upstream]
"""(our name, library) of every network that another library has, too."""


@contextmanager
def without_init() -> Iterator[None]:
    """Build networks without drawing their weights, which takes longer than to run them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, function in inspect.getmembers(nn.init, inspect.isfunction):
            if name.endswith("_"):
                patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
            del function
        yield


def scramble(network: nn.Module, seed: int = 0) -> None:
    """Give a network random weights, affines and statistics, of sizes that keep its activations alive."""
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


def theirs(name: str, library: str, *, auxiliary: bool = False) -> nn.Module:
    """Return the network of another library, its weights not yet drawn."""
    row = CATALOG[name]
    peer = row.upstream[library]
    with without_init():
        if library == "timm":
            timm = pytest.importorskip("timm")
            return cast(nn.Module, timm.create_model(peer))
        import torchvision

        options: dict[str, Any] = {}
        if "transform_input" in inspect.signature(torchvision.models.get_model_builder(peer)).parameters or name in (
            "googlenet", "inception_v3",
        ):  # fmt: skip
            options = {"aux_logits": auxiliary, "init_weights": False}
        return cast(nn.Module, torchvision.models.get_model(peer, **options))


def ours(row: Variant) -> Network:
    with without_init():
        return row.spec.build(classes=row.classes, channels=row.preprocessing.channels)


def moved(row: Variant, network: nn.Module, library: str) -> Network:
    """Return our network with the weights of theirs, moved by the key rules."""
    family = next(f for f in FAMILIES.values() if any(type(v.spec) is type(row.spec) for v in f.variants.values()))
    mine = ours(row)
    mine.load_state_dict(remap_keys(network.state_dict(), family.key_mappings[library](row.spec), mine.state_dict()))
    return mine


def images(row: Variant, *, resolution: int, batch: int = 2) -> Tensor:
    channels, *space = row.spec.input_shape(row.preprocessing.channels)
    shape = (*space[:-2], resolution, resolution)
    return torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(1))
