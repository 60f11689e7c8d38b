"""MobileNet v1 and v2: convolutions split into a depthwise and a pointwise one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width
from convatlas.layers.conv import ConvNorm, Padding
from convatlas.layers.heads import pooled, pooled_layers
from convatlas.layers.init import he_fan_out, initialize, normal
from convatlas.layers.mbconv import Conv, MBConv, mbconv_layers, timm_mbconv_rules
from convatlas.models.card import Card, Family, ReportedMetrics, Variant, imagenet
from convatlas.models.keys import Rules


class DepthwiseSeparable(Chain):
    """3x3 depthwise /s -> 1x1, each with norm and ReLU6 (Howard et al. 2017, figure 3, right)."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, conv: Conv) -> None:
        super().__init__(
            depthwise=conv(inputs, inputs, stride=stride, groups=inputs), pointwise=conv(inputs, outputs, kernel=1)
        )


def conv_relu6(padding: Padding, eps: float, momentum: float) -> Conv:
    """Return `ConvNorm` with ReLU6, this padding and batch norms with these settings."""
    return partial(ConvNorm, norm=partial(nn.BatchNorm2d, eps=eps, momentum=momentum), act=nn.ReLU6, padding=padding)


@dataclass(frozen=True)
class MobileNetV1(Spec):
    """Howard et al. 2017, table 1: stages of separable convolutions; each stage but the first halves the map.

    The head is that of table 1, with a dropout of 0.001 as in the authors' code.
    padding, and eps and momentum of the batch norms: they belong to the published weights.
    """

    stem: Width = 32
    widths: tuple[Width, ...] = (64, 128, 256, 512, 1024)
    depths: tuple[Depth, ...] = (1, 2, 2, 6, 2)
    padding: Padding = "symmetric"
    eps: float = 1e-5
    momentum: float = 0.1
    small_stem: bool = False
    resolution: Resolution = 224

    def build(self, *, classes: int, channels: int) -> Network:
        conv = conv_relu6(self.padding, self.eps, self.momentum)
        stem = conv(channels, self.stem, stride=1 if self.small_stem else 2)
        inputs, stages = self.stem, []
        for i, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            stages.append(Chain(*self.blocks(inputs, width, depth, 2 if i else 1, conv)))
            inputs = width
        network = Network(
            stem=stem, stages=Chain(*stages), head=pooled(inputs, classes, dropout=0.001),
            input_shape=self.input_shape(channels),
        )  # fmt: skip
        return initialize(network, conv=he_fan_out, linear=normal(0.01))

    def blocks(self, inputs: int, width: int, depth: int, stride: int, conv: Conv) -> Iterator[nn.Module]:
        for i in range(depth):
            yield DepthwiseSeparable(width if i else inputs, width, 1 if i else stride, conv=conv)


def timm_v1(spec: MobileNetV1) -> Rules:
    """Rules for timm.

    "blocks.1.0.conv_dw.weight" -> "stages.1.0.depthwise.conv.weight"
    "blocks.1.0.bn2.bias" -> "stages.1.0.pointwise.norm.bias"
    """
    return (
        (r"^conv_stem\.", "stem.conv."), (r"^bn1\.", "stem.norm."), (r"^classifier\.", "head.out."),
        (r"^blocks\.", "stages."), (r"\.conv_dw\.", ".depthwise.conv."), (r"\.conv_pw\.", ".pointwise.conv."),
        (r"^(stages.*)\.bn1\.", "{1}.depthwise.norm."), (r"^(stages.*)\.bn2\.", "{1}.pointwise.norm."),
    )  # fmt: skip


@dataclass(frozen=True)
class BottleneckRow(Row):
    """A row of table 2 with its columns in order: expansion t, channels c, layers n, stride s of the first layer."""

    expand: int
    width: Width
    depth: Depth
    stride: int

    def build(self, inputs: int, conv: Conv) -> Iterator[nn.Module]:
        for i in range(self.depth):
            yield MBConv(inputs, inputs * self.expand, self.width, conv=conv, stride=1 if i else self.stride)
            inputs = self.width


