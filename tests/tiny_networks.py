"""Small versions of every network of the catalog: all layers, few channels, few repeats, small images."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.models.catalog import CATALOG, build_fresh


@cache
def tiny(name: str) -> Spec:
    """Return a network's spec at a quarter of its width, a third of its depth, and 48 px or what it needs."""
    spec = CATALOG[name].spec
    return spec.scaled(width=0.25, depth=0.34, resolution=min(spec.resolution, max(spec.minimum, 48)))


def build_tiny(name: str, *, classes: int = 7, channels: int = 3) -> tuple[Network, Tensor]:
    """Return the small network with weights of a fixed seed, ready for inference, and a batch of two inputs."""
    torch.manual_seed(0)
    network = build_fresh(tiny(name), classes=classes, channels=channels).eval()
    return network, torch.randn(2, *network.input_shape)


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = network(x)
    return y


def count_swapped(network: nn.Module) -> int:
    """Return the number of layers of a network whose forward pass is replaced."""
    return sum("forward" in layer.__dict__ for layer in network.modules())
