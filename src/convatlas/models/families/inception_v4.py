"""Inception v4: uniform modules for each of three grids, and reduction modules between the grids."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from convatlas.core.compose import Chain, Concat
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.heads import pooled
from convatlas.layers.inception import (
    COLUMN_KERNEL,
    ROW_KERNEL,
    Fork,
    ModuleRow,
    ReductionRow,
    build_stages,
    conv,
    conv_valid,
    module_paths,
    pool_branch,
    tower,
    widths_after,
)
from convatlas.models.card import Card, Family, ReportedMetrics, imagenet
from convatlas.models.keys import Rules


class StemMixed3a(Concat):
    """[3x3 max pooling /2 | 3x3 /2] (figure 3)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(pool=nn.MaxPool2d(3, 2), conv=conv_valid(inputs, width, stride=2))


class StemMixed4a(Concat):
    """[1x1 -> 3x3 | 1x1 -> 1x7 -> 7x1 -> 3x3], both without padding in the last convolution (figure 3)."""

    def __init__(self, inputs: int, middle: int, width: int) -> None:
        super().__init__(
            left=Chain(conv1=conv(inputs, middle, kernel=1), conv2=conv_valid(middle, width)),
            right=Chain(
                conv1=conv(inputs, middle, kernel=1),
                conv2=conv(middle, middle, kernel=ROW_KERNEL),
                conv3=conv(middle, middle, kernel=COLUMN_KERNEL),
                conv4=conv_valid(middle, width),
            ),
        )


class InceptionV4A(Concat):
    """[1x1 | 1x1 -> 3x3 | 1x1 -> 3x3 -> 3x3 | avg pool -> 1x1], on the 35x35 grid (figure 4)."""

    def __init__(self, inputs: int, row: InceptionV4ARow) -> None:
        super().__init__(
            one=conv(inputs, row.one, kernel=1),
            three=tower(inputs, row.three, (1, 3)),
            stack=tower(inputs, row.double, (1, 3, 3)),
            pool=pool_branch(inputs, row.pool, count_include_pad=False),
        )


class InceptionV4B(Concat):
    """[1x1 | 1x1 -> 1x7 -> 7x1 | 1x1 -> 7x1 -> 1x7 -> 7x1 -> 1x7 | avg pool -> 1x1], on the 17x17 grid (figure 5)."""

    def __init__(self, inputs: int, row: InceptionV4BRow) -> None:
        super().__init__(
            one=conv(inputs, row.one, kernel=1),
            seven=tower(inputs, row.seven, (1, ROW_KERNEL, COLUMN_KERNEL)),
            stack=tower(inputs, row.double, (1, COLUMN_KERNEL, ROW_KERNEL, COLUMN_KERNEL, ROW_KERNEL)),
            pool=pool_branch(inputs, row.pool, count_include_pad=False),
        )


class InceptionV4C(Concat):
    """[1x1 | 1x1 -> [1x3 | 3x1] | 1x1 -> 3x1 -> 1x3 -> [1x3 | 3x1] | avg pool -> 1x1], on the 8x8 grid (figure 6)."""

    def __init__(self, inputs: int, row: InceptionV4CRow) -> None:
        super().__init__(
            one=conv(inputs, row.one, kernel=1),
            three=Fork(inputs, (row.three,), (1,), row.fork, row.fork),
            stack=Fork(inputs, row.double, (1, (3, 1), (1, 3)), row.fork, row.fork),
            pool=pool_branch(inputs, row.pool, count_include_pad=False),
        )


@dataclass(frozen=True)
class InceptionV4ARow(ModuleRow):
    """Widths of the branches of `InceptionV4A`."""

    block = InceptionV4A

    one: Width = 96
    three: tuple[Width, Width] = (64, 96)
    double: tuple[Width, Width, Width] = (64, 96, 96)
    pool: Width = 96
    depth: Depth = 1

    def outputs(self, inputs: int) -> int:
        return self.one + self.three[-1] + self.double[-1] + self.pool


@dataclass(frozen=True)
class InceptionV4BRow(ModuleRow):
    """Widths of the branches of `InceptionV4B`."""

    block = InceptionV4B

    one: Width = 384
    seven: tuple[Width, Width, Width] = (192, 224, 256)
    double: tuple[Width, Width, Width, Width, Width] = (192, 192, 224, 224, 256)
    pool: Width = 128
    depth: Depth = 1

    def outputs(self, inputs: int) -> int:
        return self.one + self.seven[-1] + self.double[-1] + self.pool


@dataclass(frozen=True)
class InceptionV4CRow(ModuleRow):
    """Widths of the branches of `InceptionV4C`; `fork` is the width of each of its four 1x3 and 3x1 convolutions."""

    block = InceptionV4C

    one: Width = 256
    three: Width = 384
    double: tuple[Width, Width, Width] = (384, 448, 512)
    fork: Width = 256
    pool: Width = 256
    depth: Depth = 1

    def outputs(self, inputs: int) -> int:
        return self.one + 4 * self.fork + self.pool


