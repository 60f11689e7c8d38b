"""MobileNet v1, v2 and v3: convolutions split into one within each channel and one across channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Record, Resolution, Spec, Width
from convatlas.layers.conv import ConvNorm, SqueezeExcitation
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize, normal
from convatlas.layers.mbconv import InvertedResidual, timm_stages
from convatlas.models.card import Card, Family, imagenet
from convatlas.models.keys import Rules


class Separable(Chain):
    """3x3 within each channel, then 1x1, each with norm and ReLU6 (Howard et al. 2017, figure 3, right)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(
            depthwise=ConvNorm(inputs, inputs, stride=stride, groups=inputs, act=nn.ReLU6),
            pointwise=ConvNorm(inputs, outputs, kernel=1, act=nn.ReLU6),
        )


@dataclass(frozen=True)
class MobileNetV1(Spec):
    """Howard et al. 2017, table 1: stages of separable convolutions; each stage but the first halves the map."""

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
            yield Separable(width if i else inputs, width, 1 if i else stride)


def timm_v1(spec: MobileNetV1) -> Rules:
    return (
        (r"^conv_stem\.", "stem.conv."), (r"^bn1\.", "stem.norm."), (r"^classifier\.", "head.out."),
        (r"^blocks\.", "stages."), (r"\.conv_dw\.", ".depthwise.conv."), (r"\.conv_pw\.", ".pointwise.conv."),
        (r"^(stages.*)\.bn1\.", "{1}.depthwise.norm."), (r"^(stages.*)\.bn2\.", "{1}.pointwise.norm."),
    )  # fmt: skip


@dataclass(frozen=True)
class Bottleneck(Record):
    """A row of table 2, its columns in order: t, c, n, s."""

    expand: int
    width: Width
    depth: Depth
    stride: int

    def build(self, inputs: int) -> Iterator[nn.Module]:
        for i in range(self.depth):
            yield InvertedResidual(inputs, inputs * self.expand, self.width, stride=1 if i else self.stride)
            inputs = self.width


@dataclass(frozen=True)
class MobileNetV2(Spec):
    """Sandler et al. 2018, table 2: inverted residuals with linear bottlenecks."""

    stem: Width = 32
    rows: tuple[Bottleneck, ...] = (
        Bottleneck(1, 16, 1, 1), Bottleneck(6, 24, 2, 2), Bottleneck(6, 32, 3, 2), Bottleneck(6, 64, 4, 2),
        Bottleneck(6, 96, 3, 1), Bottleneck(6, 160, 3, 2), Bottleneck(6, 320, 1, 1),
    )  # fmt: skip
    head: Width = 1280
    small_stem: bool = False
    resolution: Resolution = 224

    def scaled(self, *, width: float = 1.0, depth: float = 1.0, resolution: int | None = None) -> Self:
        """As every spec, but a thinner network keeps the width of its last convolution (section 5)."""
        scaled = super().scaled(width=width, depth=depth, resolution=resolution)
        return replace(scaled, head=max(scaled.head, self.head))

    def build(self, *, classes: int, channels: int) -> Network:
        inputs, stages = self.stem, []
        for row in self.rows:
            stages.append(Chain(*row.build(inputs)))
            inputs = row.width
        network = Network(
            stem=ConvNorm(channels, self.stem, stride=1 if self.small_stem else 2, act=nn.ReLU6),
            stages=Chain(*stages),
            head=Chain(
                conv=ConvNorm(inputs, self.head, kernel=1, act=nn.ReLU6),
                **dict(pooled(self.head, classes, dropout=0.2).named_children()),
            ),
            input_shape=self.input_shape(channels),
        )
        return initialize(network, conv=he_fan_out, linear=normal(0.01))


def torchvision_v2(spec: MobileNetV2) -> Rules:
    rules, place = [], 1
    for i, row in enumerate(spec.rows):
        for j in range(row.depth):
            names = ["depthwise", "project"] if row.expand == 1 else ["expand", "depthwise", "project"]
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
    return timm_stages(
        [(f"{i}.{j}", row.expand != 1, False) for i, row in enumerate(spec.rows) for j in range(row.depth)]
    )


@dataclass(frozen=True)
class Bneck(Record):
    """A row of tables 1 and 2, its columns in order: kernel, exp size, #out, SE, NL, s."""

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
            yield InvertedResidual(
                inputs, self.expand, self.width, kernel=self.kernel, stride=1 if i else self.stride,
                act=nn.ReLU if self.act == "RE" else nn.Hardswish, norm=NORM_V3, gate=gate,
            )  # fmt: skip
            inputs = self.width


NORM_V3 = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)


