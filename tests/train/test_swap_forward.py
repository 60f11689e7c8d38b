"""Replaced forward passes: undone completely, and bound to the layer of a deep copy."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from convatlas.train.swap_forward import restore_forwards, swap_forward
from tiny_networks import count_swapped


def _scaled(layer: nn.Linear, factor: float, x: Tensor) -> Tensor:
    return nn.Linear.forward(layer, x) * factor


def test_swap_and_restore() -> None:
    network, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.randn(4, 3)
    names, plain = list(network.state_dict()), network[0](x)
    swap_forward(network[0], _scaled, 2.0)
    assert count_swapped(network) == 1
    assert torch.equal(network[0](x), 2 * plain)
    assert list(network.state_dict()) == names
    restore_forwards(network)
    assert count_swapped(network) == 0
    assert torch.equal(network[0](x), plain)


def test_a_deep_copy_computes_with_its_own_weights() -> None:
    network, x = nn.Sequential(nn.Linear(3, 2)), torch.ones(1, 3)
    swap_forward(network[0], _scaled, 2.0)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert copied(x).eq(0).all()
    assert network(x).ne(0).any()