@dataclass(frozen=True)
class InceptionV4(Spec):
    """Szegedy et al. 2016, figure 9. The stem is that of figure 3; its cells are in the order of the layers."""

    stem: tuple[Width, Width, Width, Width, Width, Width] = (32, 32, 64, 96, 64, 96)
    stages: tuple[tuple[InceptionV4ARow | ReductionRow | InceptionV4BRow | InceptionV4CRow, ...], ...] = (
        (InceptionV4ARow(depth=4),),
        (ReductionRow((384,), (192, 224, 256)), InceptionV4BRow(depth=7)),
        (ReductionRow((192, 192), (256, 256, 320, 320), seven=True), InceptionV4CRow(depth=3)),
    )
    resolution: Resolution = 299

    @property
    def minimum(self) -> int:
        return 75

    def build(self, *, classes: int, channels: int) -> Network:
        a, b, c, d, middle, e = self.stem
        stem = Chain(
            conv1=conv_valid(channels, a, stride=2),
            conv2=conv_valid(a, b),
            conv3=conv(b, c),
            mixed3a=StemMixed3a(c, d),
            mixed4a=StemMixed4a(c + d, middle, e),
            mixed5a=Concat(conv=conv_valid(2 * e, 2 * e, stride=2), pool=nn.MaxPool2d(3, 2)),
        )
        inputs = 4 * e
        stages = build_stages(self.stages, inputs)
        head = pooled(widths_after(self.stages, inputs)[-1], classes, dropout=0.2)
        return Network(stem=stem, stages=stages, head=head, input_shape=self.input_shape(channels))


def timm(spec: InceptionV4) -> Rules:
    """Rules for timm, whose `features` is one list of the stem's layers and all modules.

    "features.4.branch1.3.bn.weight" -> "stem.mixed4a.right.conv4.norm.weight"
    "features.11.branch1.1.conv.weight" -> "stages.1.1.seven.conv2.conv.weight"
    "features.19.branch2_3b.bn.bias" -> "stages.2.1.stack.fork.column.norm.bias"
    """
    modules = list(enumerate(module_paths(spec.stages), 6))  # behind the six layers of the stem
    fork = r"^(stages\.2\.[1-9]\d*)"
    return (
        *((rf"^features\.{i}\.conv\.", f"stem.conv{i + 1}.conv.") for i in range(3)),
        *((rf"^features\.{i}\.bn\.", f"stem.conv{i + 1}.norm.") for i in range(3)),
        (r"^features\.3\.", "stem.mixed3a."), (r"^features\.5\.", "stem.mixed5a."),
        (r"^features\.4\.branch0\.(\d)\.", "stem.mixed4a.left.conv{1+1}."),
        (r"^features\.4\.branch1\.(\d)\.", "stem.mixed4a.right.conv{1+1}."),
        *((rf"^features\.{i}\.", f"stages.{path}.") for i, path in modules),
        (r"^last_linear\.", "head.out."),
        # InceptionV4C
        (fork + r"\.branch1_0\.", "{1}.three.before.conv1."),
        (fork + r"\.branch1_1a\.", "{1}.three.fork.row."), (fork + r"\.branch1_1b\.", "{1}.three.fork.column."),
        (fork + r"\.branch2_3a\.", "{1}.stack.fork.row."), (fork + r"\.branch2_3b\.", "{1}.stack.fork.column."),
        (fork + r"\.branch2_(\d)\.", "{1}.stack.before.conv{2+1}."),
        # the reductions
        (r"^(stages\.[12]\.0)\.branch0\.(conv|bn)\.", "{1}.left.conv1.{2}."),
        (r"^(stages\.[12]\.0)\.branch0\.(\d)\.", "{1}.left.conv{2+1}."),
        (r"^(stages\.[12]\.0)\.branch1\.(\d)\.", "{1}.right.conv{2+1}."),
        # InceptionV4A and InceptionV4B
        (r"\.branch0\.", ".one."), (r"\.branch3\.1\.", ".pool.proj."),
        (r"^(stages\.0\.\d+)\.branch1\.(\d)\.", "{1}.three.conv{2+1}."),
        (r"\.branch1\.(\d)\.", ".seven.conv{1+1}."), (r"\.branch2\.(\d)\.", ".stack.conv{1+1}."),
        (r"\.bn\.", ".norm."),
    )  # fmt: skip


CARD = Card(
    "Inception v4", 2016,
    "Szegedy et al., Inception-v4, Inception-ResNet and the impact of residual connections, arXiv 1602.07261",
    ("width",), "Uniform modules for each grid, and reduction modules between the grids.",
    ReportedMetrics(80.0, 95.0),
)  # fmt: skip

FAMILY = Family(
    {"inception_v4": imagenet(InceptionV4(), CARD, upstream={"timm": "inception_v4"}, scaling="-1 to 1")},
    {"timm": timm},
)
