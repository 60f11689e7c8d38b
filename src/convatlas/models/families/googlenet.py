"""GoogLeNet (Inception v1) and its successor with batch norm (Inception v2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from string import ascii_lowercase
from typing import Literal, TypeVar

from torch import nn

from convatlas.core.compose import Chain, Concat
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Record, Resolution, Spec, Width
from convatlas.errors import SpecError
from convatlas.layers.channels import SamePad
from convatlas.layers.conv import ConvNorm
from convatlas.layers.heads import AuxiliaryClassifier, pooled
from convatlas.layers.init import initialize, truncated
from convatlas.models.card import Card, Family, imagenet
from convatlas.models.keys import Rules

conv = partial(ConvNorm, norm=partial(nn.BatchNorm2d, eps=0.001))


class BiasedConv(Chain):
    """Convolution with a bias, batch norm, ReLU: as the authors' Caffe model of 2015 has it."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            conv=nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2),
            norm=nn.BatchNorm2d(outputs),
            act=nn.ReLU(inplace=True),
        )


class InceptionModule(Concat):
    """1x1, 3x3, "5x5" and pooling, each behind a 1x1 reduction (Szegedy et al. 2014, figure 2b)."""

    def __init__(self, inputs: int, row: Mix, five: int) -> None:
        super().__init__(
            one=conv(inputs, row.one, kernel=1),
            three=Chain(reduce=conv(inputs, row.reduce3, kernel=1), conv=conv(row.reduce3, row.three)),
            five=Chain(
                reduce=conv(inputs, row.reduce5, kernel=1), conv=conv(row.reduce5, row.five, kernel=five)
            ),
            pool=Chain(pool=nn.MaxPool2d(3, 1, 1, ceil_mode=True), proj=conv(inputs, row.proj, kernel=1)),
        )  # fmt: skip


@dataclass(frozen=True)
class Mix(Record):
    """A row of table 1: the widths of the branches in the order of the columns."""

    one: Width
    reduce3: Width
    three: Width
    reduce5: Width
    five: Width
    proj: Width
    depth: Depth = 1

    @property
    def outputs(self) -> int:
        return self.one + self.three + self.five + self.proj

    def build(self, inputs: int, five: int) -> Iterator[nn.Module]:
        for i in range(self.depth):
            yield InceptionModule(self.outputs if i else inputs, self, five)


class Side(AuxiliaryClassifier):
    """Mean of 4x4 regions, 1x1 convolution, a hidden layer of 1,024 units (section 5)."""

    def __init__(self, at: str, inputs: int, classes: int, *, width: int = 128, hidden: int = 1024) -> None:
        super().__init__(
            at, pool=nn.AdaptiveAvgPool2d(4), conv=conv(inputs, width, kernel=1), flat=nn.Flatten(),
            fc=nn.Linear(16 * width, hidden), relu=nn.ReLU(inplace=True), drop=nn.Dropout(0.7),
            out=nn.Linear(hidden, classes),
        )  # fmt: skip


AnyRow = TypeVar("AnyRow", bound=Record)


def lettered(rows: Sequence[AnyRow]) -> Iterator[tuple[str, AnyRow]]:
    """Name the rows of a stage as the paper does: a, b, c ..."""
    if not 1 <= len(rows) <= len(ascii_lowercase):
        raise SpecError(f"a stage has 1 to {len(ascii_lowercase)} rows, not {len(rows)}")
    yield from zip(ascii_lowercase, rows, strict=False)


