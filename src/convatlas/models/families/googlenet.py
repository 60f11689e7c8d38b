"""GoogLeNet (Inception v1) and its successor with batch norm (Inception v2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Literal, TypeVar

from torch import nn

from convatlas.core.compose import Chain, Concat
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width
from convatlas.errors import SpecError
from convatlas.layers.channels import SamePad
from convatlas.layers.heads import AuxiliaryClassifier, pooled
from convatlas.layers.inception import conv
from convatlas.layers.init import initialize, truncated
from convatlas.models.card import Card, Family, ReportedMetrics, imagenet
from convatlas.models.keys import Rules


class BiasedConv(Chain):
    """Convolution with a bias -> batch norm -> ReLU, as in the authors' Caffe model of 2015."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            conv=nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2),
            norm=nn.BatchNorm2d(outputs),
            act=nn.ReLU(inplace=True),
        )


class InceptionModule(Concat):
    """[1x1 | 1x1 -> 3x3 | 1x1 -> 5x5 | 3x3 max pool -> 1x1] (Szegedy et al. 2014, figure 2b).

    five: kernel of the "5x5" branch.
    """

    def __init__(self, inputs: int, row: InceptionRow, five: int) -> None:
        super().__init__(
            one=conv(inputs, row.one, kernel=1),
            three=Chain(reduce=conv(inputs, row.reduce3, kernel=1), conv=conv(row.reduce3, row.three)),
            five=Chain(
                reduce=conv(inputs, row.reduce5, kernel=1), conv=conv(row.reduce5, row.five, kernel=five)
            ),
            pool=Chain(pool=nn.MaxPool2d(3, 1, 1, ceil_mode=True), proj=conv(inputs, row.proj, kernel=1)),
        )  # fmt: skip


@dataclass(frozen=True)
class InceptionRow(Row):
    """A row of table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj."""

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


class AuxHead(AuxiliaryClassifier):
    """avg pool to 4x4 -> 1x1 -> linear -> ReLU -> dropout -> linear (section 5)."""

    def __init__(self, at: str, inputs: int, classes: int, *, width: int = 128, hidden: int = 1024) -> None:
        super().__init__(
            at, pool=nn.AdaptiveAvgPool2d(4), conv=conv(inputs, width, kernel=1), flat=nn.Flatten(),
            fc=nn.Linear(16 * width, hidden), relu=nn.ReLU(inplace=True), drop=nn.Dropout(0.7),
            out=nn.Linear(hidden, classes),
        )  # fmt: skip


AnyRow = TypeVar("AnyRow", bound=Row)


def lettered(rows: Sequence[AnyRow]) -> Iterator[tuple[str, AnyRow]]:
    """Yield (name, row) of a stage; the names are those of the paper: a, b, c ..."""
    if not 1 <= len(rows) <= len(ascii_lowercase):
        raise SpecError(f"stages: each must have 1 to {len(ascii_lowercase)} rows, got {len(rows)}")
    yield from zip(ascii_lowercase, rows, strict=False)


