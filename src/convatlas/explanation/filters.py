"""The filters of the first convolution: what a network computes of the pixels themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.errors import SpecError


@dataclass(frozen=True)
class Filters:
    """The filters of one convolution.

    path: of the layer. weights: (filters, channels, [frames,] h, w) float32, as the network applies them to its input.
    """

    path: str
    weights: Tensor

    @property
    def text(self) -> str:
        """The number and size of the filters, such as "32 filters, 3 x 3 x 3"."""
        return f"{len(self.weights)} filters, {' x '.join(map(str, self.weights.shape[1:]))}"

    def to_plain(self) -> dict[str, Any]:
        """Return the layer and the shape of its weights as plain data."""
        return {"layer": self.path, "shape": list(self.weights.shape)}


def first_filters(network: Network) -> Filters:
    """Return the filters of the first convolution of the tree.

    A convolution with a table of links is shown as the full one that computes the same, with zeros where there is no
    link. Raises SpecError for a network without convolutions.
    """
    for path, layer in network.named_modules():
        if path.startswith(("auxiliary.", "head.transform.")):
            continue
        weight = _weight_of(layer)
        if weight is not None:
            return Filters(path, weight.detach().float().cpu())
    raise SpecError(f"features: the network must have a convolution, and {type(network).__name__} has none")


def _weight_of(layer: nn.Module) -> Tensor | None:
    """Return the weight (filters, channels, *kernel) of a convolution; None for another layer."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return layer.weight
    dense = getattr(layer, "dense", None)  # a convolution with links
    return None if dense is None else dense()


def to_grays(weights: Tensor) -> Tensor:
    """Return weights of one filter, of any shape, from 0 to 1: 0.5 is a weight of zero, equal for all channels."""
    largest = weights.abs().max()
    return weights / (2 * largest) + 0.5 if largest > 0 else weights + 0.5
