"""NASNet-A: two cells found by search, stacked; each cell reads the outputs of the two before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from convatlas.core.compose import Chain, Concat, Pair
from convatlas.core.cost import PairSignal, Signal, Tally, rule, walk
from convatlas.core.network import Network
from convatlas.core.outline import Box, Kind, Outline, Parallel, Series, always, outline
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.errors import SpecError
from convatlas.layers.channels import SamePad, TakeCurrent
from convatlas.layers.heads import pooled
from convatlas.models.card import Card, Family, imagenet
from convatlas.models.keys import Rules

norm = partial(nn.BatchNorm2d, eps=0.001)

BEFORE, NOW = 0, 1
"""What an operation reads: the output before the last, or the last; numbers from 2 on are nodes of the cell."""

Node = tuple[tuple[str, int], tuple[str, int]]
"""Two operations, each with what it reads; their outputs are added."""

# Zoph et al. 2017, figure 4
NORMAL: tuple[Node, ...] = (
    (("sep 5x5", NOW), ("sep 3x3", BEFORE)),
    (("sep 5x5", BEFORE), ("sep 3x3", BEFORE)),
    (("avg 3x3", NOW), ("same", BEFORE)),
    (("avg 3x3", BEFORE), ("avg 3x3", BEFORE)),
    (("sep 3x3", NOW), ("same", NOW)),
)
NORMAL_OUT = (BEFORE, 2, 3, 4, 5, 6)
REDUCTION: tuple[Node, ...] = (
    (("sep 5x5 /2", NOW), ("sep 7x7 /2", BEFORE)),
    (("max 3x3 /2", NOW), ("sep 7x7 /2", BEFORE)),
    (("avg 3x3 /2", NOW), ("sep 5x5 /2", BEFORE)),
    (("avg 3x3", 2), ("same", 3)),
    (("sep 3x3", 2), ("max 3x3 /2", NOW)),
)
REDUCTION_OUT = (3, 4, 5, 6)


class Separable(Chain):
    """ReLU, depthwise kxk, 1x1, norm; twice, the second time without a stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        layers: dict[str, nn.Module] = {}
        for i in (1, 2):
            layers[f"act{i}"] = nn.ReLU(inplace=i == 2)
            if stride == 2:
                layers[f"pad{i}"] = SamePad(kernel, stride)
            pad = kernel // 2 if stride == 1 else 0
            width = outputs if i == 2 else inputs
            layers[f"depthwise{i}"] = nn.Conv2d(width, width, kernel, stride, pad, groups=width, bias=False)
            layers[f"pointwise{i}"] = nn.Conv2d(width, outputs, 1, bias=False)
            layers[f"norm{i}"] = norm(outputs)
            stride = 1
        super().__init__(**layers)


class Halve(Chain):
    """Half of the map's size: every second pixel, beside the same one pixel further, each through a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        even, odd = (nn.Conv2d(inputs, outputs // 2, 1, bias=False) for _ in range(2))
        super().__init__(
            act=nn.ReLU(),
            paths=Concat(
                even=Chain(pick=nn.AvgPool2d(1, 2), conv=even),
                odd=Chain(shift=nn.ZeroPad2d((-1, 1, -1, 1)), pick=nn.AvgPool2d(1, 2), conv=odd),
            ),
            norm=norm(outputs),
        )


class Fit(Chain):
    """ReLU, 1x1 convolution, norm: an input at the width of the cell."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(act=nn.ReLU(), conv=nn.Conv2d(inputs, outputs, 1, bias=False), norm=norm(outputs))


