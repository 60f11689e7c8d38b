"""MobileNet v3: inverted residuals, searched for phones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width
from convatlas.layers.conv import ConvNorm, Padding, SqueezeExcitation, activation
from convatlas.layers.init import he_fan_out, initialize, normal
from convatlas.layers.mbconv import Conv, MBConv, mbconv_layers, timm_stage_rules
from convatlas.models.card import AUTHORS, Card, Family, ReportedMetrics, Variant, imagenet
from convatlas.models.keys import Rules

Act = Literal["RE", "HS"]
"""ReLU or hard-swish."""

ACTIVATIONS: dict[Act, type[nn.Module]] = {"RE": nn.ReLU, "HS": nn.Hardswish}


@dataclass(frozen=True)
class BneckRow(Row):
    """A row of tables 1 and 2 with its columns in order: kernel, exp size, #out, SE, NL, s.

    squeeze: with squeeze-and-excitation.
    """

    kernel: int
    expand: Width
    width: Width
    squeeze: bool
    act: Act
    stride: int = 1
    depth: Depth = 1

    def build(self, inputs: int, conv: Conv) -> Iterator[nn.Module]:
        for i in range(self.depth):
            gate = None
            if self.squeeze:
                gate = SqueezeExcitation(self.expand, MobileNetV3.round_width(self.expand // 4), gate=nn.Hardsigmoid)
            stride, with_act = 1 if i else self.stride, partial(conv, act=ACTIVATIONS[self.act])
            yield MBConv(inputs, self.expand, self.width, conv=with_act, kernel=self.kernel, stride=stride, gate=gate)
            inputs = self.width


@dataclass(frozen=True)
class MobileNetV3(Spec):
    """Howard et al. 2019, tables 1 and 2; the rows of one output width are a stage.

    head: channels of the last convolution and of the hidden layer behind the pooling. act: of stem and head.
    padding, and eps and momentum of the batch norms: they belong to the published weights.
    """

    stages: tuple[tuple[BneckRow, ...], ...]
    head: tuple[Width, Width]
    stem: Width = 16
    act: Act = "HS"
    padding: Padding = "symmetric"
    eps: float = 1e-3
    momentum: float = 0.01
    small_stem: bool = False
    resolution: Resolution = 224

    def build(self, *, classes: int, channels: int) -> Network:
        norm, act = partial(nn.BatchNorm2d, eps=self.eps, momentum=self.momentum), ACTIVATIONS[self.act]
        conv = partial(ConvNorm, norm=norm, act=act, padding=self.padding)
        inputs, stages = self.stem, []
        for rows in self.stages:
            blocks: list[nn.Module] = []
            for row in rows:
                blocks += row.build(inputs, conv)
                inputs = row.width
            stages.append(Chain(*blocks))
        last, hidden = self.head
        head = Chain(
            conv=conv(inputs, last, kernel=1), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
            hidden=nn.Linear(last, hidden), act=activation(act), drop=nn.Dropout(0.2), out=nn.Linear(hidden, classes),
        )  # fmt: skip
        stem = conv(channels, self.stem, stride=1 if self.small_stem else 2)
        network = Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))
        return initialize(network, conv=he_fan_out, linear=normal(0.01))


def blocks(spec: MobileNetV3) -> Iterator[tuple[str, bool, bool]]:
    """Yield (path "stage.block", expanded, gated) of every block."""
    inputs = spec.stem
    for i, rows in enumerate(spec.stages):
        for j, row in enumerate(block for block in rows for _ in range(block.depth)):
            yield f"{i}.{j}", row.expand != inputs, row.squeeze
            inputs = row.width


def torchvision(spec: MobileNetV3) -> Rules:
    """Rules for torchvision, whose `features` is one list of the stem, all blocks and the last convolution.

    "features.2.block.1.0.weight" -> "stages.1.0.body.depthwise.conv.weight"
    "features.4.block.2.fc1.bias" -> "stages.2.0.body.gate.gate.reduce.bias"
    """
    rules, place = [], 1
    for path, expanded, gated in blocks(spec):
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


def timm(spec: MobileNetV3) -> Rules:
    """Rules for timm, which has the last convolution as a stage, and the hidden layer as a convolution.

    "blocks.2.0.se.conv_reduce.weight" -> "stages.2.0.body.gate.gate.reduce.weight"
    "conv_head.weight" -> "head.hidden.weight"
    """
    last = len(spec.stages)
    return (
        *timm_stage_rules((path, expanded, False) for path, expanded, _ in blocks(spec)),
        (rf"^blocks\.{last}\.0\.conv\.", "head.conv.conv."), (rf"^blocks\.{last}\.0\.bn1\.", "head.conv.norm."),
        (r"^conv_head\.", "head.hidden."), (r"^classifier\.", "head.out."),
    )  # fmt: skip


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


def minimal(spec: MobileNetV3) -> MobileNetV3:
    """Return the network without gates, hard-swish and 5x5 kernels, for accelerators that have none of them."""
    stages = tuple(tuple(replace(row, kernel=3, squeeze=False, act="RE") for row in rows) for rows in spec.stages)
    return replace(spec, stages=stages, act="RE", padding="same", momentum=0.1)


def narrow(spec: MobileNetV3, width: float) -> MobileNetV3:
    """Return the network with scaled widths as in the authors' code: expansions stay the same multiples of the input.

    The hidden layer of the head is not scaled.
    """
    scaled, inputs, stages = spec.scaled(width=width), (spec.stem, spec.round_width(spec.stem * width)), []
    for wide_rows, rows in zip(spec.stages, scaled.stages, strict=True):
        stage = []
        for wide, row in zip(wide_rows, rows, strict=True):
            stage.append(replace(row, expand=spec.round_width(inputs[1] * wide.expand / inputs[0])))
            inputs = wide.width, row.width
        stages.append(tuple(stage))
    head = scaled.head[0], spec.head[1]
    return replace(scaled, stages=tuple(stages), head=head, padding="same", momentum=0.1)


CARD = Card(
    "MobileNet v3", 2019, "Howard et al., Searching for MobileNetV3, arXiv 1905.02244", ("search", "efficiency"),
    "Searched with latency measured on the phone; hard-swish, and gates in some blocks.",
    note="Batch norm's epsilon is 0.001, as in the authors' code and torchvision.",
)  # fmt: skip

TF = {"padding": "same", "momentum": 0.1}
"""Cells of timm's tf_ networks, whose weights were converted from TensorFlow."""

