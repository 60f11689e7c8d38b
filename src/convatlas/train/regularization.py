"""Dropout before the classifier and stochastic depth, for networks of any family."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.errors import SpecError
from convatlas.layers.channels import DropPath


def regularize(network: Network, *, dropout: float | None, drop_path: float | None) -> Network:
    """Set the rates of dropout and stochastic depth of a network in place; return the network.

    dropout: rate of all dropout layers; a head without one gets one before its last linear layer.
    drop_path: probability that the last residual branch is dropped; it rises linearly from the first branch on.
    None keeps the rates of the network's paper. Raises SpecError if the network has no place for the layer.
    """
    if dropout is not None:
        _set_dropout(network, dropout)
    if drop_path is not None:
        branches = list(_residual_branches(network.stages))
        if not branches:
            raise SpecError(
                f"recipe: drop_path must be null for this network, got {drop_path:g}; it has no residual branches"
            )
        for number, branch in enumerate(branches, 1):
            branch._modules["drop"] = DropPath(drop_path * number / len(branches))
    return network.train(network.training)  # new layers get the mode of the network


def _set_dropout(network: Network, rate: float) -> None:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Dropout)]
    for layer in layers:
        layer.p = rate
    if layers or not rate:
        return
    last = next(reversed(network.head._modules.items()), None) if isinstance(network.head, Chain) else None
    if last is None or not isinstance(last[1], nn.Linear):
        raise SpecError(
            f"recipe: dropout must be null for this network, got {rate:g}; it has no dropout layer, and its head does "
            "not end in a linear layer"
        )
    del network.head._modules[last[0]]
    network.head._modules.update({"drop": nn.Dropout(rate), last[0]: last[1]})


def _residual_branches(tree: nn.Module) -> Iterator[Chain]:
    """Yield the branches that are added to a shortcut, in order of the forward pass."""
    for layer in tree.modules():
        if isinstance(layer, Sum) and isinstance(layer._modules.get("body"), Chain):
            body = layer._modules["body"]
            assert isinstance(body, Chain)
            yield body
