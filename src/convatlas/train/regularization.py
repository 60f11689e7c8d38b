"""Dropout before the classifier and stochastic depth, for networks of any family."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.errors import SpecError
from convatlas.layers.channels import DropPath


def regularize(network: Network, *, dropout: float | None, drop_path: float | None) -> Network:
    """Set dropout and stochastic depth of a network while it trains; None leaves what its paper has.

    dropout: the rate of all dropout layers; a head without one gets one before its last linear layer.
    drop_path: the share of the images for which the last residual branch is left out; earlier ones less, linear from 0.
    Raises SpecError where there is no such layer or branch.
    """
    if dropout is not None:
        _set_dropout(network, dropout)
    if drop_path is not None:
        bodies = list(_bodies(network.stages))
        if not bodies:
            raise SpecError("recipe.drop_path: the network has no residual branches")
        for place, body in enumerate(bodies, 1):
            body._modules["drop"] = DropPath(drop_path * place / len(bodies))
    return network.train(network.training)  # the new layers, too


def _set_dropout(network: Network, rate: float) -> None:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Dropout)]
    for layer in layers:
        layer.p = rate
    if layers or not rate:
        return
    last = next(reversed(network.head._modules.items()), None) if isinstance(network.head, Chain) else None
    if last is None or not isinstance(last[1], nn.Linear):
        raise SpecError("recipe.dropout: the network has no dropout, and its head does not end in a linear layer")
    del network.head._modules[last[0]]
    network.head._modules.update({"drop": nn.Dropout(rate), last[0]: last[1]})


def _bodies(tree: nn.Module) -> Iterator[Chain]:
    """Yield the branches that are added to something, in order of the forward pass."""
    for layer in tree.modules():
        if isinstance(layer, Sum) and isinstance(layer._modules.get("body"), Chain):
            body = layer._modules["body"]
            assert isinstance(body, Chain)
            yield body
