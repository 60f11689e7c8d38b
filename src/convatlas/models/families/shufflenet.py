"""ShuffleNet v2: one half of the channels passes unchanged, the other is convolved, then all are shuffled."""

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
from convatlas.layers.heads import pooled_layers
from convatlas.models.card import Card, Family, ReportedMetrics, Variant, imagenet
from convatlas.models.keys import Rules


class ShuffleUnit(Chain):
    """[x1 | 1x1 -> 3x3 depthwise -> 1x1 of x2] -> shuffle, x1 and x2 the halves of x (Ma et al. 2018, figure 3c).

    With stride 2 both branches read all channels: [3x3 depthwise /2 -> 1x1 | 1x1 -> 3x3 depthwise /2 -> 1x1] -> shuffle
    (figure 3d).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        half = outputs // 2
        right: dict[str, nn.Module] = {
            "conv1": ConvNorm(inputs if stride == 2 else half, half, kernel=1),
            "depthwise": ConvNorm(half, half, stride=stride, groups=half, act=None),
            "conv2": ConvNorm(half, half, kernel=1),
        }
        if stride == 2:
            left: nn.Module = Chain(
                depthwise=ConvNorm(inputs, inputs, stride=2, groups=inputs, act=None),
                conv=ConvNorm(inputs, half, kernel=1),
            )
        else:
            left, right = Select(0, half), {"select": Select(half, outputs)} | right
        super().__init__(halves=Concat(left=left, right=Chain(**right)), shuffle=nn.ChannelShuffle(2))


@dataclass(frozen=True)
class ShuffleNetV2(Spec):
    """Ma et al. 2018, table 5: a 3x3 convolution, max pooling, three stages of units, a 1x1 convolution.

    widths, depths: of stages 2 to 4. head: channels of the last convolution.
    """

    widths: tuple[Width, ...]
    head: Width = 1024
    stem: Width = 24
    depths: tuple[Depth, ...] = (4, 8, 4)
    small_stem: bool = False
    resolution: Resolution = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width % 2 for width in self.widths):
            raise SpecError(f"ShuffleNetV2: widths must be even, got {self.widths}; each unit has two halves")

    def build(self, *, classes: int, channels: int) -> Network:
        stem = Chain(conv=ConvNorm(channels, self.stem, stride=1 if self.small_stem else 2))
        if not self.small_stem:
            stem.add_module("pool", nn.MaxPool2d(3, 2, 1))
        inputs, stages = self.stem, []
        for width, depth in zip(self.widths, self.depths, strict=True):
            stages.append(Chain(*self.blocks(inputs, width, depth)))
            inputs = width
        head = Chain(conv=ConvNorm(inputs, self.head, kernel=1), **pooled_layers(self.head, classes))
        return Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))

    def blocks(self, inputs: int, width: int, depth: int) -> Iterator[nn.Module]:
        for i in range(depth):
            yield ShuffleUnit(width if i else inputs, width, 1 if i else 2)


def torchvision(spec: ShuffleNetV2) -> Rules:
    """Rules for torchvision.

    "stage3.1.branch2.3.weight" -> "stages.1.1.halves.right.depthwise.conv.weight"
    "stage3.0.branch1.2.weight" -> "stages.1.0.halves.left.conv.conv.weight"
    """
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
    ("efficiency",), "Designed for measured speed, not for MACs: equal widths, no groups, little fragmentation.",
)  # fmt: skip


def variant(factor: str, spec: ShuffleNetV2, top1: float, top5: float) -> Variant:
    """Return a row; factor: "1.0" for the network 1.0x. top1, top5: reported accuracy in percent."""
    card = CARD.of(f"ShuffleNet v2 {factor}x", reported=ReportedMetrics(top1, top5))
    return imagenet(spec, card, upstream={"torchvision": f"shufflenet_v2_x{factor.replace('.', '_')}"})


FAMILY = Family(
    {
        "shufflenet_v2_x0_5": variant("0.5", ShuffleNetV2((48, 96, 192)), 61.1, 82.6),
        "shufflenet_v2_x1_0": variant("1.0", ShuffleNetV2((116, 232, 464)), 69.4, 88.9),
        "shufflenet_v2_x1_5": variant("1.5", ShuffleNetV2((176, 352, 704)), 72.6, 90.6),
        "shufflenet_v2_x2_0": variant("2.0", ShuffleNetV2((244, 488, 976), 2048), 75.0, 92.4),
    },
    {"torchvision": torchvision},
)