def operation(name: str, inputs: int, width: int) -> nn.Module:
    """Return the operation that a table calls so, such as "sep 5x5 /2"."""
    kind, *rest = name.split()
    if kind == "same":
        return nn.Identity()
    kernel, stride = int(rest[0][0]), 2 if rest[1:] else 1
    if kind == "sep":
        return Separable(inputs, width, kernel, stride)
    if stride == 1:
        return nn.AvgPool2d(kernel, 1, kernel // 2, count_include_pad=False)
    if kind == "max":
        return Chain(pad=SamePad(kernel, stride, value=float("-inf")), pool=nn.MaxPool2d(kernel, stride, 0))
    return Chain(pad=SamePad(kernel, stride), pool=nn.AvgPool2d(kernel, stride, 0))


class Cell(nn.Module):
    """A table of nodes over the last two outputs; what `out` names is stacked.

    now, before: bring the inputs to the width of the cell. skipped: the next cell reads as the one before what this one
    read so, and not the input of this one: it skips a reduction.
    """

    def __init__(
        self, now: nn.Module, before: nn.Module, nodes: nn.ModuleList, table: tuple[Node, ...], out: tuple[int, ...],
        *, skipped: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.now, self.before, self.nodes = now, before, nodes
        self.table, self.out, self.skipped = table, out, skipped

    def forward(self, x: Pair) -> Pair:
        states = [self.before(x.before), self.now(x.now)]
        for node, ((_, a), (_, b)) in zip(self.nodes, self.table, strict=True):
            left, right = cast(nn.ModuleList, node)
            states.append(left(states[a]) + right(states[b]))
        return Pair(torch.cat([states[i] for i in self.out], 1), x.before if self.skipped else x.now)

    def extra_repr(self) -> str:
        return "; ".join(f"{a} {i} + {b} {j}" for (a, i), (b, j) in self.table)


@rule.register
def _(cell: Cell, x: PairSignal, tally: Tally) -> PairSignal:
    with tally.inside("before"):
        before = walk(cell.before, x.before, tally)
    with tally.inside("now"):
        now = walk(cell.now, x.now, tally)
    states = [before, now]
    for i, (node, row) in enumerate(zip(cell.nodes, cell.table, strict=True)):
        sides = []
        for name, layer, (_, source) in zip(("0", "1"), cast(nn.ModuleList, node), row, strict=True):
            with tally.inside("nodes"), tally.inside(str(i)), tally.inside(name):
                sides.append(walk(layer, states[source], tally))
        if sides[0].shape != sides[1].shape:
            raise tally.refuse(cell, f"node {i} adds {sides[0].shape} and {sides[1].shape}")
        seen = tuple(max(axis) for axis in zip(sides[0].field, sides[1].field, strict=True))
        states.append(Signal(sides[0].shape, seen, sides[0].stride, depth=max(side.depth for side in sides)))
    chosen = [states[i] for i in cell.out]
    seen = tuple(max(axis) for axis in zip(*(signal.field for signal in chosen), strict=True))
    shape = (sum(signal.channels for signal in chosen), *chosen[0].space)
    depth = max(signal.depth for signal in chosen)
    return PairSignal(Signal(shape, seen, chosen[0].stride, depth=depth), x.before if cell.skipped else x.now)


@outline.register
def _(cell: Cell) -> Outline:
    def told(layer: nn.Module, name: str, source: int) -> Outline:
        reads = {BEFORE: "h before", NOW: "h"}.get(source, f"node {source - 1}")
        kind: Kind = "depthwise" if name.startswith("sep") else "trim" if name == "same" else "pool"
        return Box((f"from {reads}", name), kind)

    nodes = [
        Parallel(tuple(told(layer, *what) for layer, what in zip(cast(nn.ModuleList, node), row, strict=True)), "+")
        for node, row in zip(cell.nodes, cell.table, strict=True)
    ]
    name = "normal cell" if cell.table == NORMAL else "reduction cell"
    stacked: list[Outline] = [nodes[i - 2] if i >= 2 else Box(("h before",), "trim") for i in cell.out]
    inner = [node for i, node in enumerate(nodes, 2) if i not in cell.out]
    return Series((*inner, Parallel(tuple(stacked), "‖")), title=name)


class Twice(nn.Module):
    """The same output as the last one and as the one before it."""

    def forward(self, x: Tensor) -> Pair:
        return Pair(x, x)


always(Twice, "")


@rule.register
def _(layer: Twice, x: Signal, tally: Tally) -> PairSignal:
    return PairSignal(x, x)


@dataclass(frozen=True)
class NASNet(Spec):
    """Zoph et al. 2017, figure 2 (ImageNet): stages of `depth` normal cells, a reduction before all but the first.

    filters: width of the cells of the first stage; each reduction doubles it (the paper's F: the last output is 24 F).
    skip: the cell behind a reduction also reads what the reduction's input read (NASNet-A large).
    """

    depth: Depth
    filters: Width
    stem: Width
    skip: bool = False
    dropout: float = 0.5
    resolution: Resolution = 224

    @staticmethod
    def round_width(width: float) -> int:
        """An even number from 4 on: an input that is halved comes in two halves, and the stem's cells are thinner."""
        return max(4, round(width / 2) * 2)

    @property
    def minimum(self) -> int:
        return 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filters % 2 or self.filters < 4:
            raise SpecError(f"NASNet.filters: {self.filters} is not an even number from 4 on; cells are halved")

    def build(self, *, classes: int, channels: int) -> Network:
        f, quarter = self.filters, self.filters // 4
        stem = Chain(
            conv=nn.Conv2d(channels, self.stem, 3, 2, bias=False), norm=norm(self.stem), twice=Twice(),
            cell0=reduction(Fit(self.stem, quarter), nn.Identity(), quarter, raw=self.stem),
            cell1=reduction(Fit(4 * quarter, 2 * quarter), Halve(self.stem, 2 * quarter), 2 * quarter),
        )  # fmt: skip
        stages, now, before, halved = [], 8 * quarter, 4 * quarter, True
        for i in range(3):
            width, cells = f * 2**i, []
            if i:
                cells.append(reduction(Fit(now, width), Fit(before, width), width, skipped=self.skip))
                now, before, halved = 4 * width, before if self.skip else now, True
            for _ in range(self.depth):
                cells.append(normal(Fit(now, width), (Halve if halved else Fit)(before, width), width))
                now, before, halved = 6 * width, now, False
            stages.append(Chain(*cells))
        head = Chain(
            latest=TakeCurrent(), act=nn.ReLU(), **dict(pooled(now, classes, dropout=self.dropout).named_children())
        )
        return Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))


