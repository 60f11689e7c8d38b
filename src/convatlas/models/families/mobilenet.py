"""MobileNet v1, v2 and v3: convolutions split into a depthwise and a pointwise one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width
from convatlas.layers.conv import ConvNorm, SqueezeExcitation
from convatlas.layers.heads import pooled, pooled_layers
from convatlas.layers.init import he_fan_out, initialize, normal
from convatlas.layers.mbconv import MBConv, mbconv_layers, timm_mbconv_rules
from convatlas.models.card import Card, Family, ReportedMetrics, imagenet
from convatlas.models.keys import Rules


class DepthwiseSeparable(Chain):
    """3x3 depthwise /s -> 1x1, each with norm and ReLU6 (Howard et al. 2017, figure 3, right)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(
            depthwise=ConvNorm(inputs, inputs, stride=stride, groups=inputs, act=nn.ReLU6),
            pointwise=ConvNorm(inputs, outputs, kernel=1, act=nn.ReLU6),
        )


@dataclass(frozen=True)
class MobileNetV1(Spec):
    """Howard et al. 2017, table 1: stages of separable convolutions; each stage but the first halves the map.

    The head is that of table 1, with a dropout of 0.001 as in the authors' code.
    """

    stem: Width = 32
    widths: tuple[Width, ...] = (64, 128, 256, 512, 1024)
    depths: tuple[Depth, ...] = (1, 2, 2, 6, 2)
    small_stem: bool = False
    resolution: Resolution = 224

    def build(self, *, classes: int, channels: int) -> Network:
        stem = ConvNorm(channels, self.stem, stride=1 if self.small_stem else 2, act=nn.ReLU6)
        inputs, stages = self.stem, []
        for i, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            stages.append(Chain(*self.blocks(inputs, width, depth, stride=2 if i else 1)))
            inputs = width
        network = Network(
            stem=stem, stages=Chain(*stages), head=pooled(inputs, classes, dropout=0.001),
            input_shape=self.input_shape(channels),
        )  # fmt: skip
        return initialize(network, conv=he_fan_out, linear=normal(0.01))

    def blocks(self, inputs: int, width: int, depth: int, stride: int) -> Iterator[nn.Module]:
        for i in range(depth):
            yield DepthwiseSeparable(width if i else inputs, width, 1 if i else stride)


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


conv_relu6 = partial(ConvNorm, act=nn.ReLU6)


@dataclass(frozen=True)
class BottleneckRow(Row):
    """A row of table 2 with its columns in order: expansion t, channels c, layers n, stride s of the first layer."""

    expand: int
    width: Width
    depth: Depth
    stride: int

    def build(self, inputs: int) -> Iterator[nn.Module]:
        for i in range(self.depth):
            yield MBConv(inputs, inputs * self.expand, self.width, conv=conv_relu6, stride=1 if i else self.stride)
            inputs = self.width


@dataclass(frozen=True)
class MobileNetV2(Spec):
    """Sandler et al. 2018, table 2: inverted residuals with linear bottlenecks."""

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
    small_stem: bool = False
    resolution: Resolution = 224

    def scaled(self, *, width: float = 1.0, depth: float = 1.0, resolution: int | None = None) -> Self:
        """Scale as every spec does, but never make the last convolution thinner (section 5)."""
        scaled = super().scaled(width=width, depth=depth, resolution=resolution)
        return replace(scaled, head=max(scaled.head, self.head))

    def build(self, *, classes: int, channels: int) -> Network:
        inputs, stages = self.stem, []
        for row in self.rows:
            stages.append(Chain(*row.build(inputs)))
            inputs = row.width
        network = Network(
            stem=conv_relu6(channels, self.stem, stride=1 if self.small_stem else 2),
            stages=Chain(*stages),
            head=Chain(conv=conv_relu6(inputs, self.head, kernel=1), **pooled_layers(self.head, classes, dropout=0.2)),
            input_shape=self.input_shape(channels),
        )
        return initialize(network, conv=he_fan_out, linear=normal(0.01))


