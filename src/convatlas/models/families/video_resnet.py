"""Residual networks for video: 3x3x3 convolutions everywhere (R3D), early only (MC3), or split (R(2+1)D)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import nn

from convatlas.core.clips import ClipSampling
from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import ClipSpec, Depth, Frames, Resolution, Width
from convatlas.errors import SpecError
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize, normal
from convatlas.models.card import Card, Family, ReportedMetrics, Variant
from convatlas.models.keys import Rules

Kind = Literal["3d", "2d", "2+1d"]
"""3x3x3; 1x3x3; or 1x3x3 -> norm -> ReLU -> 3x1x1. Sizes are (time, height, width)."""

Block = Literal["basic", "bottleneck"]


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


def unit(conv: nn.Module, outputs: int, *, act: bool = True) -> Chain:
    """Convolution -> norm -> [ReLU]."""
    layers = {"conv": conv, "norm": nn.BatchNorm3d(outputs)}
    return Chain(**layers, act=nn.ReLU(inplace=True)) if act else Chain(**layers)


def middle_width(inputs: int, outputs: int) -> int:
    """Return the width between the two convolutions of "2+1d": as many weights as 3x3x3 has (section 3.5)."""
    return inputs * outputs * 27 // (inputs * 9 + 3 * outputs)


def shortcut(kind: Kind, inputs: int, outputs: int, stride: int) -> nn.Module:
    """Identity; where the shape changes, a 1x1x1 convolution."""
    if (inputs, stride) == (outputs, 1):
        return nn.Identity()
    strides = (1 if kind == "2d" else stride, stride, stride)
    return unit(nn.Conv3d(inputs, outputs, 1, strides, bias=False), outputs, act=False)


class VideoBasicBlock(Chain):
    """ReLU(x + (convolution /s -> convolution)), over space and time (Tran et al. 2018, figure 1)."""

    def __init__(self, kind: Kind, inputs: int, width: int, stride: int) -> None:
        middle = middle_width(inputs, width)
        body = Chain(
            conv1=unit(convolution(kind, inputs, middle, width, stride), width),
            conv2=unit(convolution(kind, width, middle, width, 1), width, act=False),
        )
        super().__init__(sum=Sum(body=body, skip=shortcut(kind, inputs, width, stride)), act=nn.ReLU(inplace=True))


class VideoBottleneck(Chain):
    """ReLU(x + (1x1x1 reduce -> convolution /s -> 1x1x1 expand x4)) (Hara et al. 2018, figure 3)."""

    def __init__(self, kind: Kind, inputs: int, width: int, stride: int) -> None:
        outputs, middle = 4 * width, middle_width(inputs, width)
        body = Chain(
            conv1=unit(nn.Conv3d(inputs, width, 1, bias=False), width),
            conv2=unit(convolution(kind, width, middle, width, stride), width),
            conv3=unit(nn.Conv3d(width, outputs, 1, bias=False), outputs, act=False),
        )
        super().__init__(sum=Sum(body=body, skip=shortcut(kind, inputs, outputs, stride)), act=nn.ReLU(inplace=True))


@dataclass(frozen=True)
class VideoResNet(ClipSpec):
    """Tran et al. 2018, table 1: ResNet for clips; each stage but the first halves the map.

    The paths of its layers are those of `ResNet`, so that the weights of one fit the other after inflation.
    kinds: convolution of each stage; stages of "2d" keep the number of frames. widths: as in `ResNet`.
    stem: channels of the first convolution, 7x7 over space, or of the two it is split into, over space and over time.
    stem_frames: its kernel over time. stem_pool: 3x3x3 max pooling behind it, which halves space and time.
    """

    kinds: tuple[Kind, ...]
    depths: tuple[Depth, ...] = (2, 2, 2, 2)
    widths: tuple[Width, ...] = (64, 128, 256, 512)
    stem: tuple[Width, ...] = (64,)
    block: Block = "basic"
    stem_frames: Frames = 3
    stem_pool: bool = False
    frames: Frames = 16
    resolution: Resolution = 112

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stem) not in (1, 2):
            raise SpecError(f"VideoResNet: stem must have 1 width, or 2 if it is split, got {len(self.stem)}")
        if self.stem_frames % 2 == 0:
            raise SpecError(f"VideoResNet: stem_frames must be odd, got {self.stem_frames}")
        if len(self.kinds) != len(self.widths):
            raise SpecError(
                f"VideoResNet: kinds must have one value for each of {len(self.widths)} widths, got {self.kinds}"
            )

    def build(self, *, classes: int, channels: int) -> Network:
        inputs, stages = self.stem[-1], []
        for i, (kind, width, depth) in enumerate(zip(self.kinds, self.widths, self.depths, strict=True)):
            stages.append(Chain(*self.blocks(kind, inputs, width, depth, stride=2 if i else 1)))
            inputs = self.outputs(width)
        network = Network(
            stem=self._stem(channels), stages=Chain(*stages), head=pooled(inputs, classes, axes=3),
            input_shape=self.input_shape(channels),
        )  # fmt: skip
        return initialize(network, conv=he_fan_out, linear=normal(0.01))

    def _stem(self, channels: int) -> Chain:
        *split, inputs = self.stem
        time, border = self.stem_frames, self.stem_frames // 2
        layers: dict[str, nn.Module] = {}
        if split:
            (middle,) = split
            space = nn.Conv3d(channels, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
            layers["space"] = unit(space, middle)
            layers["time"] = unit(nn.Conv3d(middle, inputs, (time, 1, 1), 1, (border, 0, 0), bias=False), inputs)
        else:
            conv = nn.Conv3d(channels, inputs, (time, 7, 7), (1, 2, 2), (border, 3, 3), bias=False)
            layers["conv"] = unit(conv, inputs)
        if self.stem_pool:
            layers["pool"] = nn.MaxPool3d((3, 3, 3), 2, 1)
        return Chain(**layers)

    def outputs(self, width: int) -> int:
        return 4 * width if self.block == "bottleneck" else width

    def blocks(self, kind: Kind, inputs: int, width: int, depth: int, stride: int) -> Iterator[nn.Module]:
        block = VideoBottleneck if self.block == "bottleneck" else VideoBasicBlock
        for i in range(depth):
            yield block(kind, inputs, width, 1 if i else stride)
            inputs = self.outputs(width)


def torchvision(spec: VideoResNet) -> Rules:
    """Rules for torchvision.

    "layer2.0.conv1.1.bias" -> "stages.1.0.sum.body.conv1.norm.bias"
    "layer2.0.downsample.0.weight" -> "stages.1.0.sum.skip.conv.weight"
    """
    split_stem = {0: "space.conv", 1: "space.norm", 3: "time.conv", 4: "time.norm"}
    stem = split_stem if len(spec.stem) == 2 else {0: "conv.conv", 1: "conv.norm"}
    split = {0: "space", 1: "norm", 3: "time"}
    return (
        *((rf"^stem\.{i}\.", f"stem.{name}.") for i, name in stem.items()), (r"^fc\.", "head.out."),
        (r"^layer(\d)\.(\d+)\.", "stages.{1-1}.{2}.sum."),
        (r"\.downsample\.0\.", ".skip.conv."), (r"\.downsample\.1\.", ".skip.norm."),
        *((rf"\.conv(\d)\.0\.{i}\.", f".body.conv{{1}}.conv.{name}.") for i, name in split.items()),
        (r"\.conv(\d)\.0\.", ".body.conv{1}.conv."), (r"\.conv(\d)\.1\.", ".body.conv{1}.norm."),
    )  # fmt: skip


def hara(spec: VideoResNet) -> Rules:
    """Rules for the checkpoints of Hara et al. (github.com/kenshohara/3D-ResNets-PyTorch), named as 2-D ResNets.

    "layer2.0.bn1.bias" -> "stages.1.0.sum.body.conv1.norm.bias"
    """
    return (
        (r"^conv1\.", "stem.conv.conv."), (r"^bn1\.", "stem.conv.norm."), (r"^fc\.", "head.out."),
        (r"^layer(\d)\.(\d+)\.", "stages.{1-1}.{2}.sum."),
        (r"\.conv(\d)\.", ".body.conv{1}.conv."), (r"\.bn(\d)\.", ".body.conv{1}.norm."),
        (r"\.downsample\.0\.", ".skip.conv."), (r"\.downsample\.1\.", ".skip.norm."),
    )  # fmt: skip


CARD = Card(
    "Video ResNets", 2018,
    "Tran et al., A closer look at spatiotemporal convolutions for action recognition, arXiv 1711.11248",
    ("time", "depth"), "A residual network whose convolutions reach over time as well as space.",
)  # fmt: skip
CARD_MC3 = CARD.of(
    "MC3-18", innovation="Motion is modeled in the first stages only; the later ones process single frames."
)
CARD_R2PLUS1D = CARD.of(
    "R(2+1)D-18",
    innovation="Convolutions are split into one over space and one over time with a ReLU between: easier to train.",
)
CARD_FRAMES = CARD.of(
    "f-R2D-18",
    innovation="Each frame by itself, averaged over time in the head: the control that sees no order of frames.",
)
CARD_HARA = CARD.of(
    "3D ResNet", innovation="With Kinetics there are enough videos to train deep 3-D networks.",
    paper="Hara et al., Can spatiotemporal 3D CNNs retrace the history of 2D CNNs and ImageNet?, arXiv 1711.09577",
    note="The stem is 7x7x7 with pooling, as in the authors' code; R3D-18 has 3x7x7 and none.",
)  # fmt: skip
SMALL_NOTE = (
    "Narrowed here for small data sets and CPUs; the three small networks have nearly equal numbers of parameters."
)

MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
"""Of the frames of Kinetics-400, as in torchvision."""


def kinetics(
    spec: VideoResNet, card: Card, *, upstream: str = "", reported: tuple[float, float] | None = None
) -> Variant:
    """Return a row for the 400 classes of Kinetics-400, with the frames of torchvision's `VideoClassification`.

    upstream: torchvision's name. reported: top-1 and top-5 of its weights, in percent.
    """
    size = spec.resolution
    preprocessing = Preprocessing(
        resize=round(size * 128 / 112), width=round(size * 171 / 112), crop=size, antialias=False,
        mean=MEAN, std=STD, sampling=ClipSampling(spec.frames, rate=15.0, clips=5),
    )  # fmt: skip
    if reported:
        card = replace(card, reported=ReportedMetrics(*reported, "Kinetics-400", "torchvision KINETICS400_V1"))
    return Variant(spec, card, preprocessing, classes=400, upstream={"torchvision": upstream} if upstream else {})


R3D, MC3 = VideoResNet(("3d",) * 4), VideoResNet(("3d", "2d", "2d", "2d"))
R2PLUS1D = VideoResNet(("2+1d",) * 4, stem=(45, 64))
FRAMES = VideoResNet(("2d",) * 4, stem_frames=1)
R34, R50 = (
    VideoResNet(("3d",) * 4, (3, 4, 6, 3), block=block, stem_frames=7, stem_pool=True)
    for block in get_args(Block)
)  # fmt: skip


def small(spec: VideoResNet, width: int) -> VideoResNet:
    """Return a narrow network for small frames; width: of its stem and its first stage."""
    return replace(spec, widths=tuple(width << i for i in range(4)), stem=(width,), resolution=64)


FAMILY = Family(
    {
        "r3d_18": kinetics(R3D, CARD.of("R3D-18"), upstream="r3d_18", reported=(63.20, 83.48)),
        "mc3_18": kinetics(MC3, CARD_MC3, upstream="mc3_18", reported=(63.96, 84.13)),
        "r2plus1d_18": kinetics(R2PLUS1D, CARD_R2PLUS1D, upstream="r2plus1d_18", reported=(67.46, 86.18)),
        "f_r2d_18": kinetics(FRAMES, CARD_FRAMES),
        "r3d_34": kinetics(R34, CARD_HARA.of("3D ResNet-34")),
        "r3d_50": kinetics(R50, CARD_HARA.of("3D ResNet-50")),
        "r3d_18_small": kinetics(small(R3D, 16), CARD.of("R3D-18 small", note=SMALL_NOTE)),
        "mc3_18_small": kinetics(small(MC3, 28), CARD_MC3.of("MC3-18 small", note=SMALL_NOTE)),
        "f_r2d_18_small": kinetics(small(FRAMES, 28), CARD_FRAMES.of("f-R2D-18 small", note=SMALL_NOTE)),
    },
    {"torchvision": torchvision, "hara": hara},
)
