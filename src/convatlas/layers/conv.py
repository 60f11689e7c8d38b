"""Convolution with its norm and activation, in both orders, and the gate of squeeze-and-excitation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from convatlas.core.compose import Chain, Product

Activation = type[nn.Module]
Size = int | tuple[int, int]
Norm = Callable[[int], nn.Module]
"""Makes a norm for a number of channels, such as `nn.BatchNorm2d` or a partial of it."""

_IN_PLACE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)


def activation(kind: Activation) -> nn.Module:
    """Return an activation for the place right after a norm or a convolution: it overwrites its input where it can."""
    return kind(inplace=True) if kind in _IN_PLACE else kind()


def centerd(kernel: Size) -> Size:
    """Return the padding that keeps the size of the map for odd kernels and stride 1."""
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


class ConvNorm(Chain):
    """Convolution, norm, activation. Without a norm the convolution has a bias.

    padding: half the kernel where left out.
    """

    titled = False

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: Size = 3,
        stride: int = 1,
        padding: Size | None = None,
        groups: int = 1,
        norm: Norm | None = nn.BatchNorm2d,
        act: Activation | None = nn.ReLU,
    ) -> None:
        padding = centerd(kernel) if padding is None else padding
        layers: dict[str, nn.Module] = {
            "conv": nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=norm is None)
        }
        if norm is not None:
            layers["norm"] = norm(outputs)
        if act is not None:
            layers["act"] = activation(act)
        super().__init__(**layers)


def tower_of(
    conv: Callable[..., nn.Module], inputs: int, widths: Sequence[int], kernels: Sequence[Size], *, stride: int = 1
) -> Chain:
    """Convolutions one after another, as Inception's branches have them; a last one of stride 2 has no border."""
    layers: dict[str, nn.Module] = {}
    for i, (width, kernel) in enumerate(zip(widths, kernels, strict=True), 1):
        reducing: dict[str, int] = {"stride": 2, "padding": 0} if i == len(widths) and stride == 2 else {}
        layers[f"conv{i}"] = conv(inputs, width, kernel=kernel, **reducing)
        inputs = width
    return Chain(**layers)


class NormConv(Chain):
    """Norm, activation, convolution: the order of DenseNet and of pre-activation ResNet."""

    titled = False

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            norm=nn.BatchNorm2d(inputs),
            act=nn.ReLU(inplace=True),
            conv=nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        )


class SqueezeExcitation(Product):
    """Every channel times a gate computed from the means of all (Hu et al. 2017, figure 2)."""

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
