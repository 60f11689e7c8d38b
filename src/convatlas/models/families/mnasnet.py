"""MnasNet: found by a search that measured its candidates on the phone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Record, Resolution, Spec, Width
from convatlas.layers.conv import ConvNorm, SqueezeExcitation
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize
from convatlas.layers.mbconv import InvertedResidual, timm_stages
from convatlas.models.card import Card, Family, imagenet
from convatlas.models.keys import Rules


@dataclass(frozen=True)
class Block(Record):
    """A block of figure 7: kernel, expansion, width, layers, stride of the first; squeeze: of the input's width."""

    kernel: int
    expand: int
    width: Width
    depth: Depth
    stride: int = 1
    squeeze: float = 0.0

    def build(self, inputs: int, momentum: float) -> Iterator[nn.Module]:
        norm = partial(nn.BatchNorm2d, momentum=momentum)
        for i in range(self.depth):
            middle = inputs * self.expand
            gate = SqueezeExcitation(middle, max(1, round(inputs * self.squeeze))) if self.squeeze else None
            yield InvertedResidual(
                inputs, middle, self.width, kernel=self.kernel, stride=1 if i else self.stride, act=nn.ReLU,
                norm=norm, gate=gate, skip=self.expand > 1,
            )  # fmt: skip
            inputs = self.width


@dataclass(frozen=True)
class MnasNet(Spec):
    """Tan et al. 2018, figure 7. The last convolution stays as wide as it is when the network is scaled."""

    rows: tuple[Block, ...]
    stem: Width = 32
    head: int = 1280
    momentum: float = 0.1
    small_stem: bool = False
    resolution: Resolution = 224

    def build(self, *, classes: int, channels: int) -> Network:
        conv = partial(ConvNorm, norm=partial(nn.BatchNorm2d, momentum=self.momentum))
        inputs, stages = self.stem, []
        for row in self.rows:
            stages.append(Chain(*row.build(inputs, self.momentum)))
            inputs = row.width
        network = Network(
            stem=conv(channels, self.stem, stride=1 if self.small_stem else 2),
            stages=Chain(*stages),
            head=Chain(
                conv=conv(inputs, self.head, kernel=1),
                **dict(pooled(self.head, classes, dropout=0.2).named_children()),
            ),
            input_shape=self.input_shape(channels),
        )
        linear = partial(nn.init.kaiming_uniform_, mode="fan_out", nonlinearity="sigmoid")
        return initialize(network, conv=he_fan_out, linear=linear)


def torchvision(spec: MnasNet) -> Rules:
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
    return timm_stages(
        [(f"{i}.{j}", row.expand != 1, False) for i, row in enumerate(spec.rows) for j in range(row.depth)]
    )


B1 = MnasNet((
    Block(3, 1, 16, 1), Block(3, 3, 24, 3, 2), Block(5, 3, 40, 3, 2), Block(5, 6, 80, 3, 2), Block(3, 6, 96, 2),
    Block(5, 6, 192, 4, 2), Block(3, 6, 320, 1),
), momentum=1 - 0.9997)  # fmt: skip
A1 = MnasNet((
    Block(3, 1, 16, 1), Block(3, 6, 24, 2, 2), Block(5, 3, 40, 3, 2, 0.25), Block(3, 6, 80, 4, 2),
    Block(3, 6, 112, 2, 1, 0.25), Block(5, 6, 160, 3, 2, 0.25), Block(3, 6, 320, 1),
))  # fmt: skip

CARD = Card(
    "MnasNet", 2018, "Tan et al., MnasNet: platform-aware neural architecture search for mobile, arXiv 1807.11626",
    ("search", "efficiency"), "The reward of the search holds a latency that was measured on the phone.",
    "74.5 / 92.1 % top-1 / top-5, 77 ms on a Pixel 1",
)  # fmt: skip
SCALED = CARD.of("MnasNet-B1, scaled", "67.7, 71.2, 76.5 % top-1 for 0.5, 0.75, 1.3 (torchvision V1)")
CARD_A1 = CARD.of("MnasNet-A1", "75.2 / 92.5 % top-1 / top-5, 78 ms on a Pixel 1", taxonomy=("search", "attention"))

FAMILY = Family(
    {
        "mnasnet0_5": imagenet(B1.scaled(width=0.5), SCALED.of("MnasNet-B1 0.5"), "torchvision", timm="mnasnet_050"),
        "mnasnet0_75": imagenet(B1.scaled(width=0.75), SCALED.of("MnasNet-B1 0.75"), "torchvision", timm="mnasnet_075"),
        "mnasnet1_0": imagenet(B1, CARD.of("MnasNet-B1"), "torchvision", timm="mnasnet_100"),
        "mnasnet1_3": imagenet(B1.scaled(width=1.3), SCALED.of("MnasNet-B1 1.3"), "torchvision"),
        "mnasnet_a1": imagenet(A1, CARD_A1, timm="semnasnet_100"),
    },
    {"torchvision": torchvision, "timm": timm},
)
