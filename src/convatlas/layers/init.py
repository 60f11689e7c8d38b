"""Initialization of weights: one function over a tree, with the distributions for convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

Draw = Callable[[Tensor], object]
"""Fills a weight in place."""

he_fan_out: Draw = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
"""N(0, sqrt(2 / fan-out)): keeps the variance of gradients through ReLU (He et al. 2015, "Delving deep")."""

he_fan_in: Draw = nn.init.kaiming_normal_
"""N(0, sqrt(2 / fan-in)): keeps the variance of activations through ReLU."""


def normal(std: float) -> Draw:
    """N(0, std)."""
    return partial(nn.init.normal_, std=std)


def truncated(std: float) -> Draw:
    """N(0, std), truncated to [-2, 2]."""
    return partial(nn.init.trunc_normal_, std=std)


Tree = TypeVar("Tree", bound=nn.Module)


def is_empty(layer: nn.Module) -> bool:
    """Return whether a layer is on the device "meta", without memory; torch would import its compiler to fill it."""
    return any(parameter.is_meta for parameter in layer.parameters(recurse=False))


def initialize(tree: Tree, *, conv: Draw | None = None, linear: Draw | None = None) -> Tree:
    """Draw the weights of all convolutions and linear layers, set their biases to zero, and return the tree.

    A kind without a distribution keeps the weights that torch drew.
    """
    for layer in tree.modules():
        if is_empty(layer):
            continue
        draw = conv if isinstance(layer, nn.Conv2d | nn.Conv3d) else linear if isinstance(layer, nn.Linear) else None
        if draw is not None:
            draw(layer.weight)  # type: ignore[arg-type]
            if isinstance(layer.bias, Tensor):
                nn.init.zeros_(layer.bias)
    return tree