@dataclass(frozen=True)
class MobileNetV2(Spec):
    """Sandler et al. 2018, table 2: inverted residuals with linear bottlenecks.

    padding, and eps and momentum of the batch norms: they belong to the published weights.
    """

    stem: Width = 32
    rows: tuple[BottleneckRow, ...] = (
        BottleneckRow(1, 16, 1, 1),
        BottleneckRow(6, 24, 2, 2),
        BottleneckRow(6, 32, 3, 2),
        BottleneckRow(6, 64, 4, 2),
        BottleneckRow(6, 96, 3, 1),
        BottleneckRow(6, 160, 3, 2),
        BottleneckRow(6, 320, 1, 1),
    )
    head: Width = 1280
    padding: Padding = "symmetric"
    eps: float = 1e-5
    momentum: float = 0.1
    small_stem: bool = False
    resolution: Resolution = 224

    def scaled(self, *, width: float = 1.0, depth: float = 1.0, resolution: int | None = None) -> Self:
        """Scale as every spec does, but never make the last convolution thinner (section 5)."""
        scaled = super().scaled(width=width, depth=depth, resolution=resolution)
        return replace(scaled, head=max(scaled.head, self.head))

    def build(self, *, classes: int, channels: int) -> Network:
        conv = conv_relu6(self.padding, self.eps, self.momentum)
        inputs, stages = self.stem, []
        for row in self.rows:
            stages.append(Chain(*row.build(inputs, conv)))
            inputs = row.width
        network = Network(
            stem=conv(channels, self.stem, stride=1 if self.small_stem else 2),
            stages=Chain(*stages),
            head=Chain(conv=conv(inputs, self.head, kernel=1), **pooled_layers(self.head, classes, dropout=0.2)),
            input_shape=self.input_shape(channels),
        )
        return initialize(network, conv=he_fan_out, linear=normal(0.01))


def torchvision(spec: MobileNetV2) -> Rules:
    """Rules for torchvision, whose `features` is one list of the stem, all blocks and the last convolution.

    "features.3.conv.0.0.weight" -> "stages.1.1.body.expand.conv.weight"
    "features.3.conv.3.bias" -> "stages.1.1.body.project.norm.bias"
    """
    rules, place = [], 1
    for i, row in enumerate(spec.rows):
        for j in range(row.depth):
            names = mbconv_layers(expanded=row.expand != 1)
            at, ours = rf"^features\.{place}\.conv\.", f"stages.{i}.{j}.body."
            for k, name in enumerate(names[:-1]):
                rules += [(rf"{at}{k}\.0\.", f"{ours}{name}.conv."), (rf"{at}{k}\.1\.", f"{ours}{name}.norm.")]
            rules.append((rf"{at}{len(names) - 1}\.", f"{ours}project.conv."))
            rules.append((rf"{at}{len(names)}\.", f"{ours}project.norm."))
            place += 1
    return (
        *rules,
        (r"^features\.0\.0\.", "stem.conv."), (r"^features\.0\.1\.", "stem.norm."),
        (rf"^features\.{place}\.0\.", "head.conv.conv."), (rf"^features\.{place}\.1\.", "head.conv.norm."),
        (r"^classifier\.1\.", "head.out."),
    )  # fmt: skip


def timm_v2(spec: MobileNetV2) -> Rules:
    """Rules for timm.

    "blocks.1.0.conv_pwl.weight" -> "stages.1.0.body.project.conv.weight"
    """
    rows = enumerate(spec.rows)
    return timm_mbconv_rules((f"{i}.{j}", row.expand != 1, False) for i, row in rows for j in range(row.depth))


def timm(spec: MobileNetV1 | MobileNetV2) -> Rules:
    return timm_v1(spec) if isinstance(spec, MobileNetV1) else timm_v2(spec)


CARD = Card(
    "MobileNet v1", 2017, "Howard et al., MobileNets: efficient convolutional neural networks, arXiv 1704.04861",
    ("efficiency",), "Depthwise separable convolutions, and two multipliers to trade accuracy for time.",
    ReportedMetrics(70.6, 89.5),
)  # fmt: skip
CARD_V2 = CARD.of(
    "MobileNet v2", reported=ReportedMetrics(72.0, 91.0), year=2018,
    paper="Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks, arXiv 1801.04381",
    innovation="Shortcuts between thin layers; the wide layers between them are cheap, because they are depthwise.",
)  # fmt: skip


def v1_variant(width: float, top1: float) -> Variant:
    """Return a narrower network; top1: reported in table 7, in percent."""
    card = CARD.of(f"MobileNet v1 {width:g}", reported=ReportedMetrics(top1))
    return imagenet(MobileNetV1().scaled(width=width), card)


FAMILY = Family(
    {
        "mobilenet_v1": imagenet(MobileNetV1(), CARD, upstream={"timm": "mobilenetv1_100"}),
        "mobilenet_v1_025": v1_variant(0.25, 50.6),
        "mobilenet_v1_050": v1_variant(0.5, 63.7),
        "mobilenet_v1_075": v1_variant(0.75, 68.4),
        "mobilenet_v2": imagenet(
            MobileNetV2(), CARD_V2, upstream={"torchvision": "mobilenet_v2", "timm": "mobilenetv2_100"}
        ),
    },
    {"torchvision": torchvision, "timm": timm},
)  # fmt: skip
