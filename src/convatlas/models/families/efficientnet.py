"""EfficientNet: a searched base network, scaled in depth, width and resolution together; and its second version."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor, nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width
from convatlas.layers.channels import linear_drop_rates
from convatlas.layers.conv import ConvNorm, Padding, SqueezeExcitation
from convatlas.layers.heads import pooled_layers
from convatlas.layers.init import he_fan_out, initialize
from convatlas.layers.mbconv import Conv, FusedMBConv, MBConv, mbconv_layers, timm_mbconv_rules
from convatlas.models.card import AUTHORS, Card, Family, ReportedMetrics, Variant, imagenet, torchvision_and_timm
from convatlas.models.keys import Rules


@dataclass(frozen=True)
class MBConvRow(Row):
    """A row of table 1 (version 2: table 4): expansion, kernel, channels, layers, stride of the first layer.

    fused: `FusedMBConv` instead of `MBConv` with a gate of a quarter of the block's input channels.
    """

    expand: int
    kernel: int
    width: Width
    depth: Depth
    stride: int = 1
    fused: bool = False

    def build(self, inputs: int, conv: Conv, drop_rates: Sequence[float], *, squeeze: bool) -> Iterator[nn.Module]:
        """Yield the blocks; drop_rates: rate of stochastic depth of each. squeeze: with gates."""
        for i, drop in enumerate(drop_rates):
            middle, stride = inputs * self.expand, 1 if i else self.stride
            if self.fused:
                yield FusedMBConv(inputs, middle, self.width, conv=conv, kernel=self.kernel, stride=stride, drop=drop)
            else:
                gate = SqueezeExcitation(middle, max(1, inputs // 4), act=nn.SiLU) if squeeze else None
                yield MBConv(
                    inputs, middle, self.width, conv=conv, kernel=self.kernel, stride=stride, gate=gate, drop=drop
                )
            inputs = self.width


ACTIVATIONS = {"swish": nn.SiLU, "relu6": nn.ReLU6}


@dataclass(frozen=True)
class EfficientNet(Spec):
    """Tan and Le 2019, table 1 (version 2: 2021, table 4).

    stem, head: channels of the first and the last convolution. dropout: before the classifier.
    drop_path: stochastic depth; the rate rises linearly from 0 at the first block towards this one behind the last.
    act: behind the convolutions. squeeze: with squeeze-and-excitation.
    padding, and eps and momentum of the batch norms: they belong to the published weights.
    """

    rows: tuple[MBConvRow, ...]
    stem: Width = 32
    head: Width = 1280
    dropout: float = 0.2
    drop_path: float = 0.2
    act: Literal["swish", "relu6"] = "swish"
    squeeze: bool = True
    padding: Padding = "symmetric"
    eps: float = 1e-5
    momentum: float = 0.1
    small_stem: bool = False
    resolution: Resolution = 224

    def build(self, *, classes: int, channels: int) -> Network:
        norm = partial(nn.BatchNorm2d, eps=self.eps, momentum=self.momentum)
        conv = partial(ConvNorm, norm=norm, act=ACTIVATIONS[self.act], padding=self.padding)
        drop_rates = linear_drop_rates(self.drop_path, sum(row.depth for row in self.rows))
        inputs, first, stages = self.stem, 0, []
        for row in self.rows:
            rates = drop_rates[first : first + row.depth]
            stages.append(Chain(*row.build(inputs, conv, rates, squeeze=self.squeeze)))
            inputs, first = row.width, first + row.depth
        network = Network(
            stem=conv(channels, self.stem, stride=1 if self.small_stem else 2),
            stages=Chain(*stages),
            head=Chain(
                conv=conv(inputs, self.head, kernel=1), **pooled_layers(self.head, classes, dropout=self.dropout)
            ),
            input_shape=self.input_shape(channels),
        )
        return initialize(network, conv=he_fan_out, linear=uniform_fan_out)


def uniform_fan_out(weight: Tensor) -> None:
    """U(-b, b), b = 1 / sqrt(outputs): the classifier's initialization in the authors' code."""
    bound = 1 / math.sqrt(len(weight))
    nn.init.uniform_(weight, -bound, bound)


def torchvision(spec: EfficientNet) -> Rules:
    """Rules for torchvision, which numbers a block's layers.

    "features.2.0.block.1.0.weight" -> "stages.1.0.body.depthwise.conv.weight"
    "features.2.0.block.2.fc1.bias" -> "stages.1.0.body.gate.gate.reduce.bias"
    """
    rules = []
    for i, row in enumerate(spec.rows):
        gated = spec.squeeze and not row.fused
        for k, name in enumerate(mbconv_layers(expanded=row.expand != 1, fused=row.fused, gated=gated)):
            at, ours = rf"^features\.{i + 1}\.(\d+)\.block\.{k}\.", f"stages.{i}.{{1}}.body.{name}."
            if name == "gate":
                rules += [(rf"{at}fc1\.", f"{ours}gate.reduce."), (rf"{at}fc2\.", f"{ours}gate.expand.")]
            else:
                rules += [(rf"{at}0\.", f"{ours}conv."), (rf"{at}1\.", f"{ours}norm.")]
    last = len(spec.rows) + 1
    return (
        *rules,
        (r"^features\.0\.0\.", "stem.conv."), (r"^features\.0\.1\.", "stem.norm."),
        (rf"^features\.{last}\.0\.", "head.conv.conv."), (rf"^features\.{last}\.1\.", "head.conv.norm."),
        (r"^classifier\.1\.", "head.out."),
    )  # fmt: skip


def timm(spec: EfficientNet) -> Rules:
    """Rules for timm.

    "blocks.1.0.conv_pwl.weight" -> "stages.1.0.body.project.conv.weight"
    "blocks.0.0.conv_pw.weight" -> "stages.0.0.body.project.conv.weight"
    """
    rows = enumerate(spec.rows)
    return timm_mbconv_rules((f"{i}.{j}", row.expand != 1, row.fused) for i, row in rows for j in range(row.depth))


FusedRow = partial(MBConvRow, fused=True)

B0 = EfficientNet((
    MBConvRow(1, 3, 16, 1), MBConvRow(6, 3, 24, 2, 2), MBConvRow(6, 5, 40, 2, 2), MBConvRow(6, 3, 80, 3, 2),
    MBConvRow(6, 5, 112, 3), MBConvRow(6, 5, 192, 4, 2), MBConvRow(6, 3, 320, 1),
))  # fmt: skip
LITE0 = replace(B0, act="relu6", squeeze=False, padding="same", eps=1e-3)
V2_B0 = EfficientNet((
    FusedRow(1, 3, 16, 1), FusedRow(4, 3, 32, 2, 2), FusedRow(4, 3, 48, 2, 2),
    MBConvRow(4, 3, 96, 3, 2), MBConvRow(6, 3, 112, 5), MBConvRow(6, 3, 192, 8, 2),
), padding="same", eps=1e-3)  # fmt: skip
V2_S = EfficientNet((
    FusedRow(1, 3, 24, 2), FusedRow(4, 3, 48, 4, 2), FusedRow(4, 3, 64, 4, 2),
    MBConvRow(4, 3, 128, 6, 2), MBConvRow(6, 3, 160, 9), MBConvRow(6, 3, 256, 15, 2),
), stem=24, eps=1e-3, resolution=384)  # fmt: skip
V2_M = EfficientNet((
    FusedRow(1, 3, 24, 3), FusedRow(4, 3, 48, 5, 2), FusedRow(4, 3, 80, 5, 2),
    MBConvRow(4, 3, 160, 7, 2), MBConvRow(6, 3, 176, 14), MBConvRow(6, 3, 304, 18, 2), MBConvRow(6, 3, 512, 5),
), stem=24, dropout=0.3, eps=1e-3, resolution=480)  # fmt: skip
V2_L = EfficientNet((
    FusedRow(1, 3, 32, 4), FusedRow(4, 3, 64, 7, 2), FusedRow(4, 3, 96, 7, 2),
    MBConvRow(4, 3, 192, 10, 2), MBConvRow(6, 3, 224, 19), MBConvRow(6, 3, 384, 25, 2), MBConvRow(6, 3, 640, 7),
), stem=32, dropout=0.4, eps=1e-3, resolution=480)  # fmt: skip

CARD = Card(
    "EfficientNet", 2019,
    "Tan, Le, EfficientNet: rethinking model scaling for convolutional networks, arXiv 1905.11946",
    ("search", "efficiency"), "Depth, width and resolution are scaled together by one coefficient.",
)  # fmt: skip
CARD_LITE = CARD.of(
    "EfficientNet-Lite", year=2020,
    paper="Liu, Higher accuracy on vision models with EfficientNet-Lite, TensorFlow blog, 2020",
    innovation="Without gates, with ReLU6, first and last layers unscaled: for 8-bit integers and phones.",
)  # fmt: skip
CARD_V2 = CARD.of(
    "EfficientNetV2", year=2021, paper="Tan, Le, EfficientNetV2: smaller models and faster training, arXiv 2104.00298",
    innovation="Searched for training speed: full convolutions in the early blocks, images that grow while training.",
)  # fmt: skip

TF = {"padding": "same", "eps": 1e-3, "momentum": 0.1}
"""Cells of timm's tf_ networks, whose weights were converted from TensorFlow."""

