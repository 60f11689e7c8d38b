"""EfficientNet: a searched base network, scaled in depth, width and resolution together; and its second version."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Record, Resolution, Spec, Width
from convatlas.layers.channels import rising
from convatlas.layers.conv import ConvNorm, SqueezeExcitation
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize
from convatlas.layers.mbconv import InvertedResidual, timm_stages
from convatlas.models.card import Card, Family, Variant, imagenet
from convatlas.models.keys import Rules


@dataclass(frozen=True)
class MBConv(Record):
    """A row of table 1 (v2: table 4): expansion, kernel, width, layers, stride of the first."""

    expand: int
    kernel: int
    width: Width
    depth: Depth
    stride: int = 1
    fused: bool = False

    def build(self, inputs: int, drops: Iterator[float], spec: EfficientNet) -> Iterator[nn.Module]:
        norm = partial(nn.BatchNorm2d, eps=spec.eps, momentum=spec.momentum)
        for i in range(self.depth):
            middle = inputs * self.expand
            gate = None if self.fused else SqueezeExcitation(middle, max(1, inputs // 4), act=nn.SiLU)
            yield InvertedResidual(
                inputs, middle, self.width, kernel=self.kernel, stride=1 if i else self.stride, act=nn.SiLU, norm=norm,
                gate=gate, drop=next(drops), fused=self.fused,
            )  # fmt: skip
            inputs = self.width


@dataclass(frozen=True)
class EfficientNet(Spec):
    """Tan and Le 2019, table 1 (version 2: 2021, table 4).

    dropout: before the classes. drop_path: stochastic depth of the last block; it rises from 0.
    eps, momentum: of the batch norms; they belong to the published weights.
    """

    rows: tuple[MBConv, ...]
    stem: Width = 32
    head: Width = 1280
    dropout: float = 0.2
    drop_path: float = 0.2
    eps: float = 1e-5
    momentum: float = 0.1
    small_stem: bool = False
    resolution: Resolution = 224

    def build(self, *, classes: int, channels: int) -> Network:
        conv = partial(ConvNorm, norm=partial(nn.BatchNorm2d, eps=self.eps, momentum=self.momentum), act=nn.SiLU)
        drops = iter(rising(self.drop_path, sum(row.depth for row in self.rows)))
        inputs, stages = self.stem, []
        for row in self.rows:
            stages.append(Chain(*row.build(inputs, drops, self)))
            inputs = row.width
        network = Network(
            stem=conv(channels, self.stem, stride=1 if self.small_stem else 2),
            stages=Chain(*stages),
            head=Chain(
                conv=conv(inputs, self.head, kernel=1),
                **dict(pooled(self.head, classes, dropout=self.dropout).named_children()),
            ),
            input_shape=self.input_shape(channels),
        )
        return initialize(network, conv=he_fan_out, linear=uniform)


def uniform(weight: Tensor) -> None:
    bound = 1 / math.sqrt(len(weight))
    nn.init.uniform_(weight, -bound, bound)


def torchvision(spec: EfficientNet) -> Rules:
    rules = []
    for i, row in enumerate(spec.rows):
        first = ["expand"] if row.expand != 1 or row.fused else []
        last = ["project"] if row.expand != 1 or not row.fused else []
        names = first + last if row.fused else [*first, "depthwise", "gate", *last]
        for k, name in enumerate(names):
            at, ours = rf"^features\.{i + 1}\.(\d+)\.block\.{k}\.", f"stages.{i}.{{1}}.body.{name}."
            if name == "gate":
                rules += [(rf"{at}fc1\.", f"{ours}gate.reduce."), (rf"{at}fc2\.", f"{ours}gate.expand.")]
            else:
                rules += [(rf"{at}0\.", f"{ours}conv."), (rf"{at}1\.", f"{ours}norm.")]
    last_place = len(spec.rows) + 1
    return (
        *rules,
        (r"^features\.0\.0\.", "stem.conv."), (r"^features\.0\.1\.", "stem.norm."),
        (rf"^features\.{last_place}\.0\.", "head.conv.conv."), (rf"^features\.{last_place}\.1\.", "head.conv.norm."),
        (r"^classifier\.1\.", "head.out."),
    )  # fmt: skip


def timm(spec: EfficientNet) -> Rules:
    rows = enumerate(spec.rows)
    return timm_stages([(f"{i}.{j}", row.expand != 1, row.fused) for i, row in rows for j in range(row.depth)])


B0 = EfficientNet((
    MBConv(1, 3, 16, 1), MBConv(6, 3, 24, 2, 2), MBConv(6, 5, 40, 2, 2), MBConv(6, 3, 80, 3, 2),
    MBConv(6, 5, 112, 3), MBConv(6, 5, 192, 4, 2), MBConv(6, 3, 320, 1),
))  # fmt: skip
V2_S = EfficientNet((
    MBConv(1, 3, 24, 2, fused=True), MBConv(4, 3, 48, 4, 2, fused=True), MBConv(4, 3, 64, 4, 2, fused=True),
    MBConv(4, 3, 128, 6, 2), MBConv(6, 3, 160, 9), MBConv(6, 3, 256, 15, 2),
), stem=24, eps=1e-3, resolution=384)  # fmt: skip
V2_M = EfficientNet((
    MBConv(1, 3, 24, 3, fused=True), MBConv(4, 3, 48, 5, 2, fused=True), MBConv(4, 3, 80, 5, 2, fused=True),
    MBConv(4, 3, 160, 7, 2), MBConv(6, 3, 176, 14), MBConv(6, 3, 304, 18, 2), MBConv(6, 3, 512, 5),
), stem=24, dropout=0.3, eps=1e-3, resolution=480)  # fmt: skip
V2_L = EfficientNet((
    MBConv(1, 3, 32, 4, fused=True), MBConv(4, 3, 64, 7, 2, fused=True), MBConv(4, 3, 96, 7, 2, fused=True),
    MBConv(4, 3, 192, 10, 2), MBConv(6, 3, 224, 19), MBConv(6, 3, 384, 25, 2), MBConv(6, 3, 640, 7),
), stem=32, dropout=0.4, eps=1e-3, resolution=480)  # fmt: skip

CARD = Card(
    "EfficientNet", 2019, "Tan, Le, EfficientNet: rethinking model scaling for convolutional networks, 1905.11946",
    ("search", "efficiency"), "Depth, width and resolution grow together, by the rule of one number.",
)  # fmt: skip
V2 = CARD.of(
    "EfficientNetV2", year=2021, paper="Tan, Le, EfficientNetV2: smaller models and faster training, arXiv 2104.00298",
    innovation="Searched for training speed: full convolutions in the early blocks, images that grow while training.",
)  # fmt: skip


def b(number: int, width: float, depth: float, resolution: int, dropout: float, reported: str) -> Variant:
    """The published coefficients, which are not those of the formula (the authors' code, `efficientnet_builder.py`)."""
    spec = replace(B0.scaled(width=width, depth=depth, resolution=resolution), dropout=dropout)
    if number >= 5:  # torchvision's weights of B5-B7 were converted from the authors' and keep their settings
        spec = replace(spec, eps=1e-3, momentum=0.01)
    libraries = ("torchvision",) if number >= 5 else ("torchvision", "timm")
    return imagenet(spec, CARD.of(f"EfficientNet-B{number}", reported), *libraries)


FAMILY = Family(
    {
        "efficientnet_b0": b(0, 1.0, 1.0, 224, 0.2, "77.1 / 93.3 %"),
        "efficientnet_b1": b(1, 1.0, 1.1, 240, 0.2, "79.1 / 94.4 %"),
        "efficientnet_b2": b(2, 1.1, 1.2, 260, 0.3, "80.1 / 94.9 %"),
        "efficientnet_b3": b(3, 1.2, 1.4, 300, 0.3, "81.6 / 95.7 %"),
        "efficientnet_b4": b(4, 1.4, 1.8, 380, 0.4, "82.9 / 96.4 %"),
        "efficientnet_b5": b(5, 1.6, 2.2, 456, 0.4, "83.6 / 96.7 %"),
        "efficientnet_b6": b(6, 1.8, 2.6, 528, 0.5, "84.0 / 96.8 %"),
        "efficientnet_b7": b(7, 2.0, 3.1, 600, 0.5, "84.3 / 97.0 %"),
        "efficientnet_v2_s": imagenet(V2_S, V2.of("EfficientNetV2-S", "83.9 % top-1"), "torchvision", share=1.0),
        "efficientnet_v2_m": imagenet(V2_M, V2.of("EfficientNetV2-M", "85.2 % top-1"), "torchvision", share=1.0),
        "efficientnet_v2_l": imagenet(
            V2_L, V2.of("EfficientNetV2-L", "85.7 % top-1"), "torchvision", share=1.0, half=True
        ),
    },
    {"torchvision": torchvision, "timm": timm},
)
