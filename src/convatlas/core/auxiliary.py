"""Auxiliary parts of a network: layers that only training uses, such as GoogLeNet's side classifiers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from convatlas.core.compose import Chain, Pair

Features = Tensor | Pair
"""An inner output of a network: a map (n, channels, *space), or a `Pair` of maps between the cells of NASNet."""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""(outputs, labels) -> scalar; labels are class indices (n,) or class probabilities (n, classes)."""


class Auxiliary(Chain):
    """Layers that only training uses: they read the output at the tap `at` and add a term to the loss."""

    def __init__(self, at: str, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__(*layers, **named)
        self.at = at

    def term(self, features: Tensor, inputs: Tensor, labels: Tensor, criterion: Criterion) -> Tensor:
        """Return the term, a scalar: `features` are the output at the tap, `criterion` the loss of the network."""
        raise NotImplementedError
