"""NASNet-A: stacks of two cells found by search; the inputs of a cell are the outputs of the two cells before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from convatlas.core.compose import Chain, Concat, Layer, Pair
from convatlas.core.network import Network
from convatlas.core.outline import Box, Kind, Outline, Parallel, Series, always, outline
from convatlas.core.reach import unite
from convatlas.core.signal import PairSignal, Signal, Tally, rule, walk
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.errors import SpecError
from convatlas.layers.channels import SamePad, TakeCurrent
from convatlas.layers.heads import pooled_layers
from convatlas.models.card import Card, Family, ReportedMetrics, imagenet
from convatlas.models.keys import Rules

norm = partial(nn.BatchNorm2d, eps=0.001)

PREVIOUS, CURRENT = 0, 1
"""Inputs of a cell: the output of the cell before the last one, and of the last one; from 2 on, nodes of the cell."""


@dataclass(frozen=True)
class Op:
    """An operation of a cell: separable convolution, average pooling, max pooling or identity."""

    kind: Literal["sep", "avg", "max", "identity"]
    kernel: int = 1
    stride: int = 1

    def __str__(self) -> str:
        if self.kind == "identity":
            return self.kind
        return f"{self.kind} {self.kernel}x{self.kernel}" + (f" /{self.stride}" if self.stride > 1 else "")

    def build(self, inputs: int, width: int) -> nn.Module:
        """Return the layers; only a separable convolution changes the number of channels."""
        if self.kind == "identity":
            return nn.Identity()
        if self.kind == "sep":
            return DoubleSeparable(inputs, width, self.kernel, self.stride)
        if self.stride == 1:
            return nn.AvgPool2d(self.kernel, 1, self.kernel // 2, count_include_pad=False)
        if self.kind == "max":
            border = SamePad(self.kernel, self.stride, value=float("-inf"))
            return Chain(pad=border, pool=nn.MaxPool2d(self.kernel, self.stride, 0))
        return Chain(pad=SamePad(self.kernel, self.stride), pool=nn.AvgPool2d(self.kernel, self.stride, 0))


Node = tuple[tuple[Op, int], tuple[Op, int]]
"""Two operations, each with the number of its input; their outputs are added."""

SEP3, SEP5, AVG3, IDENTITY = Op("sep", 3), Op("sep", 5), Op("avg", 3), Op("identity")
SEP5_HALF, SEP7_HALF, AVG3_HALF, MAX3_HALF = Op("sep", 5, 2), Op("sep", 7, 2), Op("avg", 3, 2), Op("max", 3, 2)

# Zoph et al. 2017, figure 4
NORMAL: tuple[Node, ...] = (
    ((SEP5, CURRENT), (SEP3, PREVIOUS)),
    ((SEP5, PREVIOUS), (SEP3, PREVIOUS)),
    ((AVG3, CURRENT), (IDENTITY, PREVIOUS)),
    ((AVG3, PREVIOUS), (AVG3, PREVIOUS)),
    ((SEP3, CURRENT), (IDENTITY, CURRENT)),
)
NORMAL_OUT = (PREVIOUS, 2, 3, 4, 5, 6)
REDUCTION: tuple[Node, ...] = (
    ((SEP5_HALF, CURRENT), (SEP7_HALF, PREVIOUS)),
    ((MAX3_HALF, CURRENT), (SEP7_HALF, PREVIOUS)),
    ((AVG3_HALF, CURRENT), (SEP5_HALF, PREVIOUS)),
    ((AVG3, 2), (IDENTITY, 3)),
    ((SEP3, 2), (MAX3_HALF, CURRENT)),
)
REDUCTION_OUT = (3, 4, 5, 6)


class DoubleSeparable(Chain):
    """(ReLU -> kxk depthwise /s -> 1x1 -> norm) x 2, the second time with stride 1 (appendix A.4)."""

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


class FactorizedReduction(Chain):
    """ReLU -> [every second pixel -> 1x1 | the same, shifted by one pixel -> 1x1] -> norm: halves the map."""

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


class AdjustChannels(Chain):
    """ReLU -> 1x1 -> norm: brings an input to the width of the cell."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(act=nn.ReLU(), conv=nn.Conv2d(inputs, outputs, 1, bias=False), norm=norm(outputs))


