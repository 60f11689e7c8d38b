"""Inception v3: large kernels factorized into pairs of thin ones, one kind of module for each of three grids."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from convatlas.core.compose import Chain, Concat
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.heads import AuxiliaryClassifier, pooled
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
from convatlas.layers.init import initialize, truncated
from convatlas.models.card import Card, Family, ReportedMetrics, imagenet, torchvision_and_timm
from convatlas.models.keys import Rules


class InceptionA(Concat):
    """[1x1 | 1x1 -> 5x5 | 1x1 -> 3x3 -> 3x3 | avg pool -> 1x1], on the 35x35 grid (figure 5)."""

    def __init__(self, inputs: int, row: InceptionARow) -> None:
        super().__init__(
            one=conv(inputs, row.one, kernel=1),
            five=tower(inputs, row.five, (1, 5)),
            stack=tower(inputs, row.double, (1, 3, 3)),
            pool=pool_branch(inputs, row.pool, count_include_pad=True),
        )


class InceptionC(Concat):
    """[1x1 | 1x1 -> 1x7 -> 7x1 | 1x1 -> 7x1 -> 1x7 -> 7x1 -> 1x7 | avg pool -> 1x1], on the 17x17 grid (figure 6)."""

    def __init__(self, inputs: int, row: InceptionCRow) -> None:
        inner, out = row.seven, row.out
        double = (1, COLUMN_KERNEL, ROW_KERNEL, COLUMN_KERNEL, ROW_KERNEL)
        super().__init__(
            one=conv(inputs, out, kernel=1),
            seven=tower(inputs, (inner, inner, out), (1, ROW_KERNEL, COLUMN_KERNEL)),
            stack=tower(inputs, (inner, inner, inner, inner, out), double),
            pool=pool_branch(inputs, out, count_include_pad=True),
        )


class InceptionE(Concat):
    """[1x1 | 1x1 -> [1x3 | 3x1] | 1x1 -> 3x3 -> [1x3 | 3x1] | avg pool -> 1x1], on the 8x8 grid (figure 7)."""

    def __init__(self, inputs: int, row: InceptionERow) -> None:
        out = row.double[-1]
        super().__init__(
            one=conv(inputs, row.one, kernel=1),
            three=Fork(inputs, (row.three,), (1,), row.three, row.three),
            stack=Fork(inputs, row.double, (1, 3), out, out),
            pool=pool_branch(inputs, row.pool, count_include_pad=True),
        )


@dataclass(frozen=True)
class InceptionARow(ModuleRow):
    """Widths of the branches of `InceptionA`; the pooling branch differs between the modules."""

    block = InceptionA

    pool: Width
    one: Width = 64
    five: tuple[Width, Width] = (48, 64)
    double: tuple[Width, Width, Width] = (64, 96, 96)
    depth: Depth = 1

    def outputs(self, inputs: int) -> int:
        return self.one + self.five[-1] + self.double[-1] + self.pool


@dataclass(frozen=True)
class InceptionCRow(ModuleRow):
    """Widths of `InceptionC`: inside the 7x7 branches, and of each branch's output."""

    block = InceptionC

    seven: Width
    out: Width = 192
    depth: Depth = 1

    def outputs(self, inputs: int) -> int:
        return 4 * self.out


@dataclass(frozen=True)
class InceptionERow(ModuleRow):
    """Widths of the branches of `InceptionE`."""

    block = InceptionE

    one: Width = 320
    three: Width = 384
    double: tuple[Width, Width] = (448, 384)
    pool: Width = 192
    depth: Depth = 1

    def outputs(self, inputs: int) -> int:
        return self.one + 2 * self.three + 2 * self.double[-1] + self.pool


class AuxHead(AuxiliaryClassifier):
    """5x5 avg pool /3 -> 1x1 -> 5x5 -> global avg pool -> linear (section 4)."""

    def __init__(self, at: str, inputs: int, classes: int, *, width: int = 128, hidden: int = 768) -> None:
        last_conv = conv_valid(width, hidden, kernel=5)
        super().__init__(
            at,
            pool=nn.AvgPool2d(5, 3),
            conv0=conv(inputs, width, kernel=1),
            conv1=last_conv,
            mean=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            out=nn.Linear(hidden, classes),
        )
        initialize(self, conv=truncated(0.1), linear=truncated(0.001))
        initialize(last_conv, conv=truncated(0.01))