def torchvision_v2(spec: MobileNetV2) -> Rules:
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


norm_v3 = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
"""Batch norm with the settings of the authors' code."""


@dataclass(frozen=True)
class BneckRow(Row):
    """A row of tables 1 and 2 with its columns in order: kernel, exp size, #out, SE, NL, s.

    squeeze: with squeeze-and-excitation. act: ReLU (RE) or hard-swish (HS).
    """

    kernel: int
    expand: Width
    width: Width
    squeeze: bool
    act: Literal["RE", "HS"]
    stride: int = 1
    depth: Depth = 1

    def build(self, inputs: int) -> Iterator[nn.Module]:
        for i in range(self.depth):
            gate = None
            if self.squeeze:
                gate = SqueezeExcitation(self.expand, MobileNetV3.round_width(self.expand // 4), gate=nn.Hardsigmoid)
            act = nn.ReLU if self.act == "RE" else nn.Hardswish
            conv = partial(ConvNorm, norm=norm_v3, act=act)
            stride = 1 if i else self.stride
            yield MBConv(inputs, self.expand, self.width, conv=conv, kernel=self.kernel, stride=stride, gate=gate)
            inputs = self.width


@dataclass(frozen=True)
class MobileNetV3(Spec):
    """Howard et al. 2019, tables 1 and 2; the rows of one output width are a stage.

    head: channels of the last convolution and of the hidden layer behind the pooling.
    """

    stages: tuple[tuple[BneckRow, ...], ...]
    head: tuple[Width, Width]
    stem: Width = 16
    small_stem: bool = False
    resolution: Resolution = 224

    def build(self, *, classes: int, channels: int) -> Network:
        inputs, stages = self.stem, []
        for rows in self.stages:
            blocks: list[nn.Module] = []
            for row in rows:
                blocks += row.build(inputs)
                inputs = row.width
            stages.append(Chain(*blocks))
        last, hidden = self.head
        head = Chain(
            conv=ConvNorm(inputs, last, kernel=1, norm=norm_v3, act=nn.Hardswish), pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(), hidden=nn.Linear(last, hidden), act=nn.Hardswish(inplace=True), drop=nn.Dropout(0.2),
            out=nn.Linear(hidden, classes),
        )  # fmt: skip
        stem = ConvNorm(channels, self.stem, stride=1 if self.small_stem else 2, norm=norm_v3, act=nn.Hardswish)
        network = Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))
        return initialize(network, conv=he_fan_out, linear=normal(0.01))


def blocks_v3(spec: MobileNetV3) -> Iterator[tuple[str, bool, bool]]:
    """Yield (path "stage.block", expanded, gated) of every block."""
    inputs = spec.stem
    for i, rows in enumerate(spec.stages):
        for j, row in enumerate(block for block in rows for _ in range(block.depth)):
            yield f"{i}.{j}", row.expand != inputs, row.squeeze
            inputs = row.width


def torchvision_v3(spec: MobileNetV3) -> Rules:
    """Rules for torchvision, whose `features` is one list of the stem, all blocks and the last convolution.

    "features.2.block.1.0.weight" -> "stages.1.0.body.depthwise.conv.weight"
    "features.4.block.2.fc1.bias" -> "stages.2.0.body.gate.gate.reduce.bias"
    """
    rules, place = [], 1
    for path, expanded, gated in blocks_v3(spec):
        names = mbconv_layers(expanded=expanded, gated=gated)
        at, ours = rf"^features\.{place}\.block\.", f"stages.{path}.body."
        for k, name in enumerate(names):
            if name == "gate":
                rules.append((rf"{at}{k}\.fc1\.", f"{ours}gate.gate.reduce."))
                rules.append((rf"{at}{k}\.fc2\.", f"{ours}gate.gate.expand."))
            else:
                rules += [(rf"{at}{k}\.0\.", f"{ours}{name}.conv."), (rf"{at}{k}\.1\.", f"{ours}{name}.norm.")]
        place += 1
    return (
        *rules,
        (r"^features\.0\.0\.", "stem.conv."), (r"^features\.0\.1\.", "stem.norm."),
        (rf"^features\.{place}\.0\.", "head.conv.conv."), (rf"^features\.{place}\.1\.", "head.conv.norm."),
        (r"^classifier\.0\.", "head.hidden."), (r"^classifier\.3\.", "head.out."),
    )  # fmt: skip


