"""3-D convolutions in training on CPUs: faster ones, and correct gradients in bfloat16.

In bfloat16, oneDNN's gradient of the weight is wrong for maps of fewer frames than the kernel has: parts of it are
memory that was never written. That is so for the last stage of R3D-18 and R(2+1)D-18 with clips of 16 frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from convatlas.layers import temporal_conv
from convatlas.system.c_library import compiler, version_of
from convatlas.train.cpu import winograd
from convatlas.train.swap_forward import swap_forward

Sizes = tuple[int, int, int]
"""(time, height, width)"""


def compiler_version(network: nn.Module) -> str:
    """Return the first line of the compiler's --version; "none" if no convolution of the network runs with Winograd."""
    command = compiler()
    if command is None or not any(map(winograd.is_suitable, network.modules())) or not winograd.KERNELS.load():
        return "none"
    return version_of(command)


def compile_in_background(network: nn.Module) -> None:
    """Start to compile the kernels in a thread, if the network can use them and the cache does not have them."""
    if any(map(winograd.is_suitable, network.modules())):
        winograd.KERNELS.compile_in_background()


def install_fast(network: nn.Module) -> None:
    """Let convolutions of a network in channels_last_3d run with Winograd's algorithm, or as 2-D convolutions."""
    suitable = [layer for layer in network.modules() if winograd.is_suitable(layer)]
    if suitable and winograd.KERNELS.load():
        for layer in suitable:
            swap_forward(layer, _winograd)
    for layer in network.modules():
        if temporal_conv.is_temporal(layer):
            swap_forward(layer, temporal_conv.convolve)


def install_exact(network: nn.Module) -> None:
    """Let convolutions of a network with kernels over several frames have correct gradients under autocast."""
    for layer in network.modules():
        if _may_be_wrong(layer):
            swap_forward(layer, _exact)


def _may_be_wrong(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv3d
        and layer.kernel_size[0] > 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _winograd(layer: nn.Conv3d, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        inputs = _autocast(x)
        if winograd.is_fast(inputs):
            y = winograd.convolve(inputs, layer.weight)
            return y if layer.bias is None else y + layer.bias.to(y.dtype)[:, None, None, None]
    return _exact(layer, x)


def _exact(layer: nn.Conv3d, x: Tensor) -> Tensor:
    inputs = _autocast(x)
    if not torch.is_grad_enabled() or inputs.dtype != torch.bfloat16 or x.shape[2] >= layer.kernel_size[0]:
        return nn.Conv3d.forward(layer, x)
    y: Tensor = _Convolution.apply(inputs, _autocast(layer.weight), layer)
    return y if layer.bias is None else y + layer.bias.to(y.dtype)[:, None, None, None]


def _autocast(x: Tensor) -> Tensor:
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


class _Convolution(torch.autograd.Function):
    """Convolution of x (n, c, t, h, w); the gradient of the weight is computed for each frame of the kernel."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, layer: nn.Conv3d) -> Tensor:
        context.save_for_backward(x, weight)
        context.layer = layer
        return F.conv3d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = context.saved_tensors
        layer: Any = context.layer
        stride, padding, dilation = layer.stride, layer.padding, layer.dilation
        grad_x = grad_weight = None
        if context.needs_input_grad[0]:
            grad_x = torch.ops.aten.convolution_backward(
                grad_y, x, weight, None, stride, padding, dilation, False, (0, 0, 0), layer.groups, (True, False, False)
            )[0]
        if context.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            for tap in range(weight.shape[2]):
                first = tap * dilation[0] - padding[0]  # frame of x that is multiplied for the first output
                outputs = [i for i in range(grad_y.shape[2]) if 0 <= first + i * stride[0] < x.shape[2]]
                if outputs:
                    frames = [first + i * stride[0] for i in outputs]
                    grad_weight[:, :, tap] = torch.ops.aten.convolution_backward(
                        _images(grad_y, outputs), _images(x, frames), weight[:, :, tap], None, stride[1:], padding[1:],
                        dilation[1:], False, (0, 0), layer.groups, (False, True, False),
                    )[1]  # fmt: skip
        return grad_x, grad_weight, None


def _images(maps: Tensor, frames: list[int]) -> Tensor:
    """Return frames of maps (n, c, t, h, w) as (n * frames, c, h, w)."""
    return maps[:, :, frames].transpose(1, 2).flatten(0, 1)