def normal(now: nn.Module, before: nn.Module, width: int) -> Cell:
    nodes = nn.ModuleList(nn.ModuleList(operation(name, width, width) for name, _ in node) for node in NORMAL)
    return Cell(now, before, nodes, NORMAL, NORMAL_OUT)


def reduction(now: nn.Module, before: nn.Module, width: int, *, raw: int | None = None, skipped: bool = False) -> Cell:
    """`raw`: the width of an input before that is not fitted."""
    nodes = nn.ModuleList(
        nn.ModuleList(operation(name, raw or width if source == BEFORE else width, width) for name, source in node)
        for node in REDUCTION
    )
    return Cell(now, before, nodes, REDUCTION, REDUCTION_OUT, skipped=skipped)


def cells(spec: NASNet) -> Iterator[tuple[str, str]]:
    """Yield (timm's name, our path) of every cell."""
    yield "cell_stem_0", "stem.cell0"
    yield "cell_stem_1", "stem.cell1"
    for i in range(3):
        if i:
            yield f"reduction_cell_{i - 1}", f"stages.{i}.0"
        for j in range(spec.depth):
            yield f"cell_{i * spec.depth + j}", f"stages.{i}.{j + bool(i)}"


def timm(spec: NASNet) -> Rules:
    return (
        (r"^conv0\.conv\.", "stem.conv."), (r"^conv0\.bn\.", "stem.norm."), (r"^last_linear\.", "head.out."),
        *((rf"^{name}\.", f"{path}.") for name, path in cells(spec)),
        (r"\.conv_prev_1x1\.", ".before."), (r"\.conv_1x1\.", ".now."),
        (r"\.path_1\.", ".before.paths.even."), (r"\.path_2\.", ".before.paths.odd."),
        (r"\.final_path_bn\.", ".before.norm."),
        (r"\.comb_iter_(\d)_left\.", ".nodes.{1}.0."), (r"\.comb_iter_(\d)_right\.", ".nodes.{1}.1."),
        (r"\.separable_(\d)\.depthwise_conv2d\.", ".depthwise{1}."),
        (r"\.separable_(\d)\.pointwise_conv2d\.", ".pointwise{1}."),
        (r"\.bn_sep_(\d)\.", ".norm{1}."), (r"\.bn\.", ".norm."),
    )  # fmt: skip


CARD = Card(
    "NASNet-A", 2017,
    "Zoph et al., Learning transferable architectures for scalable image recognition, arXiv 1707.07012",
    ("search",), "Cells found by reinforcement learning on CIFAR-10, stacked for ImageNet.",
    "74.0 / 91.6 % top-1 / top-5, one crop; the search took about 2,000 GPU-days",
)  # fmt: skip

FAMILY = Family(
    {
        "nasnet_a_mobile": imagenet(NASNet(4, 44, 32), CARD.of("NASNet-A mobile"), half=True),
        "nasnet_a_large": imagenet(
            NASNet(6, 168, 96, skip=True, resolution=331), CARD.of("NASNet-A large", "82.7 / 96.2 % top-1 / top-5"),
            share=0.911, half=True, timm="nasnetalarge",
        ),
    },
    {"timm": timm},
)  # fmt: skip
