"""SqueezeNet: few 1x1 maps feed many 1x1 and 3x3 maps; the accuracy of AlexNet with fifty times fewer weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn

from convatlas.core.compose import Chain, Concat
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width
from convatlas.layers.conv import ConvNorm
from convatlas.layers.init import initialize, normal
from convatlas.models.card import Card, Family, ReportedMetrics, imagenet
from convatlas.models.keys import Rules

conv = partial(ConvNorm, norm=None)


class Fire(Chain):
    """1x1 squeeze -> [1x1 expand | 3x3 expand] (Iandola et al. 2016, figure 1)."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__(
            squeeze=conv(inputs, squeeze, kernel=1),
            expand=Concat(one=conv(squeeze, expand, kernel=1), three=conv(squeeze, expand)),
        )


@dataclass(frozen=True)
class FireRow(Row):
    """A row of table 1: channels of the squeeze layer, and of each of the two expand layers."""

    squeeze: Width
    expand: Width
    depth: Depth = 1

    def build(self, inputs: int) -> Iterator[nn.Module]:
        for i in range(self.depth):
            yield Fire(2 * self.expand if i else inputs, self.squeeze, self.expand)


@dataclass(frozen=True)
class SqueezeNet(Spec):
    """Iandola et al. 2016, table 1: a convolution, then stages of fire modules, each behind 3x3 max pooling /2.

    stem, kernel: channels and kernel of the convolution.
    """

    stem: Width
    kernel: int
    stages: tuple[tuple[FireRow, ...], ...]
    resolution: Resolution = 224

    @property
    def minimum(self) -> int:
        return 2 * ((1 << len(self.stages)) - 1) + self.kernel

    def build(self, *, classes: int, channels: int) -> Network:
        inputs, stages = self.stem, []
        for rows in self.stages:
            modules: list[nn.Module] = []
            for row in rows:
                modules += row.build(inputs)
                inputs = 2 * row.expand
            stages.append(Chain(pool=nn.MaxPool2d(3, 2, ceil_mode=True), fire=Chain(*modules)))
        head = Chain(
            drop=nn.Dropout(0.5), out=nn.Conv2d(inputs, classes, 1), act=nn.ReLU(inplace=True),
            pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
        )  # fmt: skip
        network = Network(
            stem=conv(channels, self.stem, kernel=self.kernel, stride=2, padding=0), stages=Chain(*stages), head=head,
            input_shape=self.input_shape(channels),
        )  # fmt: skip
        for part in (network.stem, network.stages):
            initialize(part, conv=nn.init.kaiming_uniform_)
        initialize(head, conv=normal(0.01))
        return network


def torchvision(spec: SqueezeNet) -> Rules:
    """Rules for torchvision, whose `features` is one list of the stem, poolings and fire modules.

    "features.7.expand3x3.weight" -> "stages.1.fire.0.expand.three.conv.weight"
    """
    rules, place = [(r"^features\.0\.", "stem.conv."), (r"^classifier\.1\.", "head.out.")], 2
    for i, rows in enumerate(spec.stages):
        place += 1
        for j in range(sum(row.depth for row in rows)):
            rules.append((rf"^features\.{place}\.", f"stages.{i}.fire.{j}."))
            place += 1
    return (
        *rules,
        (r"\.squeeze\.", ".squeeze.conv."), (r"\.expand1x1\.", ".expand.one.conv."),
        (r"\.expand3x3\.", ".expand.three.conv."),
    )  # fmt: skip


V1_0 = SqueezeNet(96, 7, (
    (FireRow(16, 64), FireRow(16, 64), FireRow(32, 128)),
    (FireRow(32, 128), FireRow(48, 192), FireRow(48, 192), FireRow(64, 256)),
    (FireRow(64, 256),),
))  # fmt: skip
V1_1 = SqueezeNet(64, 3, (
    (FireRow(16, 64), FireRow(16, 64)), (FireRow(32, 128), FireRow(32, 128)),
    (FireRow(48, 192), FireRow(48, 192), FireRow(64, 256), FireRow(64, 256)),
))  # fmt: skip

CARD = Card(
    "SqueezeNet", 2016,
    "Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters, arXiv 1602.07360",
    ("efficiency", "feature-map exploitation"), "Fire modules: squeeze with 1x1, expand with 1x1 and 3x3.",
)  # fmt: skip
CARD_1_0 = CARD.of("SqueezeNet 1.0", reported=ReportedMetrics(57.5, 80.3))
CARD_1_1 = CARD.of(
    "SqueezeNet 1.1", reported=ReportedMetrics(58.18, 80.62, source="torchvision IMAGENET1K_V1"),
    innovation="SqueezeNet with a smaller first kernel and earlier pooling: 2.3 times fewer MACs.",
)  # fmt: skip

FAMILY = Family(
    {
        "squeezenet1_0": imagenet(V1_0, CARD_1_0, upstream={"torchvision": "squeezenet1_0"}),
        "squeezenet1_1": imagenet(V1_1, CARD_1_1, upstream={"torchvision": "squeezenet1_1"}),
    },
    {"torchvision": torchvision},
)
