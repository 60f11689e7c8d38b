"""Large linear layers in float32 while the rest of a step on a CPU runs in bfloat16.

With a batch of images, their products take no longer than reading the weights does; copies of the weights in bfloat16
would only take memory, a third of AlexNet's (docs/benchmarks.md). The hundreds of regions of a detector are another
matter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.train.swap_forward import swap_forward

MIN_WEIGHTS = 2**22
"""Minimum number of weights of a linear layer that stays in float32."""

MAX_ROWS = 256
"""Maximum number of input rows (images) for which it stays in float32."""


def install(network: nn.Module) -> None:
    """Let the large linear layers of a network compute in float32 under autocast."""
    for layer in network.modules():
        if type(layer) is nn.Linear and layer.weight.numel() >= MIN_WEIGHTS:
            swap_forward(layer, _forward)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    if x.numel() > MAX_ROWS * layer.in_features:
        return F.linear(x, layer.weight, layer.bias)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)
