"""The sanity check of explanations by random weights: a map that stays the same does not depend on the network.

The weights are randomized from the head down, one part after the other, and the map is computed each time (Adebayo et
al. 2018, section 3.1, "cascading randomization").
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convatlas.core.network import Network

LIMIT = 0.5
"""Rank correlation with the map of the trained network from which a map counts as unchanged."""

DRAWS = 3
"""Default number of draws of random weights."""


@dataclass(frozen=True, repr=False)
class Randomization:
    """Spearman correlation of the map with that of the trained network.

    correlations: path of the part that was randomized last -> correlation; the parts behind it are random, too.
    """

    correlations: Mapping[str, float]

    @property
    def correlation(self) -> float:
        """The correlation with all weights randomized."""
        return list(self.correlations.values())[-1]

    @property
    def is_passed(self) -> bool:
        """Whether the map of the random network is another one."""
        return self.correlation < LIMIT

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        number = f"rank correlation with the map of random weights {self.correlation:.2f}"
        if self.is_passed:
            return f"{number}: the map depends on the weights"
        return f"{number}, at least {LIMIT}: the map does not depend on the weights"

    def to_plain(self) -> dict[str, Any]:
        return {"correlations": dict(self.correlations), "passed": self.is_passed}

    def __repr__(self) -> str:
        return self.verdict


def randomize_weights(
    network: Network, heatmap: Callable[[Network], Tensor], *, draws: int = DRAWS, seed: int = 0
) -> Randomization:
    """Return how the map changes while the weights are randomized from the head down; `network` does not change.

    heatmap: returns the map of a network. draws: of random weights, over which the correlations are averaged: that of a
    single draw on a map of 7 x 7 cells is above 0.5 by chance for about one image in ten.
    """
    expected = heatmap(network)
    correlations: dict[str, float] = {}
    for draw in range(draws):
        random, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed + draw)
        for path, parameters in reversed(random.groups_by_depth()):
            for parameter in parameters:
                _randomize(parameter, generator)
            correlation = rank_correlation(heatmap(random), expected)
            correlations[path] = correlations.get(path, 0.0) + correlation / draws
    return Randomization(correlations)


@torch.no_grad()
def _randomize(parameter: Tensor, generator: torch.Generator) -> None:
    """Replace a parameter by normal noise of its own mean and standard deviation, so that outputs keep their scale."""
    values = parameter.detach().float().cpu()
    deviation = float(values.std()) if values.numel() > 1 else float(values.abs().sum())
    parameter.copy_(torch.randn(values.shape, generator=generator) * deviation + values.mean())


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Return Spearman's correlation of two maps; 0 if one of them is constant, or not finite."""
    a, b = (_ranks(values.flatten().double()) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a.square().sum() * b.square().sum()))
    return float((a * b).sum()) / scale if scale else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Return ranks (n,); equal values have the mean of their ranks."""
    _, inverse, counts = values.nan_to_num().unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks: Tensor = ends - (counts - 1) / 2
    return ranks[inverse]
