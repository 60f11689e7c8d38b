"""Heads: from the last feature maps to one score per class."""

from __future__ import annotations

from torch import Tensor, nn

from convatlas.core.auxiliary import Auxiliary, Criterion
from convatlas.core.compose import Chain


def pooled_layers(inputs: int, classes: int, *, dropout: float = 0.0, axes: int = 2) -> dict[str, nn.Module]:
    """Return the layers of `pooled` by name, for a head with other layers in front. axes: 2 (images) or 3 (clips)."""
    layers: dict[str, nn.Module] = {
        "pool": nn.AdaptiveAvgPool2d(1) if axes == 2 else nn.AdaptiveAvgPool3d(1),
        "flat": nn.Flatten(),
    }
    if dropout:
        layers["drop"] = nn.Dropout(dropout)
    return layers | {"out": nn.Linear(inputs, classes)}


def pooled(inputs: int, classes: int, *, dropout: float = 0.0, axes: int = 2) -> Chain:
    """Global avg pool -> [dropout] -> linear: the head of most networks since 2013."""
    return Chain(**pooled_layers(inputs, classes, dropout=dropout, axes=axes))


class AuxiliaryClassifier(Auxiliary):
    """A second classifier at an inner layer; `weight` times its loss is added (Szegedy et al. 2014, section 5)."""

    weight = 0.3

    def term(self, features: Tensor, inputs: Tensor, labels: Tensor, criterion: Criterion) -> Tensor:
        return self.weight * criterion(self(features), labels)