@dataclass(frozen=True)
class GoogLeNet(Spec):
    """Szegedy et al. 2014, table 1, with batch norm, as torchvision has it.

    five: the kernel of the "5x5" branch; torchvision's weights have 3.
    auxiliary: two more classifiers that learn along (section 5).
    """

    stem: tuple[Width, Width, Width] = (64, 64, 192)
    stages: tuple[tuple[Mix, ...], ...] = (
        (Mix(64, 96, 128, 16, 32, 32), Mix(128, 128, 192, 32, 96, 64)),
        (
            Mix(192, 96, 208, 16, 48, 64), Mix(160, 112, 224, 24, 64, 64), Mix(128, 128, 256, 24, 64, 64),
            Mix(112, 144, 288, 32, 64, 64), Mix(256, 160, 320, 32, 128, 128),
        ),
        (Mix(256, 160, 320, 32, 128, 128), Mix(384, 192, 384, 48, 128, 128)),
    )  # fmt: skip
    five: int = 3
    auxiliary: bool = False
    resolution: Resolution = 224

    @property
    def minimum(self) -> int:
        return 15

    def build(self, *, classes: int, channels: int) -> Network:
        a, b, inputs = self.stem
        stem = Chain(
            conv1=conv(channels, a, kernel=7, stride=2), pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            conv2=conv(a, b, kernel=1), conv3=conv(b, inputs), pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        )  # fmt: skip
        stages: list[Chain] = []
        widths: dict[str, int] = {}
        for i, rows in enumerate(self.stages):
            layers: dict[str, nn.Module] = {}
            if i:
                layers["pool"] = nn.MaxPool2d(3 if i == 1 else 2, 2, ceil_mode=True)
            for letter, row in lettered(rows):
                layers[letter] = Chain(*row.build(inputs, self.five))
                inputs = widths[f"stages.{i}.{letter}"] = row.outputs
            stages.append(Chain(**layers))
        last = "abcd"[: len(self.stages[1])][-1]
        sides = {"1": "stages.1.a", "2": f"stages.1.{last}"} if self.auxiliary else {}
        network = Network(
            stem=stem, stages=Chain(*stages), head=pooled(inputs, classes, dropout=0.2),
            auxiliary={name: Side(at, widths[at], classes) for name, at in sides.items()},
            input_shape=self.input_shape(channels),
        )  # fmt: skip
        return initialize(network, conv=truncated(0.01), linear=truncated(0.01))


def torchvision(spec: GoogLeNet) -> Rules:
    sides = (
        (r"^aux(\d)\.fc1\.", "auxiliary.{1}.fc."), (r"^aux(\d)\.fc2\.", "auxiliary.{1}.out."),
        (r"^aux(\d)\.", "auxiliary.{1}."),
    ) if spec.auxiliary else ((r"^aux\d\..*", ""),)  # fmt: skip
    return (
        *sides,
        (r"^conv", "stem.conv"), (r"^fc\.", "head.out."),
        (r"^inception(\d)([a-z])\.", "stages.{1-3}.{2}.0."),
        (r"\.branch1\.", ".one."),
        (r"\.branch2\.0\.", ".three.reduce."), (r"\.branch2\.1\.", ".three.conv."),
        (r"\.branch3\.0\.", ".five.reduce."), (r"\.branch3\.1\.", ".five.conv."),
        (r"\.branch4\.1\.", ".pool.proj."),
        (r"\.bn\.", ".norm."),
    )  # fmt: skip


@dataclass(frozen=True)
class Double(Record):
    """A row of figure 5: 1x1, 3x3 and two 3x3 behind reductions, and pooling, which is projected where `proj` is given.

    stride 2: no 1x1, and the pooled maps pass unchanged.
    """

    one: Width | None
    reduce3: Width
    three: Width
    reduce33: Width
    double: Width
    proj: Width | None
    pool: Literal["average", "max"] = "average"
    stride: int = 1
    depth: Depth = 1

    def outputs(self, inputs: int) -> int:
        return (self.one or 0) + self.three + self.double + (self.proj or inputs)

    def build(self, inputs: int) -> Iterator[nn.Module]:
        for i in range(self.depth):
            stride = 1 if i else self.stride
            branches: dict[str, nn.Module] = {}
            if self.one is not None:
                branches["one"] = BiasedConv(inputs, self.one, kernel=1)
            branches["three"] = Chain(
                reduce=BiasedConv(inputs, self.reduce3, kernel=1),
                conv=BiasedConv(self.reduce3, self.three, stride=stride),
            )
            branches["stack"] = Chain(
                reduce=BiasedConv(inputs, self.reduce33, kernel=1), conv1=BiasedConv(self.reduce33, self.double),
                conv2=BiasedConv(self.double, self.double, stride=stride),
            )  # fmt: skip
            if self.stride == 2:
                # Caffe's pooling, whose last window may hang over; and an odd map fits the convolutions, too
                border = SamePad(3, stride, value=float("-inf"))
                branches["pool"] = Chain(border=border, pool=nn.MaxPool2d(3, stride))
            else:
                kind = nn.AvgPool2d if self.pool == "average" else nn.MaxPool2d
                branches["pool"] = Chain(pool=kind(3, 1, 1), proj=BiasedConv(inputs, self.proj or inputs, kernel=1))
            inputs = self.outputs(inputs)
            yield Concat(**branches)