TIMM = {"eps": 1e-5, "momentum": 0.1}
"""Cells of timm's own networks."""


def v3_variant(
    spec: MobileNetV3, title: str, top1: float, upstream: str, relatives: Mapping[str, Mapping[str, Any]] | None = None
) -> Variant:
    """Return a variant whose weights timm converted from the authors'; top1: reported by them, in percent."""
    card = CARD.of(f"MobileNet v3 {title}", reported=ReportedMetrics(top1, source=AUTHORS))
    return imagenet(spec, card, upstream={"timm": upstream}, relatives=relatives, scaling="-1 to 1")


FAMILY = Family(
    {
        "mobilenet_v3_large": imagenet(
            LARGE, CARD.of("MobileNet v3 large", reported=ReportedMetrics(75.2)),
            upstream={"torchvision": "mobilenet_v3_large"},
            relatives={"tf_mobilenetv3_large_100": TF, "mobilenetv3_large_100": TIMM},
        ),
        "mobilenet_v3_small": imagenet(
            SMALL, CARD.of("MobileNet v3 small", reported=ReportedMetrics(67.4)),
            upstream={"torchvision": "mobilenet_v3_small"},
            relatives={"tf_mobilenetv3_small_100": TF, "mobilenetv3_small_100": TIMM},
        ),
        "mobilenet_v3_large_075": v3_variant(narrow(LARGE, 0.75), "large 0.75", 73.3, "tf_mobilenetv3_large_075"),
        "mobilenet_v3_small_075": v3_variant(
            narrow(SMALL, 0.75), "small 0.75", 65.4, "tf_mobilenetv3_small_075",
            {"mobilenetv3_small_075": {"padding": "symmetric", "eps": 1e-5}},
        ),
        "mobilenet_v3_large_minimal": v3_variant(
            minimal(LARGE), "large minimal", 72.3, "tf_mobilenetv3_large_minimal_100"
        ),
        "mobilenet_v3_small_minimal": v3_variant(
            minimal(SMALL), "small minimal", 61.9, "tf_mobilenetv3_small_minimal_100"
        ),
    },
    {"torchvision": torchvision, "timm": timm},
)  # fmt: skip
