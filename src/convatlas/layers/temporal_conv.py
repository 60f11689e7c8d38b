"""Convolutions over time alone, as 2-D convolutions, which oneDNN computes several times as fast on CPUs.

In channels_last_3d, a clip is also an image with a row for each frame, of all its pixels: a view of the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TemporalConv(nn.Conv3d):
    """A convolution that `is_temporal`, computed by `convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self, x)


def is_temporal(layer: nn.Module) -> bool:
    """Return whether a layer is a 3-D convolution over time alone, which `convolve` can compute."""
    return (
        type(layer) is nn.Conv3d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.kernel_size[0] > 1
        and layer.kernel_size[1:] == layer.stride[1:] == (1, 1)
        and layer.padding[1:] == (0, 0)
    )


def convolve(layer: nn.Conv3d, x: Tensor) -> Tensor:
    """Return the output of a layer that `is_temporal` for x (n, c, t, h, w); up to rounding that of torch.

    torch computes it if x is not in channels_last_3d.
    """
    if x.ndim != 5 or not x.is_contiguous(memory_format=torch.channels_last_3d):
        return nn.Conv3d.forward(layer, x)
    y: Tensor = F.conv2d(
        x.flatten(3), layer.weight.flatten(3), layer.bias, (layer.stride[0], 1), (int(layer.padding[0]), 0),
        (layer.dilation[0], 1), layer.groups,
    )  # fmt: skip
    return y.view(*y.shape[:3], *x.shape[3:])


def use_temporal_convolutions(network: nn.Module) -> None:
    """Let `convolve` compute the convolutions of a network that are temporal, in place."""
    for layer in network.modules():
        if is_temporal(layer):
            layer.__class__ = TemporalConv
