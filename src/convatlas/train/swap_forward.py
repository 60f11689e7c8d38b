"""Replace the forward pass of single layers while a network trains, and undo it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn


def swap_forward(layer: nn.Module, forward: Callable[..., Any], *args: Any) -> None:
    """Let `layer(x)` compute `forward(layer, *args, x)` until `restore_forwards`.

    Only the computation is replaced: parameters, buffers, hooks and the names in the state dict stay, so optimizers,
    checkpoints and EMA copies work unchanged. The function gets the layer as an argument, so that a deep copy of the
    network computes with the weights of the copy.
    """
    layer.forward = partial(forward, layer, *args)


def restore_forwards(network: nn.Module) -> None:
    """Undo `swap_forward` for all layers of a network."""
    for layer in network.modules():
        layer.__dict__.pop("forward", None)
