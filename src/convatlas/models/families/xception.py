"""Xception: every convolution but the first two is depthwise separable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.conv import ConvNorm
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize
from convatlas.models.card import Card, Family, imagenet
from convatlas.models.keys import Rules


class Separable(Chain):
    """3x3 within each channel, 1x1 across channels, norm; nothing in between (Chollet 2016, figure 4)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            depthwise=nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False),
            pointwise=nn.Conv2d(inputs, outputs, 1, bias=False),
            norm=nn.BatchNorm2d(outputs),
        )


class XceptionModule(Sum):
    """ReLU and separable convolutions, pooled where `stride` is 2, beside the shortcut (figure 5).

    The very first has no ReLU in front, since its input is rectified.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], stride: int, *, rectified: bool = False) -> None:
        layers: dict[str, nn.Module] = {}
        channels = inputs
        for i, width in enumerate(widths, 1):
            if i > 1 or not rectified:
                layers[f"act{i}"] = nn.ReLU(inplace=i > 1)
            layers[f"conv{i}"] = Separable(channels, width)
            channels = width
        if stride == 2:
            layers["pool"] = nn.MaxPool2d(3, 2, 1)
        plain = (inputs, stride) == (channels, 1)
        skip = nn.Identity() if plain else ConvNorm(inputs, channels, kernel=1, stride=stride, act=None)
        super().__init__(body=Chain(**layers), skip=skip)


@dataclass(frozen=True)
class Xception(Spec):
    """Chollet 2016, figure 5: entry flow, `middle` equal modules, exit flow."""

    stem: tuple[Width, Width] = (32, 64)
    entry: tuple[Width, ...] = (128, 256, 728)
    middle: Depth = 8
    exit: tuple[Width, Width, Width] = (1024, 1536, 2048)
    resolution: Resolution = 299

    @property
    def minimum(self) -> int:
        return 7

    def build(self, *, classes: int, channels: int) -> Network:
        a, inputs = self.stem
        stem = Chain(
            conv1=ConvNorm(channels, a, stride=2, padding=0), conv2=ConvNorm(a, inputs, padding=0)
        )  # fmt: skip
        stages = []
        for i, width in enumerate(self.entry):
            middle = self.modules(width) if i == len(self.entry) - 1 else ()
            stages.append(Chain(XceptionModule(inputs, (width, width), 2, rectified=not i), *middle))
            inputs = width
        first, second, last = self.exit
        stages.append(Chain(
            XceptionModule(inputs, (inputs, first), 2),
            Chain(conv1=Separable(first, second), act1=nn.ReLU(inplace=True),
                  conv2=Separable(second, last), act2=nn.ReLU(inplace=True)),
        ))  # fmt: skip
        network = Network(
            stem=stem, stages=Chain(*stages), head=pooled(last, classes), input_shape=self.input_shape(channels)
        )
        return initialize(network, conv=he_fan_out)

    def modules(self, width: int) -> Iterator[nn.Module]:
        for _ in range(self.middle):
            yield XceptionModule(width, (width,) * 3, 1)


def timm(spec: Xception) -> Rules:
    entry = len(spec.entry)
    first_exit = entry + spec.middle + 1
    return (
        (r"^conv([12])\.", "stem.conv{1}.conv."), (r"^bn([12])\.", "stem.conv{1}.norm."), (r"^fc\.", "head.out."),
        (r"^conv([34])\.conv1\.", f"stages.{entry}.1.conv{{1-2}}.depthwise."),
        (r"^conv([34])\.pointwise\.", f"stages.{entry}.1.conv{{1-2}}.pointwise."),
        (r"^bn([34])\.", f"stages.{entry}.1.conv{{1-2}}.norm."),
        *((rf"^block{i + 1}\.", f"stages.{i}.0.") for i in range(entry)),
        *((rf"^block{entry + 1 + j}\.", f"stages.{entry - 1}.{j + 1}.") for j in range(spec.middle)),
        (rf"^block{first_exit}\.", f"stages.{entry}.0."),
        (r"\.skipbn\.", ".skip.norm."), (r"\.skip\.weight", ".skip.conv.weight"),
        # the first block has no ReLU in front: its list is one shorter
        *((rf"^(stages\.0\.0)\.rep\.{3 * i}\.", f"{{1}}.body.conv{i + 1}.") for i in range(2)),
        *((rf"^(stages\.0\.0)\.rep\.{3 * i + 1}\.", f"{{1}}.body.conv{i + 1}.norm.") for i in range(2)),
        *((rf"\.rep\.{3 * i + 1}\.", f".body.conv{i + 1}.") for i in range(3)),
        *((rf"\.rep\.{3 * i + 2}\.", f".body.conv{i + 1}.norm.") for i in range(3)),
        (r"\.body\.conv(\d)\.conv1\.", ".body.conv{1}.depthwise."),
    )  # fmt: skip


CARD = Card(
    "Xception", 2016, "Chollet, Xception: deep learning with depthwise separable convolutions, arXiv 1610.02357",
    ("width", "efficiency"), "Inception taken to its end: each channel is filtered by itself, then all are mixed.",
    "79.0 / 94.5 % top-1 / top-5, one crop",
)  # fmt: skip

FAMILY = Family(
    {"xception": imagenet(Xception(), CARD, share=0.8975, half=True, timm="legacy_xception")}, {"timm": timm}
)
