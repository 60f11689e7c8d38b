"""RegNet: simple networks whose widths lie on a line, found by narrowing a space of designs step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.conv import ConvNorm, SqueezeExcitation
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize, normal
from convatlas.models.card import Card, Family, Variant, imagenet
from convatlas.models.keys import Rules


class Block(Chain):
    """1x1, grouped 3x3, [gate], 1x1, all of one width, beside the shortcut (Radosavovic et al. 2020, figure 4)."""

    def __init__(self, inputs: int, width: int, stride: int, *, group: int, squeeze: float) -> None:
        gate = {"squeeze": SqueezeExcitation(width, max(1, round(squeeze * inputs)))} if squeeze else {}
        body = Chain(
            conv1=ConvNorm(inputs, width, kernel=1),
            conv2=ConvNorm(width, width, stride=stride, groups=width // group),
            **gate,
            conv3=ConvNorm(width, width, kernel=1, act=None),
        )
        plain = (inputs, stride) == (width, 1)
        skip = nn.Identity() if plain else ConvNorm(inputs, width, kernel=1, stride=stride, act=None)
        super().__init__(sum=Sum(body=body, skip=skip), act=nn.ReLU(inplace=True))


def line(depth: int, start: int, slope: float, step: float) -> list[tuple[int, int]]:
    """Return (width, depth) of each stage: u_j = start + slope j, moved to the nearest start step^k (equations 2-4)."""
    widths = []
    for j in range(depth):
        power = round(math.log((start + slope * j) / start) / math.log(step))
        widths.append(round(start * step**power / 8) * 8)
    return [(width, len(list(run))) for width, run in groupby(widths)]


@dataclass(frozen=True)
class RegNet(Spec):
    """Radosavovic et al. 2020, figures 4 and 16: each stage halves the map.

    widths: moved to the nearest whole number of groups. group: channels of a group of the 3x3 convolutions.
    squeeze: width of the gates (RegNetY), as a share of the block's input.
    """

    widths: tuple[Width, ...]
    depths: tuple[Depth, ...]
    group: int
    squeeze: float = 0.0
    stem: Width = 32
    small_stem: bool = False
    resolution: Resolution = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = [(width, min(self.group, width)) for width in self.widths]
        object.__setattr__(self, "widths", tuple(max(1, round(width / group)) * group for width, group in groups))

    def build(self, *, classes: int, channels: int) -> Network:
        inputs, stages = self.stem, []
        for width, depth in zip(self.widths, self.depths, strict=True):
            stages.append(Chain(*self.blocks(inputs, width, depth, min(self.group, width))))
            inputs = width
        network = Network(
            stem=ConvNorm(channels, self.stem, stride=1 if self.small_stem else 2), stages=Chain(*stages),
            head=pooled(inputs, classes), input_shape=self.input_shape(channels),
        )  # fmt: skip
        return initialize(network, conv=he_fan_out, linear=normal(0.01))

    def blocks(self, inputs: int, width: int, depth: int, group: int) -> Iterator[nn.Module]:
        for i in range(depth):
            yield Block(width if i else inputs, width, 1 if i else 2, group=group, squeeze=self.squeeze)


def torchvision(spec: RegNet) -> Rules:
    return (
        (r"^stem\.0\.", "stem.conv."), (r"^stem\.1\.", "stem.norm."), (r"^fc\.", "head.out."),
        (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", "stages.{1-1}.{2}.sum."),
        (r"\.proj\.0\.", ".skip.conv."), (r"\.proj\.1\.", ".skip.norm."),
        *((rf"\.f\.{letter}\.0\.", f".body.conv{i}.conv.") for i, letter in enumerate("abc", 1)),
        *((rf"\.f\.{letter}\.1\.", f".body.conv{i}.norm.") for i, letter in enumerate("abc", 1)),
        (r"\.f\.se\.fc1\.", ".body.squeeze.gate.reduce."), (r"\.f\.se\.fc2\.", ".body.squeeze.gate.expand."),
    )  # fmt: skip


def timm(spec: RegNet) -> Rules:
    return (
        (r"^stem\.bn\.", "stem.norm."), (r"^head\.fc\.", "head.out."),
        (r"^s(\d)\.b(\d+)\.", "stages.{1-1}.{2-1}.sum."),
        (r"\.downsample\.", ".skip."), (r"\.conv(\d)\.", ".body.conv{1}."), (r"\.bn\.", ".norm."),
        (r"\.se\.fc1\.", ".body.squeeze.gate.reduce."), (r"\.se\.fc2\.", ".body.squeeze.gate.expand."),
    )  # fmt: skip


def x(depth: int, start: int, slope: float, step: float, group: int, *, squeeze: float = 0.0) -> RegNet:
    """The parameters of table 9 (figure 16): d, w_0, w_a, w_m, g."""
    stages = line(depth, start, slope, step)
    return RegNet(tuple(width for width, _ in stages), tuple(depth for _, depth in stages), group, squeeze)


def y(depth: int, start: int, slope: float, step: float, group: int) -> RegNet:
    return x(depth, start, slope, step, group, squeeze=0.25)


CARD = Card(
    "RegNet", 2020, "Radosavovic et al., Designing network design spaces, arXiv 2003.13678",
    ("search", "width"), "A space of designs is searched, not a network: good widths lie on a line.",
)  # fmt: skip
CARD_Y = CARD.of("RegNetY", innovation="RegNetX with squeeze-and-excitation in every block.")
OTHER = "torchvision rounds the widths in another way: not the published network, but its weights are for this one."


def row_x(size: str, spec: RegNet, top1: str, *libraries: str, timm: str) -> Variant:
    return imagenet(spec, CARD.of(f"RegNetX-{size}", f"{top1} % top-1, 100 epochs"), *libraries, timm=timm)


def row_y(size: str, spec: RegNet, top1: str, *libraries: str, timm: str) -> Variant:
    return imagenet(spec, CARD_Y.of(f"RegNetY-{size}", f"{top1} % top-1, 100 epochs"), *libraries, timm=timm)


FAMILY = Family(
    {
        "regnet_x_200mf": row_x("200MF", x(13, 24, 36.44, 2.49, 8), "68.9", timm="regnetx_002"),
        "regnet_x_400mf": row_x("400MF", x(22, 24, 24.48, 2.54, 16), "72.6", timm="regnetx_004"),
        "regnet_x_600mf": row_x("600MF", x(16, 48, 36.97, 2.24, 24), "74.1", timm="regnetx_006"),
        "regnet_x_800mf": row_x("800MF", x(16, 56, 35.73, 2.28, 16), "75.2", "torchvision", timm="regnetx_008"),
        "regnet_x_1_6gf": row_x("1.6GF", x(18, 80, 34.01, 2.25, 24), "77.0", "torchvision", timm="regnetx_016"),
        "regnet_x_3_2gf": row_x("3.2GF", x(25, 88, 26.31, 2.25, 48), "78.3", "torchvision", timm="regnetx_032"),
        "regnet_x_4_0gf": row_x("4.0GF", x(23, 96, 38.65, 2.43, 40), "78.6", timm="regnetx_040"),
        "regnet_x_6_4gf": row_x("6.4GF", x(17, 184, 60.83, 2.07, 56), "79.2", timm="regnetx_064"),
        "regnet_x_8gf": row_x("8.0GF", x(23, 80, 49.56, 2.88, 120), "79.3", "torchvision", timm="regnetx_080"),
        "regnet_x_12gf": row_x("12GF", x(19, 168, 73.36, 2.37, 112), "79.7", timm="regnetx_120"),
        "regnet_x_16gf": row_x("16GF", x(22, 216, 55.59, 2.1, 128), "80.0", "torchvision", timm="regnetx_160"),
        "regnet_x_32gf": row_x("32GF", x(23, 320, 69.86, 2.0, 168), "80.5", "torchvision", timm="regnetx_320"),
        "regnet_y_200mf": row_y("200MF", y(13, 24, 36.44, 2.49, 8), "70.3", timm="regnety_002"),
        "regnet_y_400mf": row_y("400MF", y(16, 48, 27.89, 2.09, 8), "74.1", "torchvision", timm="regnety_004"),
        "regnet_y_600mf": row_y("600MF", y(15, 48, 32.54, 2.32, 16), "75.5", timm="regnety_006"),
        "regnet_y_800mf": row_y("800MF", y(14, 56, 38.84, 2.4, 16), "76.3", timm="regnety_008"),
        "regnet_y_1_6gf": row_y("1.6GF", y(27, 48, 20.71, 2.65, 24), "77.9", "torchvision", timm="regnety_016"),
        "regnet_y_3_2gf": row_y("3.2GF", y(21, 80, 42.63, 2.66, 24), "78.9", "torchvision", timm="regnety_032"),
        "regnet_y_4_0gf": row_y("4.0GF", y(22, 96, 31.41, 2.24, 64), "79.4", timm="regnety_040"),
        "regnet_y_6_4gf": row_y("6.4GF", y(25, 112, 33.22, 2.27, 72), "79.9", timm="regnety_064"),
        "regnet_y_8gf": row_y("8.0GF", y(17, 192, 76.82, 2.19, 56), "79.9", timm="regnety_080"),
        "regnet_y_12gf": row_y("12GF", y(19, 168, 73.36, 2.37, 112), "80.3", timm="regnety_120"),
        "regnet_y_16gf": row_y("16GF", y(18, 200, 106.23, 2.48, 112), "80.4", "torchvision", timm="regnety_160"),
        "regnet_y_32gf": row_y("32GF", y(20, 232, 115.89, 2.53, 232), "80.9", "torchvision", timm="regnety_320"),
        "regnet_x_400mf_torchvision": imagenet(
            RegNet((32, 64, 160, 400), (1, 2, 7, 12), 16), CARD.of("RegNetX-400MF (torchvision)", note=OTHER),
            torchvision="regnet_x_400mf", timm="regnetx_004_tv",
        ),
        "regnet_y_800mf_torchvision": imagenet(
            RegNet((64, 144, 320, 784), (1, 3, 8, 2), 16, 0.25), CARD_Y.of("RegNetY-800MF (torchvision)", note=OTHER),
            torchvision="regnet_y_800mf", timm="regnety_008_tv",
        ),
        "regnet_y_8gf_torchvision": imagenet(
            RegNet((224, 448, 896, 2016), (2, 4, 10, 1), 56, 0.25), CARD_Y.of("RegNetY-8GF (torchvision)", note=OTHER),
            torchvision="regnet_y_8gf", timm="regnety_080_tv",
        ),
    },
    {"torchvision": torchvision, "timm": timm},
)  # fmt: skip