TORCHVISION_ONLY = range(5, 8)
"""B5 to B7: torchvision's weights were converted from the authors' and keep their batch norm settings."""


def b_variant(
    number: int, width: float, depth: float, resolution: int, dropout: float, top1: float, top5: float
) -> Variant:
    """Return B0 to B7 by the published coefficients of `efficientnet_builder.py`, the authors' code.

    They were trimmed by hand and are not those of the formula (`scale_compound`). top1, top5: reported, in percent.
    """
    name = f"efficientnet_b{number}"
    card = CARD.of(f"EfficientNet-B{number}", reported=ReportedMetrics(top1, top5))
    spec = replace(B0.scaled(width=width, depth=depth, resolution=resolution), dropout=dropout)
    relatives = {f"tf_{name}": TF}
    if number in TORCHVISION_ONLY:
        spec = replace(spec, eps=1e-3, momentum=0.01)
        relatives |= {name: {"eps": 1e-5, "momentum": 0.1}}
        return imagenet(spec, card, upstream={"torchvision": name}, relatives=relatives)
    return imagenet(spec, card, upstream=torchvision_and_timm(name), relatives=relatives)


def crop_share(resolution: int) -> float:
    """Return the share of the crop: the authors resize to 32 pixels more than it."""
    return resolution / (resolution + 32)