@dataclass(frozen=True)
class BNInception(Spec):
    """Ioffe and Szegedy 2015, figure 5: two 3x3 for the 5x5, batch norm everywhere, strides inside the modules."""

    stem: tuple[Width, Width, Width] = (64, 64, 192)
    stages: tuple[tuple[Double, ...], ...] = (
        (
            Double(64, 64, 64, 64, 96, 32), Double(64, 64, 96, 64, 96, 64),
            Double(None, 128, 160, 64, 96, None, "max", stride=2),
        ),
        (
            Double(224, 64, 96, 96, 128, 128), Double(192, 96, 128, 96, 128, 128), Double(160, 128, 160, 128, 160, 128),
            Double(96, 128, 192, 160, 192, 128), Double(None, 128, 192, 192, 256, None, "max", stride=2),
        ),
        (Double(352, 192, 320, 160, 224, 128), Double(352, 192, 320, 192, 224, 128, "max")),
    )  # fmt: skip
    resolution: Resolution = 224

    @property
    def minimum(self) -> int:
        return 7

    def build(self, *, classes: int, channels: int) -> Network:
        a, b, inputs = self.stem
        stem = Chain(
            conv1=BiasedConv(channels, a, kernel=7, stride=2), pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            conv2=BiasedConv(a, b, kernel=1), conv3=BiasedConv(b, inputs), pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        )  # fmt: skip
        stages = []
        for rows in self.stages:
            layers: dict[str, nn.Module] = {}
            for letter, row in lettered(rows):
                layers[letter] = Chain(*row.build(inputs))
                for _ in range(row.depth):
                    inputs = row.outputs(inputs)
            stages.append(Chain(**layers))
        network = Network(
            stem=stem, stages=Chain(*stages), head=pooled(inputs, classes), input_shape=self.input_shape(channels)
        )
        return initialize(network, conv=truncated(0.01), linear=truncated(0.01))


CARD = Card(
    "GoogLeNet (Inception v1)", 2014, "Szegedy et al., Going deeper with convolutions, arXiv 1409.4842",
    ("spatial exploitation", "width"), "Kernels of several sizes side by side, made cheap by 1x1 reductions.",
    "69.8 / 89.9 % top-1 / top-5: top-1 torchvision's weights, top-5 the paper's, one crop",
    "With batch norm, and 3x3 for the 5x5, as torchvision's published weights have it.",
)  # fmt: skip
CARD_V2 = Card(
    "BN-Inception (Inception v2)", 2015, "Ioffe, Szegedy, Batch normalization, arXiv 1502.03167",
    ("width",), "Batch norm lets the network train with fourteen times fewer steps.",
    "74.8 / 92.2 % top-1 / top-5, one crop (as told in the Inception v3 paper)",
    "Widths of the authors' later Caffe model; the paper's figure prints 96 for two of the pool projections.",
)  # fmt: skip

FAMILY = Family(
    {
        "googlenet": imagenet(GoogLeNet(), CARD, "torchvision", half=True),
        "inception_v2": imagenet(BNInception(), CARD_V2),
    },
    {"torchvision": torchvision},
)
