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
from convatlas.models.card import Card, Family, ReportedMetrics, imagenet
from convatlas.models.keys import Rules


class SeparableConv(Chain):
    """3x3 depthwise -> 1x1 -> norm, with no activation between (Chollet 2016, figure 4)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            depthwise=nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False),
            pointwise=nn.Conv2d(inputs, outputs, 1, bias=False),
            norm=nn.BatchNorm2d(outputs),
        )


class XceptionModule(Sum):
    """x + ((ReLU -> separable 3x3) x 2 or 3 -> [3x3 max pooling /2]) (figure 5).

    rectified: there is no ReLU in front, because the input has one already. Where the shape changes, the shortcut is a
    1x1 convolution.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], stride: int, *, rectified: bool = False) -> None:
        layers: dict[str, nn.Module] = {}
        channels = inputs
        for i, width in enumerate(widths, 1):
            if i > 1 or not rectified:
                layers[f"act{i}"] = nn.ReLU(inplace=i > 1)
            layers[f"conv{i}"] = SeparableConv(channels, width)
            channels = width
        if stride == 2:
            layers["pool"] = nn.MaxPool2d(3, 2, 1)
        same_shape = (inputs, stride) == (channels, 1)
        skip = nn.Identity() if same_shape else ConvNorm(inputs, channels, kernel=1, stride=stride, act=None)
        super().__init__(body=Chain(**layers), skip=skip)


@dataclass(frozen=True)
class Xception(Spec):
    """Chollet 2016, figure 5: stem, entry flow, middle flow of `middle` equal modules, exit flow.

    entry, exit: channels of the modules; those of `exit` are of its module and of two separable convolutions.
    """

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
            Chain(conv1=SeparableConv(first, second), act1=nn.ReLU(inplace=True),
                  conv2=SeparableConv(second, last), act2=nn.ReLU(inplace=True)),
        ))  # fmt: skip
        network = Network(
            stem=stem, stages=Chain(*stages), head=pooled(last, classes), input_shape=self.input_shape(channels)
        )
        return initialize(network, conv=he_fan_out)

    def modules(self, width: int) -> Iterator[nn.Module]:
        for _ in range(self.middle):
            yield XceptionModule(width, (width,) * 3, 1)


def timm(spec: Xception) -> Rules:
    """Rules for timm, which numbers the layers of a module.

    "block2.rep.1.pointwise.weight" -> "stages.1.0.body.conv1.pointwise.weight"
    "conv3.conv1.weight" -> "stages.3.1.conv1.depthwise.weight"
    """
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
    ("width", "efficiency"), "The extreme of Inception: each channel is convolved separately, then all are mixed.",
    ReportedMetrics(79.0, 94.5),
)  # fmt: skip

FAMILY = Family(
    {
        "xception": imagenet(
            Xception(), CARD, upstream={"timm": "legacy_xception"}, crop_share=0.8975, scaling="-1 to 1"
        )
    },
    {"timm": timm},
)
