"""Small versions of every classifier of the catalog: all layers, few channels, few repeats, small images."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.core.spec import Spec, cells
from convatlas.models.catalog import CATALOG, build_fresh, stats

CLASSIFIERS = [name for name, row in CATALOG.items() if row.spec.predicts == "classes"]


@cache
def tiny(name: str) -> Spec:
    """Return a network's spec at a quarter of its width, a third of its depth, 48 px or what it needs, and 4 frames."""
    spec = CATALOG[name].spec
    small = spec.scaled(width=0.25, depth=0.34, resolution=min(spec.resolution, max(spec.minimum, 48)))
    return small.replaced({"frames": 4}) if small.reads == "clips" else small


def one_of_each_kind(names: Iterable[str] = CLASSIFIERS) -> list[str]:
    """Return the smallest of the networks that differ only in numbers, such as depths and widths: they share code."""
    kinds: dict[object, str] = {}
    for name in by_size(names):
        known = ((re.sub(r"\d+", "", path), value) for path, value, _ in cells(CATALOG[name].spec))
        kind = frozenset((path, bool(value) if isinstance(value, int | float) else value) for path, value in known)
        kinds.setdefault(kind, name)
    return list(kinds.values())


def one_of_each_spec() -> list[str]:
    """Return the smallest network of each type of spec."""
    return list({type(CATALOG[name].spec): name for name in reversed(by_size(CLASSIFIERS))}.values())


def by_size(names: Iterable[str]) -> list[str]:
    """Return networks by their multiply-adds, the smallest first."""
    return sorted(names, key=lambda name: stats(name).macs)


def of_each_kind(names: Iterable[str] = CLASSIFIERS) -> pytest.MarkDecorator:
    """Parametrize a test by `name`: one network of each kind, the others of the catalog with `-m slow`."""
    names = list(names)
    kinds = one_of_each_kind(names)
    slow = pytest.mark.slow
    return pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in kinds else slow) for n in names])


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


every_network = of_each_kind()
