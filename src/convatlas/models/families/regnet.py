"""RegNet: networks whose block widths lie on a line, found by narrowing a design space step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Self

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.conv import ConvNorm, SqueezeExcitation
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize, normal
from convatlas.models.card import Card, Family, Library, ReportedMetrics, Variant, imagenet
from convatlas.models.keys import Rules


class XBlock(Chain):
    """ReLU(x + (1x1 -> grouped 3x3 /s -> [gate] -> 1x1)), all of one width (Radosavovic et al. 2020, figure 4).

    group: channels of a group. squeeze: hidden channels of the gate (Y block) as a fraction of the block's input.
    Where the shape changes, the shortcut is a 1x1 convolution.
    """

    def __init__(self, inputs: int, width: int, stride: int, *, group: int, squeeze: float) -> None:
        gate = {"squeeze": SqueezeExcitation(width, max(1, round(squeeze * inputs)))} if squeeze else {}
        body = Chain(
            conv1=ConvNorm(inputs, width, kernel=1),
            conv2=ConvNorm(width, width, stride=stride, groups=width // group),
            **gate,
            conv3=ConvNorm(width, width, kernel=1, act=None),
        )
        same_shape = (inputs, stride) == (width, 1)
        skip = nn.Identity() if same_shape else ConvNorm(inputs, width, kernel=1, stride=stride, act=None)
        super().__init__(sum=Sum(body=body, skip=skip), act=nn.ReLU(inplace=True))


def quantized_line(depth: int, start: int, slope: float, step: float) -> list[tuple[int, int]]:
    """Return (width, depth) of each stage from the parameters d, w_0, w_a and w_m of the design space.

    Block j has the width u_j = start + slope j, rounded to the nearest start step^k and then to a multiple of 8; blocks
    of equal width are a stage (equations 2 to 4).
    """
    widths = []
    for j in range(depth):
        power = round(math.log((start + slope * j) / start) / math.log(step))
        widths.append(round(start * step**power / 8) * 8)
    return [(width, len(list(run))) for width, run in groupby(widths)]


def fit_to_group(width: int, group: int) -> tuple[int, int]:
    """Return (width, group): the multiple of the group that is nearest to the width, and a group of at most the width.

    148 channels in groups of 16 become (144, 16), and 8 channels (8, 8).
    """
    group = min(group, width)
    return max(1, round(width / group)) * group, group


@dataclass(frozen=True)
class RegNet(Spec):
    """Radosavovic et al. 2020, figures 4 and 16: four stages of X blocks; each halves the map.

    widths: of the stages; a width that is not a multiple of the group is built as the nearest one that is.
    group: channels of a group of the 3x3 convolutions, at most the width.
    squeeze: hidden channels of the gates (RegNetY), as a fraction of the block's input channels; 0 for none.
    """

    widths: tuple[Width, ...]
    depths: tuple[Depth, ...]
    group: int
    squeeze: float = 0.0
    stem: Width = 32
    small_stem: bool = False
    resolution: Resolution = 224

    def scaled(self, *, width: float = 1.0, depth: float = 1.0, resolution: int | None = None) -> Self:
        """Scale as every spec does, to widths that are multiples of the group."""
        scaled = super().scaled(width=width, depth=depth, resolution=resolution)
        if width == 1:
            return scaled
        return replace(scaled, widths=tuple(fit_to_group(stage, self.group)[0] for stage in scaled.widths))

    def build(self, *, classes: int, channels: int) -> Network:
        inputs, stages = self.stem, []
        for width, depth in zip(self.widths, self.depths, strict=True):
            width, group = fit_to_group(width, self.group)
            stages.append(Chain(*self.blocks(inputs, width, depth, group)))
            inputs = width
        network = Network(
            stem=ConvNorm(channels, self.stem, stride=1 if self.small_stem else 2), stages=Chain(*stages),
            head=pooled(inputs, classes), input_shape=self.input_shape(channels),
        )  # fmt: skip
        return initialize(network, conv=he_fan_out, linear=normal(0.01))

    def blocks(self, inputs: int, width: int, depth: int, group: int) -> Iterator[nn.Module]:
        for i in range(depth):
            yield XBlock(width if i else inputs, width, 1 if i else 2, group=group, squeeze=self.squeeze)


def torchvision(spec: RegNet) -> Rules:
    """Rules for torchvision.

    "trunk_output.block4.block4-1.f.b.0.weight" -> "stages.3.1.sum.body.conv2.conv.weight"
    "trunk_output.block2.block2-0.proj.1.bias" -> "stages.1.0.sum.skip.norm.bias"
    """
    return (
        (r"^stem\.0\.", "stem.conv."), (r"^stem\.1\.", "stem.norm."), (r"^fc\.", "head.out."),
        (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", "stages.{1-1}.{2}.sum."),
        (r"\.proj\.0\.", ".skip.conv."), (r"\.proj\.1\.", ".skip.norm."),
        *((rf"\.f\.{letter}\.0\.", f".body.conv{i}.conv.") for i, letter in enumerate("abc", 1)),
        *((rf"\.f\.{letter}\.1\.", f".body.conv{i}.norm.") for i, letter in enumerate("abc", 1)),
        (r"\.f\.se\.fc1\.", ".body.squeeze.gate.reduce."), (r"\.f\.se\.fc2\.", ".body.squeeze.gate.expand."),
    )  # fmt: skip


def timm(spec: RegNet) -> Rules:
    """Rules for timm.

    "s4.b2.conv2.bn.weight" -> "stages.3.1.sum.body.conv2.norm.weight"
    "s2.b1.downsample.conv.weight" -> "stages.1.0.sum.skip.conv.weight"
    """
    return (
        (r"^stem\.bn\.", "stem.norm."), (r"^head\.fc\.", "head.out."),
        (r"^s(\d)\.b(\d+)\.", "stages.{1-1}.{2-1}.sum."),
        (r"\.downsample\.", ".skip."), (r"\.conv(\d)\.", ".body.conv{1}."), (r"\.bn\.", ".norm."),
        (r"\.se\.fc1\.", ".body.squeeze.gate.reduce."), (r"\.se\.fc2\.", ".body.squeeze.gate.expand."),
    )  # fmt: skip


def regnet_x(depth: int, start: int, slope: float, step: float, group: int, *, squeeze: float = 0.0) -> RegNet:
    """Return the network with these parameters of table 9 (figure 16): d, w_0, w_a, w_m, g."""
    stages = quantized_line(depth, start, slope, step)
    widths = tuple(fit_to_group(width, group)[0] for width, _ in stages)
    return RegNet(widths, tuple(depth for _, depth in stages), group, squeeze)


regnet_y = partial(regnet_x, squeeze=0.25)


CARD = Card(
    "RegNet", 2020, "Radosavovic et al., Designing network design spaces, arXiv 2003.13678",
    ("search", "width"), "A design space is searched, not a network: good widths lie on a line.",
)  # fmt: skip
CARD_Y = CARD.of("RegNetY", innovation="RegNetX with squeeze-and-excitation in every block.")
EPOCHS_100 = "trained for 100 epochs"
TORCHVISION_NOTE = "Not the published network: torchvision rounds the widths in another way."


def x_variant(size: str, spec: RegNet, top1: float, upstream: Mapping[Library, str]) -> Variant:
    card = CARD.of(f"RegNetX-{size}", reported=ReportedMetrics(top1, protocol=EPOCHS_100))
    return imagenet(spec, card, upstream=upstream)


def y_variant(size: str, spec: RegNet, top1: float, upstream: Mapping[Library, str]) -> Variant:
    card = CARD_Y.of(f"RegNetY-{size}", reported=ReportedMetrics(top1, protocol=EPOCHS_100))
    return imagenet(spec, card, upstream=upstream)


FAMILY = Family(
    {
        "regnet_x_200mf": x_variant("200MF", regnet_x(13, 24, 36.44, 2.49, 8), 68.9, {"timm": "regnetx_002"}),
        "regnet_x_400mf": x_variant("400MF", regnet_x(22, 24, 24.48, 2.54, 16), 72.6, {"timm": "regnetx_004"}),
        "regnet_x_600mf": x_variant("600MF", regnet_x(16, 48, 36.97, 2.24, 24), 74.1, {"timm": "regnetx_006"}),
        "regnet_x_800mf": x_variant(
            "800MF", regnet_x(16, 56, 35.73, 2.28, 16), 75.2, {"torchvision": "regnet_x_800mf", "timm": "regnetx_008"}
        ),
        "regnet_x_1_6gf": x_variant(
            "1.6GF", regnet_x(18, 80, 34.01, 2.25, 24), 77.0, {"torchvision": "regnet_x_1_6gf", "timm": "regnetx_016"}
        ),
        "regnet_x_3_2gf": x_variant(
            "3.2GF", regnet_x(25, 88, 26.31, 2.25, 48), 78.3, {"torchvision": "regnet_x_3_2gf", "timm": "regnetx_032"}
        ),
        "regnet_x_4_0gf": x_variant("4.0GF", regnet_x(23, 96, 38.65, 2.43, 40), 78.6, {"timm": "regnetx_040"}),
        "regnet_x_6_4gf": x_variant("6.4GF", regnet_x(17, 184, 60.83, 2.07, 56), 79.2, {"timm": "regnetx_064"}),
        "regnet_x_8gf": x_variant(
            "8.0GF", regnet_x(23, 80, 49.56, 2.88, 120), 79.3, {"torchvision": "regnet_x_8gf", "timm": "regnetx_080"}
        ),
        "regnet_x_12gf": x_variant("12GF", regnet_x(19, 168, 73.36, 2.37, 112), 79.7, {"timm": "regnetx_120"}),
        "regnet_x_16gf": x_variant(
            "16GF", regnet_x(22, 216, 55.59, 2.1, 128), 80.0, {"torchvision": "regnet_x_16gf", "timm": "regnetx_160"}
        ),
        "regnet_x_32gf": x_variant(
            "32GF", regnet_x(23, 320, 69.86, 2.0, 168), 80.5, {"torchvision": "regnet_x_32gf", "timm": "regnetx_320"}
        ),
        "regnet_y_200mf": y_variant("200MF", regnet_y(13, 24, 36.44, 2.49, 8), 70.3, {"timm": "regnety_002"}),
        "regnet_y_400mf": y_variant(
            "400MF", regnet_y(16, 48, 27.89, 2.09, 8), 74.1, {"torchvision": "regnet_y_400mf", "timm": "regnety_004"}
        ),
        "regnet_y_600mf": y_variant("600MF", regnet_y(15, 48, 32.54, 2.32, 16), 75.5, {"timm": "regnety_006"}),
        "regnet_y_800mf": y_variant("800MF", regnet_y(14, 56, 38.84, 2.4, 16), 76.3, {"timm": "regnety_008"}),
        "regnet_y_1_6gf": y_variant(
            "1.6GF", regnet_y(27, 48, 20.71, 2.65, 24), 77.9, {"torchvision": "regnet_y_1_6gf", "timm": "regnety_016"}
        ),
        "regnet_y_3_2gf": y_variant(
            "3.2GF", regnet_y(21, 80, 42.63, 2.66, 24), 78.9, {"torchvision": "regnet_y_3_2gf", "timm": "regnety_032"}
        ),
        "regnet_y_4_0gf": y_variant("4.0GF", regnet_y(22, 96, 31.41, 2.24, 64), 79.4, {"timm": "regnety_040"}),
        "regnet_y_6_4gf": y_variant("6.4GF", regnet_y(25, 112, 33.22, 2.27, 72), 79.9, {"timm": "regnety_064"}),
        "regnet_y_8gf": y_variant("8.0GF", regnet_y(17, 192, 76.82, 2.19, 56), 79.9, {"timm": "regnety_080"}),
        "regnet_y_12gf": y_variant("12GF", regnet_y(19, 168, 73.36, 2.37, 112), 80.3, {"timm": "regnety_120"}),
        "regnet_y_16gf": y_variant(
            "16GF", regnet_y(18, 200, 106.23, 2.48, 112), 80.4, {"torchvision": "regnet_y_16gf", "timm": "regnety_160"}
        ),
        "regnet_y_32gf": y_variant(
            "32GF", regnet_y(20, 232, 115.89, 2.53, 232), 80.9, {"torchvision": "regnet_y_32gf", "timm": "regnety_320"}
        ),
        "regnet_x_400mf_torchvision": imagenet(
            RegNet((32, 64, 160, 400), (1, 2, 7, 12), 16),
            CARD.of("RegNetX-400MF (torchvision)", note=TORCHVISION_NOTE),
            upstream={"torchvision": "regnet_x_400mf", "timm": "regnetx_004_tv"},
        ),
        "regnet_y_800mf_torchvision": imagenet(
            RegNet((64, 144, 320, 784), (1, 3, 8, 2), 16, 0.25),
            CARD_Y.of("RegNetY-800MF (torchvision)", note=TORCHVISION_NOTE),
            upstream={"torchvision": "regnet_y_800mf", "timm": "regnety_008_tv"},
        ),
        "regnet_y_8gf_torchvision": imagenet(
            RegNet((224, 448, 896, 2016), (2, 4, 10, 1), 56, 0.25),
            CARD_Y.of("RegNetY-8GF (torchvision)", note=TORCHVISION_NOTE),
            upstream={"torchvision": "regnet_y_8gf", "timm": "regnety_080_tv"},
        ),
    },
    {"torchvision": torchvision, "timm": timm},
)
