"""How a network's tensors lie in memory while it trains on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convatlas.joins import Chain, Network

_BLOCKED = (nn.Sequential, Chain, nn.Conv2d, nn.MaxPool2d, nn.ReLU)


def _plain(layer: nn.Module) -> bool:
    """Return whether a layer's settings are among those that oneDNN's own layers know."""
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.MaxPool2d):
        return layer.dilation in (1, (1, 1)) and not (layer.ceil_mode or layer.return_indices)
    return True


def blocked(network: Network) -> Callable[[Tensor], Tensor]:
    """Return a forward pass of `network` that is faster on CPUs, for the same function and the same parameters.

    Stem and stages run in oneDNN's blocked layout, where eight or sixteen channels lie side by side and pooling and
    ReLU stay in it (measured in docs/results.md). Only plain convolutions, max pooling and ReLU have forward and
    backward passes there; any other network is returned as it is, and so is every network on a GPU.
    """
    stem, stages, head = network.stem, network.stages, network.head
    body = (*stem.modules(), *stages.modules())
    fits = all(type(layer) in _BLOCKED and _plain(layer) for layer in body)
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    if network.auxiliary or not (on_cpu and torch.backends.mkldnn.is_available() and fits):
        return network

    def forward(x: Tensor) -> Tensor:
        features: Tensor = stages(stem(x.to_mkldnn()))
        output: Tensor = head(features.to_dense())
        return output

    return forward