@dataclass(frozen=True)
class InceptionV3(Spec):
    """Szegedy et al. 2015, table 1: a stem of five convolutions, then the modules of three grids.

    stem: widths of the convolutions. auxiliary: train a second classifier behind the 17x17 grid.
    """

    stem: tuple[Width, Width, Width, Width, Width] = (32, 32, 64, 80, 192)
    stages: tuple[tuple[InceptionARow | ReductionRow | InceptionCRow | InceptionERow, ...], ...] = (
        (InceptionARow(32), InceptionARow(64), InceptionARow(64)),
        (
            ReductionRow((384,), (64, 96, 96)),
            InceptionCRow(128), InceptionCRow(160), InceptionCRow(160), InceptionCRow(192),
        ),
        (ReductionRow((192, 320), (192, 192, 192, 192), seven=True), InceptionERow(), InceptionERow()),
    )  # fmt: skip
    auxiliary: bool = False
    resolution: Resolution = 299

    @property
    def minimum(self) -> int:
        return 75

    def build(self, *, classes: int, channels: int) -> Network:
        a, b, c, d, e = self.stem
        stem = Chain(
            conv1=conv_valid(channels, a, stride=2),
            conv2=conv_valid(a, b),
            conv3=conv(b, c),
            pool1=nn.MaxPool2d(3, 2),
            conv4=conv_valid(c, d, kernel=1),
            conv5=conv_valid(d, e),
            pool2=nn.MaxPool2d(3, 2),
        )
        widths = widths_after(self.stages, e)
        head = pooled(widths[-1], classes, dropout=0.5)
        stages = build_stages(self.stages, e)
        network = Network(stem=stem, stages=stages, head=head, input_shape=self.input_shape(channels))
        initialize(network, conv=truncated(0.1), linear=truncated(0.1))
        if self.auxiliary:
            network.auxiliary["1"] = AuxHead("stages.1", widths[1], classes)
        return network


_MODULE_NAMES = [f"{grid}{letter}" for grid, letters in ((5, "bcd"), (6, "abcde"), (7, "abc")) for letter in letters]
"""Upstream names of the modules, in order: Mixed_5b ... Mixed_7c."""


def torchvision(spec: InceptionV3) -> Rules:
    """Rules for torchvision and timm.

    "Conv2d_2b_3x3.bn.weight" -> "stem.conv3.norm.weight"
    "Mixed_5b.branch3x3dbl_2.conv.weight" -> "stages.0.0.stack.conv2.conv.weight"
    "Mixed_7b.branch3x3_2a.bn.bias" -> "stages.2.1.three.fork.row.norm.bias"
    """
    stem = {"1a_3x3": 1, "2a_3x3": 2, "2b_3x3": 3, "3b_1x1": 4, "4a_3x3": 5}
    auxiliary: Rules = ((r"^AuxLogits\.fc\.", "auxiliary.1.out."), (r"^AuxLogits\.", "auxiliary.1."))
    if not spec.auxiliary:
        auxiliary = ((r"^AuxLogits\..*", ""),)
    first, second, fork = r"^(stages\.1\.0)\.branch", r"^(stages\.2\.0)\.branch", r"^(stages\.2\.[12])\.branch"
    return (
        *auxiliary,
        *((rf"^Conv2d_{name}\.", f"stem.conv{i}.") for name, i in stem.items()),
        *(
            (rf"^Mixed_{name}\.", f"stages.{path}.")
            for name, path in zip(_MODULE_NAMES, module_paths(spec.stages), strict=False)
        ),
        (r"^fc\.", "head.out."),
        # the reductions
        (first + r"3x3\.", "{1}.left.conv1."), (first + r"3x3dbl_(\d)\.", "{1}.right.conv{2}."),
        (second + r"3x3_(\d)\.", "{1}.left.conv{2}."), (second + r"7x7x3_(\d)\.", "{1}.right.conv{2}."),
        # InceptionE
        (fork + r"3x3_1\.", "{1}.three.before.conv1."),
        (fork + r"3x3_2a\.", "{1}.three.fork.row."), (fork + r"3x3_2b\.", "{1}.three.fork.column."),
        (fork + r"3x3dbl_3a\.", "{1}.stack.fork.row."), (fork + r"3x3dbl_3b\.", "{1}.stack.fork.column."),
        (fork + r"3x3dbl_(\d)\.", "{1}.stack.before.conv{2}."),
        # InceptionA and InceptionC
        (r"\.branch1x1\.", ".one."), (r"\.branch_pool\.", ".pool.proj."),
        (r"\.branch5x5_(\d)\.", ".five.conv{1}."), (r"\.branch7x7_(\d)\.", ".seven.conv{1}."),
        (r"\.branch7x7dbl_(\d)\.", ".stack.conv{1}."), (r"\.branch3x3dbl_(\d)\.", ".stack.conv{1}."),
        (r"\.bn\.", ".norm."),
    )  # fmt: skip


CARD = Card(
    "Inception v3", 2015, "Szegedy et al., Rethinking the Inception architecture for computer vision, arXiv 1512.00567",
    ("width",), "Large kernels are factorized into pairs of thin ones; label smoothing.",
    ReportedMetrics(78.8, 94.4),
)  # fmt: skip

FAMILY = Family(
    {
        "inception_v3": imagenet(
            InceptionV3(),
            CARD,
            upstream=torchvision_and_timm("inception_v3"),
            scaling="-1 to 1",
            transforms_input=True,
        ),
    },
    {"torchvision": torchvision, "timm": torchvision},
)
