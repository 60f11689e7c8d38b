"""Networks of torchvision and timm with random weights, for comparison with ours."""

from __future__ import annotations

import inspect
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.models.card import Library, Variant
from convatlas.models.catalog import CATALOG
from convatlas.models.keys import match_shapes
from convatlas.weights.match import rules_of
from convatlas.weights.read import choose_state_dict
from convatlas.weights.sizes import Sizes
from convatlas.weights.state_dicts import find_state_dicts
from tiny_networks import CLASSIFIERS

PAIRS = [(name, library) for name in CLASSIFIERS for library in CATALOG[name].upstream]
"""(our name, library) of every classifier with an upstream implementation."""

RELATIVES = [(name, relative) for name, row in CATALOG.items() for relative in row.relatives]
"""(our name, name in timm) of every network with the same tensors and other cells."""


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
    if library == "timm":
        return timms(peer)
    with without_init():
        import torchvision

        options: dict[str, Any] = {}
        if row.transforms_input:  # GoogLeNet and Inception v3
            options = {"aux_logits": auxiliary, "init_weights": False}
        return cast(nn.Module, torchvision.models.get_model(peer, **options))


def timms(name: str) -> nn.Module:
    """Return timm's network, its weights not initialized."""
    timm = pytest.importorskip("timm")
    with without_init():
        return cast(nn.Module, timm.create_model(name))


def ours(row: Variant) -> Network:
    with without_init():
        return row.spec.build(classes=row.classes, channels=row.preprocessing.channels)


def moved(row: Variant, network: nn.Module, library: str) -> Network:
    """Return our network with the weights of theirs, from the content of a checkpoint that does not name its library.

    Each library's own training script writes such a checkpoint: torchvision's has "model", timm's "state_dict".
    """
    mine, rules = ours(row), rules_of(row.spec)
    sizes = Sizes(row.spec)
    sizes.base = mine.state_dict()  # without the networks that are built to measure it
    content = {
        "state_dict" if library == "timm" else "model": network.state_dict(), "epoch": 3, "args": Namespace(lr=0.1),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]},
    }  # fmt: skip
    path = Path("checkpoint.pth")
    found, match, _ = choose_state_dict(find_state_dicts(content, path), "", path, row.spec, rules, sizes)
    assert rules[match.library] == rules[library]
    mine.load_state_dict(match_shapes({name: found.tensors[key] for name, key in match.names.items()}, sizes.base))
    return mine


def images(row: Variant, *, resolution: int, batch: int = 2, width: int | None = None) -> Tensor:
    """Return random inputs; width: by default the resolution."""
    channels, *space = row.spec.input_shape(row.preprocessing.channels)
    shape = (*space[:-2], resolution, width or resolution)
    return torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(1))