@dataclass(frozen=True)
class MobileNetV3(Spec):
    """Howard et al. 2019, tables 1 and 2; rows of one output width are a stage."""

    stages: tuple[tuple[Bneck, ...], ...]
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
        wide, hidden = self.head
        head = Chain(
            conv=ConvNorm(inputs, wide, kernel=1, norm=NORM_V3, act=nn.Hardswish), pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(), hidden=nn.Linear(wide, hidden), act=nn.Hardswish(inplace=True), drop=nn.Dropout(0.2),
            out=nn.Linear(hidden, classes),
        )  # fmt: skip
        stem = ConvNorm(channels, self.stem, stride=1 if self.small_stem else 2, norm=NORM_V3, act=nn.Hardswish)
        network = Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))
        return initialize(network, conv=he_fan_out, linear=normal(0.01))


def blocks_v3(spec: MobileNetV3) -> Iterator[tuple[str, bool, bool]]:
    """Yield ("stage.block", expanded?, gated?) of every block."""
    inputs = spec.stem
    for i, rows in enumerate(spec.stages):
        for j, row in enumerate(block for block in rows for _ in range(block.depth)):
            yield f"{i}.{j}", row.expand != inputs, row.squeeze
            inputs = row.width


def torchvision_v3(spec: MobileNetV3) -> Rules:
    rules, place = [], 1
    for path, expanded, gated in blocks_v3(spec):
        names = ["expand"] * expanded + ["depthwise"] + ["gate"] * gated + ["project"]
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
    (Bneck(3, 16, 16, False, "RE"),),
    (Bneck(3, 64, 24, False, "RE", 2), Bneck(3, 72, 24, False, "RE")),
    (Bneck(5, 72, 40, True, "RE", 2), Bneck(5, 120, 40, True, "RE"), Bneck(5, 120, 40, True, "RE")),
    (Bneck(3, 240, 80, False, "HS", 2), Bneck(3, 200, 80, False, "HS"), Bneck(3, 184, 80, False, "HS"),
     Bneck(3, 184, 80, False, "HS")),
    (Bneck(3, 480, 112, True, "HS"), Bneck(3, 672, 112, True, "HS")),
    (Bneck(5, 672, 160, True, "HS", 2), Bneck(5, 960, 160, True, "HS"), Bneck(5, 960, 160, True, "HS")),
), head=(960, 1280))  # fmt: skip
SMALL = MobileNetV3((
    (Bneck(3, 16, 16, True, "RE", 2),),
    (Bneck(3, 72, 24, False, "RE", 2), Bneck(3, 88, 24, False, "RE")),
    (Bneck(5, 96, 40, True, "HS", 2), Bneck(5, 240, 40, True, "HS"), Bneck(5, 240, 40, True, "HS")),
    (Bneck(5, 120, 48, True, "HS"), Bneck(5, 144, 48, True, "HS")),
    (Bneck(5, 288, 96, True, "HS", 2), Bneck(5, 576, 96, True, "HS"), Bneck(5, 576, 96, True, "HS")),
), head=(576, 1024))  # fmt: skip

CARD = Card(
    "MobileNet v1", 2017, "Howard et al., MobileNets: efficient convolutional neural networks, arXiv 1704.04861",
    ("efficiency",), "Depthwise separable convolutions, and two multipliers to trade accuracy for time.",
    "70.6 / 89.5 % top-1 / top-5",
)  # fmt: skip
V2 = CARD.of(
    "MobileNet v2", "72.0 / 91.0 % top-1 / top-5", year=2018,
    paper="Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks, arXiv 1801.04381",
    innovation="Shortcuts between thin layers; the wide layers in between are cheap, since they are depthwise.",
)  # fmt: skip
V3 = CARD.of(
    "MobileNet v3", year=2019, taxonomy=("search", "efficiency"),
    paper="Howard et al., Searching for MobileNetV3, arXiv 1905.02244",
    innovation="Searched for on the phone itself; hard-swish, and gates in some blocks.",
    note="Batch norm's epsilon is 0.001, as in the authors' code and torchvision; timm's weights have another one.",
)  # fmt: skip

FAMILY = Family(
    {
        "mobilenet_v1": imagenet(MobileNetV1(), CARD, timm="mobilenetv1_100"),
        "mobilenet_v2": imagenet(MobileNetV2(), V2, "torchvision", timm="mobilenetv2_100"),
        "mobilenet_v3_large": imagenet(LARGE, V3.of("MobileNet v3 large", "75.2 % top-1"), "torchvision"),
        "mobilenet_v3_small": imagenet(SMALL, V3.of("MobileNet v3 small", "67.4 % top-1"), "torchvision"),
    },
    {"torchvision": torchvision, "timm": timm},
)
