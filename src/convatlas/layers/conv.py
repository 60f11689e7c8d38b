"""Convolution with norm and activation, in both orders, and squeeze-and-excitation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from convatlas.core.compose import Chain, Product
from convatlas.layers.channels import SamePad

Activation = type[nn.Module]
Size = int | tuple[int, int]
Norm = Callable[[int], nn.Module]
"""Builds a norm for a number of channels, such as `nn.BatchNorm2d` or a partial of it."""

Padding = Literal["symmetric", "same"]
"""How convolutions with a stride pad their input: half the kernel on each side, or as TensorFlow's "SAME" does."""

_IN_PLACE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)


def activation(kind: Activation) -> nn.Module:
    """Return an activation for use right behind a norm or a convolution: in place if the kind supports it."""
    return kind(inplace=True) if kind in _IN_PLACE else kind()


def symmetric_padding(kernel: Size) -> Size:
    """Return the padding on each side that keeps the size of the map, for odd kernels and stride 1."""
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


class ConvNorm(Chain):
    """[pad ->] convolution -> norm -> activation. Without a norm the convolution has a bias.

    padding: "symmetric" is half the kernel, which keeps the size of the map at stride 1. "same" is equal to it there,
        and at other strides a layer that pads as TensorFlow does. Kernels are odd.
    """

    show_title = False

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: Size = 3,
        stride: int = 1,
        padding: Size | Padding = "symmetric",
        groups: int = 1,
        norm: Norm | None = nn.BatchNorm2d,
        act: Activation | None = nn.ReLU,
    ) -> None:
        layers: dict[str, nn.Module] = {}
        if padding == "same" and stride > 1:
            layers["pad"], padding = SamePad(kernel, stride), 0
        elif isinstance(padding, str):
            padding = symmetric_padding(kernel)
        layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=norm is None)
        if norm is not None:
            layers["norm"] = norm(outputs)
        if act is not None:
            layers["act"] = activation(act)
        super().__init__(**layers)


class NormConv(Chain):
    """Norm -> ReLU -> convolution: the order of DenseNet and of pre-activation ResNet."""

    show_title = False

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            norm=nn.BatchNorm2d(inputs),
            act=nn.ReLU(inplace=True),
            conv=nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        )


class SqueezeExcitation(Product):
    """x * sigmoid(global avg pool -> 1x1 -> ReLU -> 1x1): one gate per channel (Hu et al. 2017, figure 2).

    middle: channels of the gate's hidden layer. act, gate: kinds of the hidden and the last activation.
    """

    def __init__(self, width: int, middle: int, *, act: Activation = nn.ReLU, gate: Activation = nn.Sigmoid) -> None:
        super().__init__(
            same=nn.Identity(),
            gate=Chain(
                pool=nn.AdaptiveAvgPool2d(1),
                reduce=nn.Conv2d(width, middle, 1),
                act=activation(act),
                expand=nn.Conv2d(middle, width, 1),
                gate=gate(),
            ),
        )