def lite_variant(number: int, width: float, depth: float, resolution: int, dropout: float, top1: float) -> Variant:
    """Return Lite0 to Lite4, by coefficients as in `b_variant`; stem, head, first and last row keep their depth."""
    scaled = LITE0.scaled(width=width, depth=depth, resolution=resolution)
    first, *middle, last = scaled.rows
    rows = (replace(first, depth=1), *middle, replace(last, depth=1))
    name = f"efficientnet_lite{number}"
    return imagenet(
        replace(scaled, rows=rows, stem=LITE0.stem, head=LITE0.head, dropout=dropout),
        CARD_LITE.of(f"EfficientNet-Lite{number}", reported=ReportedMetrics(top1, source=AUTHORS)),
        upstream={"timm": f"tf_{name}"}, relatives={name: {"padding": "symmetric", "eps": 1e-5}},
        crop_share=crop_share(resolution), scaling="-1 to 1", interpolation="bicubic",
    )  # fmt: skip


def v2_b_variant(number: int, width: float, depth: float, resolution: int, dropout: float, top1: float) -> Variant:
    """Return V2-B0 to V2-B3, by coefficients as in `b_variant`."""
    spec = replace(V2_B0.scaled(width=width, depth=depth, resolution=resolution), dropout=dropout)
    first, *rows = spec.rows
    card = CARD_V2.of(f"EfficientNetV2-B{number}", reported=ReportedMetrics(top1, source=AUTHORS))
    # the authors round 19.2 channels of B3 down to 16, here alone below 90 %
    return imagenet(
        replace(spec, rows=(replace(first, width=16), *rows)), card,
        upstream={"timm": f"tf_efficientnetv2_b{number}"}, crop_share=crop_share(resolution), interpolation="bicubic",
    )  # fmt: skip


