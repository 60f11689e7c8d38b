"""Inception v3 and v4: large kernels factorized into pairs of thin ones, modules that come in three grids.

Every row is a module; its cells are the widths of its branches, from left to right in the figure it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from convatlas.core.compose import Chain, Concat
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Record, Resolution, Spec, Width
from convatlas.layers.conv import ConvNorm, Size, tower_of
from convatlas.layers.heads import AuxiliaryClassifier, pooled
from convatlas.layers.init import initialize, truncated
from convatlas.models.card import Card, Family, imagenet
from convatlas.models.keys import Rules

conv = partial(ConvNorm, norm=partial(nn.BatchNorm2d, eps=0.001))
narrow = partial(conv, padding=0)
tower = partial(tower_of, conv)

ROW, COLUMN = (1, 7), (7, 1)


def pool(inputs: int, width: int, *, border: bool) -> Chain:
    """3x3 means, projected; `border`: zeros outside the map count (v3), or not (v4)."""
    return Chain(pool=nn.AvgPool2d(3, 1, 1, count_include_pad=border), proj=conv(inputs, width, kernel=1))


class Fork(Chain):
    """Convolutions whose output feeds a 1x3 and a 3x1 convolution side by side (v3 figure 7, v4 figure 6)."""

    def __init__(self, inputs: int, before: Sequence[int], kernels: Sequence[Size], row: int, column: int) -> None:
        super().__init__(
            before=tower(inputs, before, kernels),
            fork=Concat(row=conv(before[-1], row, kernel=(1, 3)), column=conv(before[-1], column, kernel=(3, 1))),
        )


class Module(Record):
    """A row of modules alike: `grow` yields `depth` of them, `outputs` is the width behind one."""

    depth: int = 1

    def branches(self, inputs: int) -> dict[str, nn.Module]:
        raise NotImplementedError

    def outputs(self, inputs: int) -> int:
        raise NotImplementedError

    def build(self, inputs: int) -> Iterator[nn.Module]:
        for _ in range(self.depth):
            yield Concat(**self.branches(inputs))
            inputs = self.outputs(inputs)


Three = tuple[Width, Width, Width]


@dataclass(frozen=True)
class A3(Module):
    """v3, figure 5: 1x1, 5x5, two 3x3, pooling."""

    pool: Width
    one: Width = 64
    five: tuple[Width, Width] = (48, 64)
    double: Three = (64, 96, 96)
    depth: Depth = 1

    def branches(self, inputs: int) -> dict[str, nn.Module]:
        return {
            "one": conv(inputs, self.one, kernel=1),
            "five": tower(inputs, self.five, (1, 5)),
            "stack": tower(inputs, self.double, (1, 3, 3)),
            "pool": pool(inputs, self.pool, border=True),
        }

    def outputs(self, inputs: int) -> int:
        return self.one + self.five[-1] + self.double[-1] + self.pool


@dataclass(frozen=True)
class C3(Module):
    """v3, figure 6: 7x7 factorized into 1x7 and 7x1, once and twice."""

    seven: Width
    out: Width = 192
    depth: Depth = 1

    def branches(self, inputs: int) -> dict[str, nn.Module]:
        s, out = self.seven, self.out
        return {
            "one": conv(inputs, out, kernel=1),
            "seven": tower(inputs, (s, s, out), (1, ROW, COLUMN)),
            "stack": tower(inputs, (s, s, s, s, out), (1, COLUMN, ROW, COLUMN, ROW)),
            "pool": pool(inputs, out, border=True),
        }

    def outputs(self, inputs: int) -> int:
        return 4 * self.out


@dataclass(frozen=True)
class E3(Module):
    """v3, figure 7: wide modules for the coarsest grid."""

    one: Width = 320
    three: Width = 384
    double: tuple[Width, Width] = (448, 384)
    pool: Width = 192
    depth: Depth = 1

    def branches(self, inputs: int) -> dict[str, nn.Module]:
        out = self.double[-1]
        return {
            "one": conv(inputs, self.one, kernel=1),
            "three": Fork(inputs, (self.three,), (1,), self.three, self.three),
            "stack": Fork(inputs, self.double, (1, 3), out, out),
            "pool": pool(inputs, self.pool, border=True),
        }

    def outputs(self, inputs: int) -> int:
        return self.one + 2 * self.three + 2 * self.double[-1] + self.pool


@dataclass(frozen=True)
class Reduction(Module):
    """Towers whose last convolution has stride 2, beside max pooling (v3 figure 10, v4 figures 7 and 8).

    left, right: widths of the towers. seven: the inner convolutions of the right one are 1x7 and 7x1, and not 3x3.
    A scaled network reduces as often as the printed one, so this is one module.
    """

    left: tuple[Width, ...]
    right: tuple[Width, ...]
    seven: bool = False

    def branches(self, inputs: int) -> dict[str, nn.Module]:
        inner: tuple[Size, ...] = (ROW, COLUMN) if self.seven else (3,)
        left: tuple[Size, ...] = (3,) if len(self.left) == 1 else (1, 3)
        return {
            "left": tower(inputs, self.left, left, stride=2),
            "right": tower(inputs, self.right, (1, *inner, 3), stride=2),
            "pool": nn.MaxPool2d(3, 2),
        }

    def outputs(self, inputs: int) -> int:
        return inputs + self.left[-1] + self.right[-1]


@dataclass(frozen=True)
class A4(Module):
    """v4, figure 4."""

    one: Width = 96
    three: tuple[Width, Width] = (64, 96)
    double: Three = (64, 96, 96)
    pool: Width = 96
    depth: Depth = 1

    def branches(self, inputs: int) -> dict[str, nn.Module]:
        return {
            "one": conv(inputs, self.one, kernel=1),
            "three": tower(inputs, self.three, (1, 3)),
            "stack": tower(inputs, self.double, (1, 3, 3)),
            "pool": pool(inputs, self.pool, border=False),
        }

    def outputs(self, inputs: int) -> int:
        return self.one + self.three[-1] + self.double[-1] + self.pool


@dataclass(frozen=True)
class B4(Module):
    """v4, figure 5."""

    one: Width = 384
    seven: Three = (192, 224, 256)
    double: tuple[Width, Width, Width, Width, Width] = (192, 192, 224, 224, 256)
    pool: Width = 128
    depth: Depth = 1

    def branches(self, inputs: int) -> dict[str, nn.Module]:
        return {
            "one": conv(inputs, self.one, kernel=1),
            "seven": tower(inputs, self.seven, (1, ROW, COLUMN)),
            "stack": tower(inputs, self.double, (1, COLUMN, ROW, COLUMN, ROW)),
            "pool": pool(inputs, self.pool, border=False),
        }

    def outputs(self, inputs: int) -> int:
        return self.one + self.seven[-1] + self.double[-1] + self.pool


@dataclass(frozen=True)
class C4(Module):
    """v4, figure 6."""

    one: Width = 256
    three: Width = 384
    double: Three = (384, 448, 512)
    fork: Width = 256
    pool: Width = 256
    depth: Depth = 1

    def branches(self, inputs: int) -> dict[str, nn.Module]:
        return {
            "one": conv(inputs, self.one, kernel=1),
            "three": Fork(inputs, (self.three,), (1,), self.fork, self.fork),
            "stack": Fork(inputs, self.double, (1, (3, 1), (1, 3)), self.fork, self.fork),
            "pool": pool(inputs, self.pool, border=False),
        }

    def outputs(self, inputs: int) -> int:
        return self.one + 4 * self.fork + self.pool


def grow_stages(stages: Sequence[Sequence[Module]], inputs: int) -> tuple[Chain, int]:
    """Return the stages and the width behind them."""
    grown = []
    for rows in stages:
        modules: list[nn.Module] = []
        for row in rows:
            modules += row.build(inputs)
            for _ in range(row.depth):
                inputs = row.outputs(inputs)
        grown.append(Chain(*modules))
    return Chain(*grown), inputs


class Side(AuxiliaryClassifier):
    """5x5 means of stride 3, then two convolutions and a linear layer (v3, section 4)."""

    def __init__(self, at: str, inputs: int, classes: int, *, width: int = 128, hidden: int = 768) -> None:
        wide = narrow(width, hidden, kernel=5)
        super().__init__(
            at, pool=nn.AvgPool2d(5, 3), conv0=conv(inputs, width, kernel=1), conv1=wide,
            mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), out=nn.Linear(hidden, classes),
        )  # fmt: skip
        initialize(self, conv=truncated(0.1), linear=truncated(0.001))
        initialize(wide, conv=truncated(0.01))


@dataclass(frozen=True)
class InceptionV3(Spec):
    """Szegedy et al. 2015, table 1. auxiliary: one more classifier on the 17x17 grid learns along."""

    stem: tuple[Width, Width, Width, Width, Width] = (32, 32, 64, 80, 192)
    stages: tuple[tuple[A3 | Reduction | C3 | E3, ...], ...] = (
        (A3(32), A3(64), A3(64)),
        (Reduction((384,), (64, 96, 96)), C3(128), C3(160), C3(160), C3(192)),
        (Reduction((192, 320), (192, 192, 192, 192), seven=True), E3(), E3()),
    )
    auxiliary: bool = False
    resolution: Resolution = 299

    @property
    def minimum(self) -> int:
        return 75

    def build(self, *, classes: int, channels: int) -> Network:
        a, b, c, d, inputs = self.stem
        stem = Chain(
            conv1=narrow(channels, a, stride=2), conv2=narrow(a, b), conv3=conv(b, c), pool1=nn.MaxPool2d(3, 2),
            conv4=narrow(c, d, kernel=1), conv5=narrow(d, inputs), pool2=nn.MaxPool2d(3, 2),
        )  # fmt: skip
        stages, width = grow_stages(self.stages, inputs)
        head = pooled(width, classes, dropout=0.5)
        network = Network(stem=stem, stages=stages, head=head, input_shape=self.input_shape(channels))
        initialize(network, conv=truncated(0.1), linear=truncated(0.1))
        if self.auxiliary:
            inner = grow_width(self.stages[:2], inputs)
            network.auxiliary["1"] = Side("stages.1", inner, classes)
        return network


def grow_width(stages: Sequence[Sequence[Module]], inputs: int) -> int:
    """Return the width behind these stages."""
    for rows in stages:
        for row in rows:
            for _ in range(1 if isinstance(row, Reduction) else row.depth):
                inputs = row.outputs(inputs)
    return inputs


class Mixed3a(Concat):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(pool=nn.MaxPool2d(3, 2), conv=narrow(inputs, width, stride=2))


class Mixed4a(Concat):
    def __init__(self, inputs: int, middle: int, width: int) -> None:
        super().__init__(
            left=Chain(conv1=conv(inputs, middle, kernel=1), conv2=narrow(middle, width)),
            right=Chain(
                conv1=conv(inputs, middle, kernel=1), conv2=conv(middle, middle, kernel=ROW),
                conv3=conv(middle, middle, kernel=COLUMN), conv4=narrow(middle, width),
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class InceptionV4(Spec):
    """Szegedy et al. 2016, figure 9; the stem is figure 3, its cells are in the order of the flow."""

    stem: tuple[Width, Width, Width, Width, Width, Width] = (32, 32, 64, 96, 64, 96)
    stages: tuple[tuple[A4 | Reduction | B4 | C4, ...], ...] = (
        (A4(depth=4),),
        (Reduction((384,), (192, 224, 256)), B4(depth=7)),
        (Reduction((192, 192), (256, 256, 320, 320), seven=True), C4(depth=3)),
    )
    resolution: Resolution = 299

    @property
    def minimum(self) -> int:
        return 75

    def build(self, *, classes: int, channels: int) -> Network:
        a, b, c, d, middle, e = self.stem
        stem = Chain(
            conv1=narrow(channels, a, stride=2), conv2=narrow(a, b), conv3=conv(b, c),
            mixed3a=Mixed3a(c, d), mixed4a=Mixed4a(c + d, middle, e),
            mixed5a=Concat(conv=narrow(2 * e, 2 * e, stride=2), pool=nn.MaxPool2d(3, 2)),
        )  # fmt: skip
        stages, width = grow_stages(self.stages, 4 * e)
        head = pooled(width, classes, dropout=0.2)
        return Network(stem=stem, stages=stages, head=head, input_shape=self.input_shape(channels))


def numbered(stages: Sequence[Sequence[Module]]) -> Iterator[tuple[int, str]]:
    """Yield (place in a flat list, "stage.module") of every module."""
    place = 0
    for i, rows in enumerate(stages):
        for j in range(sum(1 if isinstance(row, Reduction) else row.depth for row in rows)):
            yield place, f"{i}.{j}"
            place += 1


def peers_v3(spec: InceptionV3) -> Rules:
    stem = {"1a_3x3": 1, "2a_3x3": 2, "2b_3x3": 3, "3b_1x1": 4, "4a_3x3": 5}
    sides = (
        (r"^AuxLogits\.fc\.", "auxiliary.1.out."), (r"^AuxLogits\.", "auxiliary.1."),
    ) if spec.auxiliary else ((r"^AuxLogits\..*", ""),)  # fmt: skip
    names = [f"{grid}{letter}" for grid, letters in ((5, "bcd"), (6, "abcde"), (7, "abc")) for letter in letters]
    paths = [path for _, path in numbered(spec.stages)]
    first, second = r"^(stages\.1\.0)\.branch", r"^(stages\.2\.0)\.branch"
    fork = r"^(stages\.2\.[12])\.branch"
    return (
        *sides,
        *((rf"^Conv2d_{name}\.", f"stem.conv{i}.") for name, i in stem.items()),
        *((rf"^Mixed_{name}\.", f"stages.{path}.") for name, path in zip(names, paths, strict=False)),
        (r"^fc\.", "head.out."),
        (first + r"3x3\.", "{1}.left.conv1."), (first + r"3x3dbl_(\d)\.", "{1}.right.conv{2}."),
        (second + r"3x3_(\d)\.", "{1}.left.conv{2}."), (second + r"7x7x3_(\d)\.", "{1}.right.conv{2}."),
        (fork + r"3x3_1\.", "{1}.three.before.conv1."),
        (fork + r"3x3_2a\.", "{1}.three.fork.row."), (fork + r"3x3_2b\.", "{1}.three.fork.column."),
        (fork + r"3x3dbl_3a\.", "{1}.stack.fork.row."), (fork + r"3x3dbl_3b\.", "{1}.stack.fork.column."),
        (fork + r"3x3dbl_(\d)\.", "{1}.stack.before.conv{2}."),
        (r"\.branch1x1\.", ".one."), (r"\.branch_pool\.", ".pool.proj."),
        (r"\.branch5x5_(\d)\.", ".five.conv{1}."), (r"\.branch7x7_(\d)\.", ".seven.conv{1}."),
        (r"\.branch7x7dbl_(\d)\.", ".stack.conv{1}."),
        (r"\.branch3x3dbl_(\d)\.", ".stack.conv{1}."),
        (r"\.bn\.", ".norm."),
    )  # fmt: skip


def timm_v4(spec: InceptionV4) -> Rules:
    fork = r"^(stages\.2\.[1-9]\d*)"
    return (
        *((rf"^features\.{i}\.conv\.", f"stem.conv{i + 1}.conv.") for i in range(3)),
        *((rf"^features\.{i}\.bn\.", f"stem.conv{i + 1}.norm.") for i in range(3)),
        (r"^features\.3\.", "stem.mixed3a."), (r"^features\.5\.", "stem.mixed5a."),
        (r"^features\.4\.branch0\.(\d)\.", "stem.mixed4a.left.conv{1+1}."),
        (r"^features\.4\.branch1\.(\d)\.", "stem.mixed4a.right.conv{1+1}."),
        *((rf"^features\.{6 + place}\.", f"stages.{path}.") for place, path in numbered(spec.stages)),
        (r"^last_linear\.", "head.out."),
        (fork + r"\.branch1_0\.", "{1}.three.before.conv1."),
        (fork + r"\.branch1_1a\.", "{1}.three.fork.row."), (fork + r"\.branch1_1b\.", "{1}.three.fork.column."),
        (fork + r"\.branch2_3a\.", "{1}.stack.fork.row."), (fork + r"\.branch2_3b\.", "{1}.stack.fork.column."),
        (fork + r"\.branch2_(\d)\.", "{1}.stack.before.conv{2+1}."),
        (r"^(stages\.[12]\.0)\.branch0\.(conv|bn)\.", "{1}.left.conv1.{2}."),
        (r"^(stages\.[12]\.0)\.branch0\.(\d)\.", "{1}.left.conv{2+1}."),
        (r"^(stages\.[12]\.0)\.branch1\.(\d)\.", "{1}.right.conv{2+1}."),
        (r"\.branch0\.", ".one."), (r"\.branch3\.1\.", ".pool.proj."),
        (r"^(stages\.0\.\d+)\.branch1\.(\d)\.", "{1}.three.conv{2+1}."),
        (r"\.branch1\.(\d)\.", ".seven.conv{1+1}."), (r"\.branch2\.(\d)\.", ".stack.conv{1+1}."),
        (r"\.bn\.", ".norm."),
    )  # fmt: skip


def torchvision(spec: InceptionV3) -> Rules:
    return peers_v3(spec)


def timm(spec: InceptionV3 | InceptionV4) -> Rules:
    return peers_v3(spec) if isinstance(spec, InceptionV3) else timm_v4(spec)


CARD = Card(
    "Inception v3", 2015, "Szegedy et al., Rethinking the Inception architecture for computer vision, arXiv 1512.00567",
    ("width",), "Large kernels factorized into pairs of thin ones; label smoothing.",
    "78.8 / 94.4 % top-1 / top-5, one crop",
)  # fmt: skip
CARD_V4 = Card(
    "Inception v4", 2016,
    "Szegedy et al., Inception-v4, Inception-ResNet and the impact of residual connections, arXiv 1602.07261",
    ("width",), "Uniform modules for each grid, and reductions of their own between the grids.",
    "80.0 / 95.0 % top-1 / top-5, one crop",
)  # fmt: skip

FAMILY = Family(
    {
        "inception_v3": imagenet(InceptionV3(), CARD, "torchvision", "timm", half=True),
        "inception_v4": imagenet(InceptionV4(), CARD_V4, "timm", half=True),
    },
    {"torchvision": torchvision, "timm": timm},
)
