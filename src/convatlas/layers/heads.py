"""Heads: from the last maps to the scores of the classes."""

from __future__ import annotations

from torch import Tensor, nn

from convatlas.core.compose import Chain
from convatlas.core.network import Auxiliary, Criterion


def pooled(inputs: int, classes: int, *, dropout: float = 0.0, axes: int = 2) -> Chain:
    """Global average pooling, dropout, one linear layer: the head of most networks since 2013."""
    pool = nn.AdaptiveAvgPool2d(1) if axes == 2 else nn.AdaptiveAvgPool3d(1)
    drop = {"drop": nn.Dropout(dropout)} if dropout else {}
    return Chain(pool=pool, flat=nn.Flatten(), **drop, out=nn.Linear(inputs, classes))


class AuxiliaryClassifier(Auxiliary):
    """A second classifier at an inner layer; its loss is added `weight` times (Szegedy et al. 2014, section 5)."""

    weight = 0.3

    def term(self, features: Tensor, inputs: Tensor, labels: Tensor, criterion: Criterion) -> Tensor:
        return self.weight * criterion(self(features), labels)
