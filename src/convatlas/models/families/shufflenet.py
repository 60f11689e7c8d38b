"""ShuffleNet v2: half of the channels pass, half are worked on, then all are shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from convatlas.core.compose import Chain, Concat
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.errors import SpecError
from convatlas.layers.channels import Select
from convatlas.layers.conv import ConvNorm
from convatlas.layers.heads import pooled
from convatlas.models.card import Card, Family, imagenet
from convatlas.models.keys import Rules


class Unit(Chain):
    """Two halves side by side, shuffled (Ma et al. 2018, figure 3c; with stride 2 both read everything, figure 3d)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        half = outputs // 2
        reads = inputs if stride == 2 else half
        right = Chain(
            conv1=ConvNorm(reads, half, kernel=1),
            depthwise=ConvNorm(half, half, stride=stride, groups=half, act=None),
            conv2=ConvNorm(half, half, kernel=1),
        )
        if stride == 2:
            left: nn.Module = Chain(
                depthwise=ConvNorm(inputs, inputs, stride=2, groups=inputs, act=None),
                conv=ConvNorm(inputs, half, kernel=1),
            )
        else:
            left, right = Select(0, half), Chain(select=Select(half, outputs), **dict(right.named_children()))
        super().__init__(halves=Concat(left=left, right=right), shuffle=nn.ChannelShuffle(2))


@dataclass(frozen=True)
class ShuffleNetV2(Spec):
    """Ma et al. 2018, table 5: widths of stages 2 to 4, and of the last convolution."""

    widths: tuple[Width, ...]
    head: Width = 1024
    stem: Width = 24
    depths: tuple[Depth, ...] = (4, 8, 4)
    small_stem: bool = False
    resolution: Resolution = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width % 2 for width in self.widths):
            raise SpecError(f"ShuffleNetV2.widths: {self.widths} are not all even; units have two halves")

    def build(self, *, classes: int, channels: int) -> Network:
        stem = Chain(conv=ConvNorm(channels, self.stem, stride=1 if self.small_stem else 2))
        if not self.small_stem:
            stem.add_module("pool", nn.MaxPool2d(3, 2, 1))
        inputs, stages = self.stem, []
        for width, depth in zip(self.widths, self.depths, strict=True):
            stages.append(Chain(*self.blocks(inputs, width, depth)))
            inputs = width
        head = Chain(conv=ConvNorm(inputs, self.head, kernel=1), **dict(pooled(self.head, classes).named_children()))
        return Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))

    def blocks(self, inputs: int, width: int, depth: int) -> Iterator[nn.Module]:
        for i in range(depth):
            yield Unit(width if i else inputs, width, 1 if i else 2)


def torchvision(spec: ShuffleNetV2) -> Rules:
    right = {
        0: "conv1.conv", 1: "conv1.norm", 3: "depthwise.conv", 4: "depthwise.norm", 5: "conv2.conv", 6: "conv2.norm"
    }  # fmt: skip
    left = {0: "depthwise.conv", 1: "depthwise.norm", 2: "conv.conv", 3: "conv.norm"}
    return (
        (r"^conv1\.0\.", "stem.conv.conv."), (r"^conv1\.1\.", "stem.conv.norm."),
        (r"^conv5\.0\.", "head.conv.conv."), (r"^conv5\.1\.", "head.conv.norm."), (r"^fc\.", "head.out."),
        (r"^stage(\d)\.", "stages.{1-2}."),
        *((rf"\.branch1\.{i}\.", f".halves.left.{name}.") for i, name in left.items()),
        *((rf"\.branch2\.{i}\.", f".halves.right.{name}.") for i, name in right.items()),
    )  # fmt: skip


CARD = Card(
    "ShuffleNet v2", 2018,
    "Ma, Zhang, Zheng, Sun, ShuffleNet V2: practical guidelines for efficient CNN design, arXiv 1807.11164",
    ("efficiency",), "Designed for measured speed, not for MACs: equal widths, no groups, few pieces.",
)  # fmt: skip

FAMILY = Family(
    {
        "shufflenet_v2_x0_5": imagenet(
            ShuffleNetV2((48, 96, 192)), CARD.of("ShuffleNet v2 0.5x", "61.1 / 82.6 %"), "torchvision"
        ),
        "shufflenet_v2_x1_0": imagenet(
            ShuffleNetV2((116, 232, 464)), CARD.of("ShuffleNet v2 1.0x", "69.4 / 88.9 %"), "torchvision"
        ),
        "shufflenet_v2_x1_5": imagenet(
            ShuffleNetV2((176, 352, 704)), CARD.of("ShuffleNet v2 1.5x", "72.6 / 90.6 %"), "torchvision"
        ),
        "shufflenet_v2_x2_0": imagenet(
            ShuffleNetV2((244, 488, 976), 2048), CARD.of("ShuffleNet v2 2.0x", "75.0 / 92.4 %"), "torchvision"
        ),
    },
    {"torchvision": torchvision},
)