FAMILY = Family(
    {
        "efficientnet_b0": b_variant(0, 1.0, 1.0, 224, 0.2, 77.1, 93.3),
        "efficientnet_b1": b_variant(1, 1.0, 1.1, 240, 0.2, 79.1, 94.4),
        "efficientnet_b2": b_variant(2, 1.1, 1.2, 260, 0.3, 80.1, 94.9),
        "efficientnet_b3": b_variant(3, 1.2, 1.4, 300, 0.3, 81.6, 95.7),
        "efficientnet_b4": b_variant(4, 1.4, 1.8, 380, 0.4, 82.9, 96.4),
        "efficientnet_b5": b_variant(5, 1.6, 2.2, 456, 0.4, 83.6, 96.7),
        "efficientnet_b6": b_variant(6, 1.8, 2.6, 528, 0.5, 84.0, 96.8),
        "efficientnet_b7": b_variant(7, 2.0, 3.1, 600, 0.5, 84.3, 97.0),
        "efficientnet_lite0": lite_variant(0, 1.0, 1.0, 224, 0.2, 75.1),
        "efficientnet_lite1": lite_variant(1, 1.0, 1.1, 240, 0.2, 76.7),
        "efficientnet_lite2": lite_variant(2, 1.1, 1.2, 260, 0.3, 77.6),
        "efficientnet_lite3": lite_variant(3, 1.2, 1.4, 280, 0.3, 79.8),
        "efficientnet_lite4": lite_variant(4, 1.4, 1.8, 300, 0.3, 81.5),
        "efficientnet_v2_b0": v2_b_variant(0, 1.0, 1.0, 224, 0.2, 78.7),
        "efficientnet_v2_b1": v2_b_variant(1, 1.0, 1.1, 240, 0.2, 79.8),
        "efficientnet_v2_b2": v2_b_variant(2, 1.1, 1.2, 260, 0.3, 80.5),
        "efficientnet_v2_b3": v2_b_variant(3, 1.2, 1.4, 300, 0.3, 82.1),
        "efficientnet_v2_s": imagenet(
            V2_S, CARD_V2.of("EfficientNetV2-S", reported=ReportedMetrics(83.9)),
            upstream={"torchvision": "efficientnet_v2_s"}, relatives={"tf_efficientnetv2_s": TF},
            crop_share=1.0,
        ),
        "efficientnet_v2_m": imagenet(
            V2_M, CARD_V2.of("EfficientNetV2-M", reported=ReportedMetrics(85.2)),
            upstream={"torchvision": "efficientnet_v2_m"}, relatives={"tf_efficientnetv2_m": TF},
            crop_share=1.0,
        ),
        "efficientnet_v2_l": imagenet(
            V2_L, CARD_V2.of("EfficientNetV2-L", reported=ReportedMetrics(85.7)),
            upstream={"torchvision": "efficientnet_v2_l"}, relatives={"tf_efficientnetv2_l": TF},
            crop_share=1.0, scaling="-1 to 1",
        ),
    },
    {"torchvision": torchvision, "timm": timm},
)  # fmt: skip