@dataclass(frozen=True)
class GoogLeNet(Spec):
    """Szegedy et al. 2014, table 1, with batch norm, as in torchvision.

    stem: channels of the 7x7, the 1x1 and the 3x3 convolution. five: kernel of the "5x5" branch; torchvision's weights
    have 3, the paper 5. auxiliary: train two more classifiers at inner modules (section 5).
    """

    stem: tuple[Width, Width, Width] = (64, 64, 192)
    stages: tuple[tuple[InceptionRow, ...], ...] = (
        (InceptionRow(64, 96, 128, 16, 32, 32), InceptionRow(128, 128, 192, 32, 96, 64)),
        (
            InceptionRow(192, 96, 208, 16, 48, 64), InceptionRow(160, 112, 224, 24, 64, 64),
            InceptionRow(128, 128, 256, 24, 64, 64),
            InceptionRow(112, 144, 288, 32, 64, 64), InceptionRow(256, 160, 320, 32, 128, 128),
        ),
        (InceptionRow(256, 160, 320, 32, 128, 128), InceptionRow(384, 192, 384, 48, 128, 128)),
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
        fourth = ascii_lowercase[: len(self.stages[1])][:4][-1]  # or the last, if there are fewer
        taps = {"1": "stages.1.a", "2": f"stages.1.{fourth}"} if self.auxiliary else {}
        network = Network(
            stem=stem, stages=Chain(*stages), head=pooled(inputs, classes, dropout=0.2),
            auxiliary={name: AuxHead(at, widths[at], classes) for name, at in taps.items()},
            input_shape=self.input_shape(channels),
        )  # fmt: skip
        return initialize(network, conv=truncated(0.01), linear=truncated(0.01))


def torchvision(spec: GoogLeNet) -> Rules:
    """Rules for torchvision.

    "inception4b.branch3.1.bn.weight" -> "stages.1.b.0.five.conv.norm.weight"
    "inception5a.branch4.1.conv.weight" -> "stages.2.a.0.pool.proj.conv.weight"
    """
    auxiliary: Rules = (
        (r"^aux(\d)\.fc1\.", "auxiliary.{1}.fc."),
        (r"^aux(\d)\.fc2\.", "auxiliary.{1}.out."),
        (r"^aux(\d)\.", "auxiliary.{1}."),
    )
    if not spec.auxiliary:
        auxiliary = ((r"^aux\d\..*", ""),)
    return (
        *auxiliary,
        (r"^conv", "stem.conv"), (r"^fc\.", "head.out."),
        (r"^inception(\d)([a-z])\.", "stages.{1-3}.{2}.0."),
        (r"\.branch1\.", ".one."),
        (r"\.branch2\.0\.", ".three.reduce."), (r"\.branch2\.1\.", ".three.conv."),
        (r"\.branch3\.0\.", ".five.reduce."), (r"\.branch3\.1\.", ".five.conv."),
        (r"\.branch4\.1\.", ".pool.proj."),
        (r"\.bn\.", ".norm."),
    )  # fmt: skip


@dataclass(frozen=True)
class BNInceptionRow(Row):
    """A row of figure 5: [1x1 | 1x1 -> 3x3 | 1x1 -> 3x3 -> 3x3 | pool -> 1x1].

    With stride 2 there is no 1x1 branch, the last 3x3 of each branch has the stride, and the pooled maps are not
    projected: [1x1 -> 3x3 /2 | 1x1 -> 3x3 -> 3x3 /2 | max pool /2].
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
                # as in Caffe, the last window may exceed the map; so odd maps have the size of the convolutions', too
                border = SamePad(3, stride, value=float("-inf"))
                branches["pool"] = Chain(border=border, pool=nn.MaxPool2d(3, stride))
            else:
                kind = nn.AvgPool2d if self.pool == "average" else nn.MaxPool2d
                branches["pool"] = Chain(pool=kind(3, 1, 1), proj=BiasedConv(inputs, self.proj or inputs, kernel=1))
            inputs = self.outputs(inputs)
            yield Concat(**branches)


@dataclass(frozen=True)
class BNInception(Spec):
    """Ioffe and Szegedy 2015, figure 5: two 3x3 for the 5x5, batch norm everywhere, strides inside the modules.

    stem: channels of the 7x7, the 1x1 and the 3x3 convolution.
    """

    stem: tuple[Width, Width, Width] = (64, 64, 192)
    stages: tuple[tuple[BNInceptionRow, ...], ...] = (
        (
            BNInceptionRow(64, 64, 64, 64, 96, 32),
            BNInceptionRow(64, 64, 96, 64, 96, 64),
            BNInceptionRow(None, 128, 160, 64, 96, None, "max", stride=2),
        ),
        (
            BNInceptionRow(224, 64, 96, 96, 128, 128),
            BNInceptionRow(192, 96, 128, 96, 128, 128),
            BNInceptionRow(160, 128, 160, 128, 160, 128),
            BNInceptionRow(96, 128, 192, 160, 192, 128),
            BNInceptionRow(None, 128, 192, 192, 256, None, "max", stride=2),
        ),
        (BNInceptionRow(352, 192, 320, 160, 224, 128), BNInceptionRow(352, 192, 320, 192, 224, 128, "max")),
    )
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
    ("spatial exploitation", "width"), "Kernels of several sizes in parallel, made cheap by 1x1 reductions.",
    ReportedMetrics(69.8, 89.9, source="torchvision IMAGENET1K_V1 (top-1), paper (top-5)"),
    "With batch norm, and 3x3 for the 5x5, as in torchvision's published weights.",
)  # fmt: skip
CARD_V2 = Card(
    "BN-Inception (Inception v2)", 2015, "Ioffe, Szegedy, Batch normalization, arXiv 1502.03167",
    ("width",), "With batch norm the network needs fourteen times fewer training steps.",
    ReportedMetrics(74.8, 92.2, source="Inception v3 paper"),
    "Widths of the authors' later Caffe model; the paper's figure prints 96 for two of the pool projections.",
)  # fmt: skip

FAMILY = Family(
    {
        "googlenet": imagenet(
            GoogLeNet(), CARD, upstream={"torchvision": "googlenet"}, scaling="-1 to 1", transforms_input=True
        ),
        "inception_v2": imagenet(BNInception(), CARD_V2),
    },
    {"torchvision": torchvision},
)