class Cell(nn.Module):
    """Nodes over the outputs of the last two cells: each adds two operations; those in `out` are concatenated.

    now, before: bring the two inputs to the width of the cell. table: operations and inputs of the nodes.
    skipped: the next cell reads this cell's previous input instead of its current one, so that it skips a reduction.
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
            raise tally.error(cell, f"node {i} adds {sides[0].shape} and {sides[1].shape}")
        field = tuple(max(axis) for axis in zip(sides[0].receptive_field, sides[1].receptive_field, strict=True))
        depth, reach = max(side.depth for side in sides), unite([side.reach for side in sides])
        states.append(Signal(sides[0].shape, field, sides[0].stride, depth=depth, reach=reach))
    chosen = [states[i] for i in cell.out]
    field = tuple(max(axis) for axis in zip(*(signal.receptive_field for signal in chosen), strict=True))
    shape = (sum(signal.channels for signal in chosen), *chosen[0].spatial)
    depth = max(signal.depth for signal in chosen)
    reach = unite([signal.reach for signal in chosen])
    now = Signal(shape, field, chosen[0].stride, depth=depth, reach=reach)
    return PairSignal(now, x.before if cell.skipped else x.now)


@outline.register
def _(cell: Cell) -> Outline:
    def operation_box(op: Op, source: int) -> Outline:
        name = {PREVIOUS: "h before", CURRENT: "h"}.get(source, f"node {source - 1}")
        kind: Kind = "depthwise" if op.kind == "sep" else "trim" if op.kind == "identity" else "pool"
        return Box((f"from {name}", str(op)), kind)

    nodes = [Parallel((operation_box(*left), operation_box(*right)), "+") for left, right in cell.table]
    name = "normal cell" if cell.table == NORMAL else "reduction cell"
    stacked: list[Outline] = [nodes[i - 2] if i >= 2 else Box(("h before",), "trim") for i in cell.out]
    inner = [node for i, node in enumerate(nodes, 2) if i not in cell.out]
    return Series((*inner, Parallel(tuple(stacked), "‖")), title=name)


class DuplicateState(Layer):
    """x -> (x, x): the output of the stem is both inputs of the first cell."""

    returns_input = True

    def forward(self, x: Tensor) -> Pair:
        return Pair(x, x)


always(DuplicateState, "")


@rule.register
def _(layer: DuplicateState, x: Signal, tally: Tally) -> PairSignal:
    return PairSignal(x, x)


@dataclass(frozen=True)
class NASNet(Spec):
    """Zoph et al. 2017, figure 2 (ImageNet): stages of `depth` normal cells, a reduction before all but the first.

    filters: channels of the cells of the first stage (F; the last output has 24 F). Each reduction doubles them.
    stem: channels of the first convolution.
    skip: the cell behind a reduction also reads the reduction's previous input (NASNet-A large).
    """

    depth: Depth
    filters: Width
    stem: Width
    skip: bool = False
    dropout: float = 0.5
    resolution: Resolution = 224

    @staticmethod
    def round_width(width: float) -> int:
        """Return an even number >= 4: a factorized reduction has two halves, the first cell a quarter of the width."""
        return max(4, round(width / 2) * 2)

    @property
    def minimum(self) -> int:
        return 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filters % 2 or self.filters < 4:
            raise SpecError(f"NASNet: filters must be an even integer >= 4, got {self.filters}")

    def build(self, *, classes: int, channels: int) -> Network:
        f, quarter = self.filters, self.filters // 4
        stem = Chain(
            conv=nn.Conv2d(channels, self.stem, 3, 2, bias=False),
            norm=norm(self.stem),
            twice=DuplicateState(),
            cell0=reduction_cell(AdjustChannels(self.stem, quarter), nn.Identity(), quarter, raw=self.stem),
            cell1=reduction_cell(
                AdjustChannels(4 * quarter, 2 * quarter), FactorizedReduction(self.stem, 2 * quarter), 2 * quarter
            ),
        )
        stages, now, previous, halved = [], 8 * quarter, 4 * quarter, True
        for i in range(3):
            width, cells = f * 2**i, []
            if i:
                inputs = AdjustChannels(now, width), AdjustChannels(previous, width)
                cells.append(reduction_cell(*inputs, width, skipped=self.skip))
                now, previous, halved = 4 * width, previous if self.skip else now, True
            for _ in range(self.depth):
                current = AdjustChannels(now, width)
                before = FactorizedReduction(previous, width) if halved else AdjustChannels(previous, width)
                cells.append(normal_cell(current, before, width))
                now, previous, halved = 6 * width, now, False
            stages.append(Chain(*cells))
        layers = pooled_layers(now, classes, dropout=self.dropout)
        head = Chain(latest=TakeCurrent(), act=nn.ReLU(), **layers)
        return Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))


def normal_cell(now: nn.Module, before: nn.Module, width: int) -> Cell:
    nodes = nn.ModuleList(nn.ModuleList(op.build(width, width) for op, _ in node) for node in NORMAL)
    return Cell(now, before, nodes, NORMAL, NORMAL_OUT)


def reduction_cell(
    now: nn.Module, before: nn.Module, width: int, *, raw: int | None = None, skipped: bool = False
) -> Cell:
    """raw: channels of the previous input, if it is not adjusted to the width of the cell."""
    nodes = nn.ModuleList(
        nn.ModuleList(op.build(raw or width if source == PREVIOUS else width, width) for op, source in node)
        for node in REDUCTION
    )
    return Cell(now, before, nodes, REDUCTION, REDUCTION_OUT, skipped=skipped)


def cell_names(spec: NASNet) -> Iterator[tuple[str, str]]:
    """Yield (timm's name, our path) of every cell."""
    yield "cell_stem_0", "stem.cell0"
    yield "cell_stem_1", "stem.cell1"
    for i in range(3):
        if i:
            yield f"reduction_cell_{i - 1}", f"stages.{i}.0"
        for j in range(spec.depth):
            yield f"cell_{i * spec.depth + j}", f"stages.{i}.{j + bool(i)}"


def timm(spec: NASNet) -> Rules:
    """Rules for timm.

    "cell_7.comb_iter_0_left.separable_1.depthwise_conv2d.weight" -> "stages.1.2.nodes.0.0.depthwise1.weight"
    "reduction_cell_0.conv_prev_1x1.bn.bias" -> "stages.1.0.before.norm.bias"
    """
    return (
        (r"^conv0\.conv\.", "stem.conv."), (r"^conv0\.bn\.", "stem.norm."), (r"^last_linear\.", "head.out."),
        *((rf"^{name}\.", f"{path}.") for name, path in cell_names(spec)),
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
    note="The search took about 2,000 GPU-days (paper).",
)  # fmt: skip

FAMILY = Family(
    {
        "nasnet_a_mobile": imagenet(
            NASNet(4, 44, 32), CARD.of("NASNet-A mobile", reported=ReportedMetrics(74.0, 91.6)), scaling="-1 to 1"
        ),
        "nasnet_a_large": imagenet(
            NASNet(6, 168, 96, skip=True, resolution=331),
            CARD.of("NASNet-A large", reported=ReportedMetrics(82.7, 96.2)),
            upstream={"timm": "nasnetalarge"},
            crop_share=0.911,
            scaling="-1 to 1",
        ),
    },
    {"timm": timm},
)
