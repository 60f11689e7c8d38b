"""MnasNet: found by a search that measured the latency of its candidates on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width
from convatlas.layers.conv import ConvNorm, SqueezeExcitation
from convatlas.layers.heads import pooled_layers
from convatlas.layers.init import he_fan_out, initialize
from convatlas.layers.mbconv import Conv, MBConv, timm_mbconv_rules
from convatlas.models.card import Card, Family, ReportedMetrics, imagenet
from convatlas.models.keys import Rules


@dataclass(frozen=True)
class MnasNetRow(Row):
    """A block of figure 7: kernel, expansion, channels, layers, stride of the first layer.

    squeeze: hidden channels of the squeeze-and-excitation, as a fraction of the block's input channels; 0 for none.
    A block without expansion (SepConv in the figure) has no shortcut.
    """

    kernel: int
    expand: int
    width: Width
    depth: Depth
    stride: int = 1
    squeeze: float = 0.0

    def build(self, inputs: int, conv: Conv) -> Iterator[nn.Module]:
        for i in range(self.depth):
            middle = inputs * self.expand
            gate = SqueezeExcitation(middle, max(1, round(inputs * self.squeeze))) if self.squeeze else None
            yield MBConv(
                inputs,
                middle,
                self.width,
                conv=conv,
                kernel=self.kernel,
                stride=1 if i else self.stride,
                gate=gate,
                skip=self.expand > 1,
            )
            inputs = self.width


@dataclass(frozen=True)
class MnasNet(Spec):
    """Tan et al. 2018, figure 7. head: channels of the last convolution, which scaling leaves as they are.

    momentum: of the batch norms; it belongs to the published weights.
    """

    rows: tuple[MnasNetRow, ...]
    stem: Width = 32
    head: int = 1280
    momentum: float = 0.1
    small_stem: bool = False
    resolution: Resolution = 224

    def build(self, *, classes: int, channels: int) -> Network:
        conv = partial(ConvNorm, norm=partial(nn.BatchNorm2d, momentum=self.momentum))
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
        linear = partial(nn.init.kaiming_uniform_, mode="fan_out", nonlinearity="sigmoid")
        return initialize(network, conv=he_fan_out, linear=linear)


def torchvision(spec: MnasNet) -> Rules:
    """Rules for torchvision, whose `layers` is one flat list of the stem, the first block and all stages.

    "layers.3.weight" -> "stages.0.0.body.depthwise.conv.weight"
    "layers.8.1.layers.6.weight" -> "stages.1.1.body.project.conv.weight"
    """
    rules = []
    for i, row in enumerate(spec.rows[1:], 1):
        for j in range(row.depth):
            for k, name in enumerate(("expand", "depthwise", "project")):
                at, ours = rf"^layers\.{7 + i}\.{j}\.layers\.", f"stages.{i}.{j}.body.{name}"
                rules += [(rf"{at}{3 * k}\.", f"{ours}.conv."), (rf"{at}{3 * k + 1}\.", f"{ours}.norm.")]
    last = 7 + len(spec.rows)
    flat = {0: "stem", 3: "stages.0.0.body.depthwise", 6: "stages.0.0.body.project", last: "head.conv"}
    for place, name in flat.items():
        rules += [(rf"^layers\.{place}\.", f"{name}.conv."), (rf"^layers\.{place + 1}\.", f"{name}.norm.")]
    return (*rules, (r"^classifier\.1\.", "head.out."))


def timm(spec: MnasNet) -> Rules:
    """Rules for timm.

    "blocks.1.1.conv_pwl.weight" -> "stages.1.1.body.project.conv.weight"
    """
    rows = enumerate(spec.rows)
    return timm_mbconv_rules((f"{i}.{j}", row.expand != 1, False) for i, row in rows for j in range(row.depth))


B1 = MnasNet((
    MnasNetRow(3, 1, 16, 1), MnasNetRow(3, 3, 24, 3, 2), MnasNetRow(5, 3, 40, 3, 2), MnasNetRow(5, 6, 80, 3, 2),
    MnasNetRow(3, 6, 96, 2), MnasNetRow(5, 6, 192, 4, 2), MnasNetRow(3, 6, 320, 1),
), momentum=1 - 0.9997)  # fmt: skip
A1 = MnasNet((
    MnasNetRow(3, 1, 16, 1), MnasNetRow(3, 6, 24, 2, 2), MnasNetRow(5, 3, 40, 3, 2, 0.25), MnasNetRow(3, 6, 80, 4, 2),
    MnasNetRow(3, 6, 112, 2, 1, 0.25), MnasNetRow(5, 6, 160, 3, 2, 0.25), MnasNetRow(3, 6, 320, 1),
))  # fmt: skip

CARD = Card(
    "MnasNet", 2018, "Tan et al., MnasNet: platform-aware neural architecture search for mobile, arXiv 1807.11626",
    ("search", "efficiency"), "The reward of the search includes the latency, measured on the phone.",
)  # fmt: skip
TORCHVISION_V1 = "torchvision IMAGENET1K_V1"
CARD_B1 = CARD.of("MnasNet-B1", reported=ReportedMetrics(74.5, 92.1), note="77 ms on a Pixel 1 (paper).")
CARD_A1 = CARD.of(
    "MnasNet-A1", reported=ReportedMetrics(75.2, 92.5), note="78 ms on a Pixel 1 (paper).",
    categories=("search", "attention"),
)  # fmt: skip

FAMILY = Family(
    {
        "mnasnet0_5": imagenet(
            B1.scaled(width=0.5), CARD.of("MnasNet-B1 0.5", reported=ReportedMetrics(67.7, source=TORCHVISION_V1)),
            upstream={"torchvision": "mnasnet0_5", "timm": "mnasnet_050"},
        ),
        "mnasnet0_75": imagenet(
            B1.scaled(width=0.75), CARD.of("MnasNet-B1 0.75", reported=ReportedMetrics(71.2, source=TORCHVISION_V1)),
            upstream={"torchvision": "mnasnet0_75", "timm": "mnasnet_075"},
        ),
        "mnasnet1_0": imagenet(B1, CARD_B1, upstream={"torchvision": "mnasnet1_0", "timm": "mnasnet_100"}),
        "mnasnet1_3": imagenet(
            B1.scaled(width=1.3), CARD.of("MnasNet-B1 1.3", reported=ReportedMetrics(76.5, source=TORCHVISION_V1)),
            upstream={"torchvision": "mnasnet1_3"},
        ),
        "mnasnet_a1": imagenet(A1, CARD_A1, upstream={"timm": "semnasnet_100"}),
    },
    {"torchvision": torchvision, "timm": timm},
)  # fmt: skip
