"""Large linear layers stay in float32 where the rest of a step on a CPU is in bfloat16.

With a batch of images their products take no longer than reading the weights does; copies in bfloat16 would only
take memory, a third of AlexNet's (docs/results.md).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGE = 2**22
"""Weights from which on a layer is large."""


def install(network: nn.Module) -> None:
    """Let the large linear layers of a network compute in float32 under autocast."""
    for layer in network.modules():
        if type(layer) is nn.Linear and layer.weight.numel() >= LARGE:
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)