def torchvision(spec: MobileNetV2 | MobileNetV3) -> Rules:
    return torchvision_v2(spec) if isinstance(spec, MobileNetV2) else torchvision_v3(spec)


def timm(spec: MobileNetV1 | MobileNetV2) -> Rules:
    return timm_v1(spec) if isinstance(spec, MobileNetV1) else timm_v2(spec)


LARGE = MobileNetV3((
    (BneckRow(3, 16, 16, False, "RE"),),
    (BneckRow(3, 64, 24, False, "RE", 2), BneckRow(3, 72, 24, False, "RE")),
    (BneckRow(5, 72, 40, True, "RE", 2), BneckRow(5, 120, 40, True, "RE"), BneckRow(5, 120, 40, True, "RE")),
    (BneckRow(3, 240, 80, False, "HS", 2), BneckRow(3, 200, 80, False, "HS"), BneckRow(3, 184, 80, False, "HS"),
     BneckRow(3, 184, 80, False, "HS")),
    (BneckRow(3, 480, 112, True, "HS"), BneckRow(3, 672, 112, True, "HS")),
    (BneckRow(5, 672, 160, True, "HS", 2), BneckRow(5, 960, 160, True, "HS"), BneckRow(5, 960, 160, True, "HS")),
), head=(960, 1280))  # fmt: skip
SMALL = MobileNetV3((
    (BneckRow(3, 16, 16, True, "RE", 2),),
    (BneckRow(3, 72, 24, False, "RE", 2), BneckRow(3, 88, 24, False, "RE")),
    (BneckRow(5, 96, 40, True, "HS", 2), BneckRow(5, 240, 40, True, "HS"), BneckRow(5, 240, 40, True, "HS")),
    (BneckRow(5, 120, 48, True, "HS"), BneckRow(5, 144, 48, True, "HS")),
    (BneckRow(5, 288, 96, True, "HS", 2), BneckRow(5, 576, 96, True, "HS"), BneckRow(5, 576, 96, True, "HS")),
), head=(576, 1024))  # fmt: skip

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
CARD_V3 = CARD.of(
    "MobileNet v3", year=2019, categories=("search", "efficiency"),
    paper="Howard et al., Searching for MobileNetV3, arXiv 1905.02244",
    innovation="Searched with latency measured on the phone; hard-swish, and gates in some blocks.",
    note="Batch norm's epsilon is 0.001, as in the authors' code and torchvision; timm's weights have another one.",
)  # fmt: skip

FAMILY = Family(
    {
        "mobilenet_v1": imagenet(MobileNetV1(), CARD, upstream={"timm": "mobilenetv1_100"}),
        "mobilenet_v2": imagenet(
            MobileNetV2(), CARD_V2, upstream={"torchvision": "mobilenet_v2", "timm": "mobilenetv2_100"}
        ),
        "mobilenet_v3_large": imagenet(
            LARGE, CARD_V3.of("MobileNet v3 large", reported=ReportedMetrics(75.2)),
            upstream={"torchvision": "mobilenet_v3_large"},
        ),
        "mobilenet_v3_small": imagenet(
            SMALL, CARD_V3.of("MobileNet v3 small", reported=ReportedMetrics(67.4)),
            upstream={"torchvision": "mobilenet_v3_small"},
        ),
    },
    {"torchvision": torchvision, "timm": timm},
)  # fmt: skip
