"""Convolutions with a frozen batch norm behind them as one convolution, while a network trains.

A frozen norm multiplies every activation map by constants and adds others, each with a pass over memory forward and
backward, and under autocast in float32. Here the scale is multiplied into the weights of the convolution at every step;
their gradient follows by the chain rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from convatlas.core.compose import is_observed
from convatlas.layers.frozen_norm import FrozenBatchNorm2d
from convatlas.train.cpu import depthwise_bf16
from convatlas.train.swap_forward import swap_forward


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Conv2d, FrozenBatchNorm2d]]:
    """Yield the convolutions and the frozen norms right behind them, if nothing else reads what is between them."""
    read, whole = getattr(network, "levels", ()), getattr(network, "chains_run_whole", True)
    places = Counter(id(layer) for parent in network.modules() for layer in parent._modules.values())
    for path, parent in network.named_modules():
        if isinstance(parent, nn.Sequential) and whole:
            names, layers = list(parent._modules), list(parent._modules.values())
            for name, layer, behind in zip(names, layers, layers[1:], strict=False):
                plain = type(layer) is nn.Conv2d and type(behind) is FrozenBatchNorm2d and not is_observed(layer)
                if plain and places[id(layer)] == places[id(behind)] == 1 and f"{path}.{name}" not in read:
                    yield layer, behind  # type: ignore[misc]


def install(network: nn.Module) -> None:
    """Multiply frozen norms into the convolutions before them while the network trains."""
    for convolution, norm in _pairs(network):
        swap_forward(convolution, _forward, norm)
        swap_forward(norm, _after_convolution)


def _forward(convolution: nn.Conv2d, norm: FrozenBatchNorm2d, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return nn.Conv2d.forward(convolution, x)
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    if convolution.bias is not None:
        shift = shift + convolution.bias * scale
    weight = convolution.weight * scale[:, None, None, None]
    if depthwise_bf16.is_slow(convolution):
        return depthwise_bf16.convolve(convolution, x, weight, shift)
    y: Tensor = convolution._conv_forward(x, weight, shift)
    return y


def _after_convolution(norm: FrozenBatchNorm2d, x: Tensor) -> Tensor:
    return x if torch.is_grad_enabled() else type(norm).forward(norm, x)
