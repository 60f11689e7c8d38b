"""Residual networks for video: 3x3x3 convolutions everywhere (R3D), early only (MC3), or split (R(2+1)D)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.errors import SpecError
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize, normal
from convatlas.models.card import Card, Family, ReportedMetrics, Variant
from convatlas.models.keys import Rules

Kind = Literal["3d", "2d", "2+1d"]
"""3x3x3; 1x3x3; or 1x3x3 -> norm -> ReLU -> 3x1x1. Sizes are (time, height, width)."""


def convolution(kind: Kind, inputs: int, middle: int, outputs: int, stride: int) -> nn.Module:
    """Return the convolution of a kind; middle: channels between the two of "2+1d"."""
    if kind == "3d":
        return nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
    if kind == "2d":
        return nn.Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
    return Chain(
        space=nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        norm=nn.BatchNorm3d(middle), act=nn.ReLU(inplace=True),
        time=nn.Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )  # fmt: skip


class VideoBasicBlock(Chain):
    """ReLU(x + (convolution /s -> convolution)), over space and time (Tran et al. 2018, figure 1).

    Where the shape changes, the shortcut is a 1x1x1 convolution.
    """

    def __init__(self, kind: Kind, inputs: int, outputs: int, stride: int) -> None:
        # as many weights as the 3x3x3 convolution has (section 3.5)
        middle = inputs * outputs * 27 // (inputs * 9 + 3 * outputs)
        body = Chain(
            conv1=Chain(
                conv=convolution(kind, inputs, middle, outputs, stride), norm=nn.BatchNorm3d(outputs),
                act=nn.ReLU(inplace=True),
            ),
            conv2=Chain(conv=convolution(kind, outputs, middle, outputs, 1), norm=nn.BatchNorm3d(outputs)),
        )  # fmt: skip
        skip: nn.Module = nn.Identity()
        if (inputs, stride) != (outputs, 1):
            strides = (1 if kind == "2d" else stride, stride, stride)
            skip = Chain(conv=nn.Conv3d(inputs, outputs, 1, strides, bias=False), norm=nn.BatchNorm3d(outputs))
        super().__init__(sum=Sum(body=body, skip=skip), act=nn.ReLU(inplace=True))


@dataclass(frozen=True)
class VideoResNet(Spec):
    """Tran et al. 2018, table 1: ResNet-18 for clips (n, channels, frames, height, width).

    kinds: convolution of each stage. stem: channels of the 3x7x7 convolution, or of the two it is split into.
    """

    kinds: tuple[Kind, ...]
    depths: tuple[Depth, ...] = (2, 2, 2, 2)
    widths: tuple[Width, ...] = (64, 128, 256, 512)
    stem: tuple[Width, ...] = (64,)
    frames: int = 16
    resolution: Resolution = 112

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stem) not in (1, 2):
            raise SpecError(f"VideoResNet: stem must have 1 width, or 2 if it is split, got {len(self.stem)}")
        if self.frames < 1:
            raise SpecError(f"VideoResNet: frames must be an integer >= 1, got {self.frames}")

    def input_shape(self, channels: int) -> tuple[int, ...]:
        return channels, self.frames, self.resolution, self.resolution

    def build(self, *, classes: int, channels: int) -> Network:
        *split, inputs = self.stem
        if split:
            (middle,) = split
            stem = Chain(
                space=nn.Conv3d(channels, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
                norm1=nn.BatchNorm3d(middle), act1=nn.ReLU(inplace=True),
                time=nn.Conv3d(middle, inputs, (3, 1, 1), 1, (1, 0, 0), bias=False),
                norm2=nn.BatchNorm3d(inputs), act2=nn.ReLU(inplace=True),
            )  # fmt: skip
        else:
            stem = Chain(
                conv=nn.Conv3d(channels, inputs, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
                norm=nn.BatchNorm3d(inputs), act=nn.ReLU(inplace=True),
            )  # fmt: skip
        stages = []
        for i, (kind, width, depth) in enumerate(zip(self.kinds, self.widths, self.depths, strict=True)):
            stages.append(Chain(*self.blocks(kind, inputs, width, depth, stride=2 if i else 1)))
            inputs = width
        network = Network(
            stem=stem, stages=Chain(*stages), head=pooled(inputs, classes, axes=3),
            input_shape=self.input_shape(channels),
        )  # fmt: skip
        return initialize(network, conv=he_fan_out, linear=normal(0.01))

    def blocks(self, kind: Kind, inputs: int, width: int, depth: int, stride: int) -> Iterator[nn.Module]:
        for i in range(depth):
            yield VideoBasicBlock(kind, width if i else inputs, width, 1 if i else stride)


def torchvision(spec: VideoResNet) -> Rules:
    """Rules for torchvision.

    "layer2.0.conv1.1.bias" -> "stages.1.0.sum.body.conv1.norm.bias"
    "layer2.0.downsample.0.weight" -> "stages.1.0.sum.skip.conv.weight"
    """
    stem = {0: "space", 1: "norm1", 3: "time", 4: "norm2"} if len(spec.stem) == 2 else {0: "conv", 1: "norm"}
    split = {0: "space", 1: "norm", 3: "time"}
    return (
        *((rf"^stem\.{i}\.", f"stem.{name}.") for i, name in stem.items()), (r"^fc\.", "head.out."),
        (r"^layer(\d)\.(\d+)\.", "stages.{1-1}.{2}.sum."),
        (r"\.downsample\.0\.", ".skip.conv."), (r"\.downsample\.1\.", ".skip.norm."),
        *((rf"\.conv(\d)\.0\.{i}\.", f".body.conv{{1}}.conv.{name}.") for i, name in split.items()),
        (r"\.conv(\d)\.0\.", ".body.conv{1}.conv."), (r"\.conv(\d)\.1\.", ".body.conv{1}.norm."),
    )  # fmt: skip


CARD = Card(
    "Video ResNets", 2018,
    "Tran et al., A closer look at spatiotemporal convolutions for action recognition, arXiv 1711.11248",
    ("time", "depth"), "A residual network whose convolutions reach over time as well as space.",
)  # fmt: skip


def kinetics(name: str, spec: VideoResNet, card: Card, top1: float, top5: float) -> Variant:
    """Return a row for the 400 classes of Kinetics-400; top1, top5: reported accuracy in percent."""
    preprocessing = Preprocessing(
        resize=128, crop=112, mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989)
    )
    card = replace(card, reported=ReportedMetrics(top1, top5, "Kinetics-400", "torchvision KINETICS400_V1"))
    return Variant(spec, card, preprocessing, classes=400, upstream={"torchvision": name})


R3D, MC3 = VideoResNet(("3d",) * 4), VideoResNet(("3d", "2d", "2d", "2d"))
R2PLUS1D = VideoResNet(("2+1d",) * 4, stem=(45, 64))
CARD_MC3 = CARD.of(
    "MC3-18", innovation="Motion is modeled in the first stages only; the later ones process single frames."
)
CARD_R2PLUS1D = CARD.of(
    "R(2+1)D-18",
    innovation="Convolutions are split into one over space and one over time with a ReLU between: easier to train.",
)

FAMILY = Family(
    {
        "r3d_18": kinetics("r3d_18", R3D, CARD.of("R3D-18"), 63.20, 83.48),
        "mc3_18": kinetics("mc3_18", MC3, CARD_MC3, 63.96, 84.13),
        "r2plus1d_18": kinetics("r2plus1d_18", R2PLUS1D, CARD_R2PLUS1D, 67.46, 86.18),
    },
    {"torchvision": torchvision},
)
