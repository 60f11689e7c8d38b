"""Parts of the Inception networks: convolution towers, forks, pooling branches, reductions, stages of module rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from convatlas.core.compose import Chain, Concat
from convatlas.core.spec import Row, Width
from convatlas.layers.conv import ConvNorm, Size

conv = partial(ConvNorm, norm=partial(nn.BatchNorm2d, eps=0.001))
"""Convolution, batch norm with the authors' epsilon, ReLU; keeps the size of the map at stride 1."""

conv_valid = partial(conv, padding=0)
"""The same without padding ("V" in the figures)."""

ROW_KERNEL, COLUMN_KERNEL = (1, 7), (7, 1)
"""A 7x7 kernel factorized into a row and a column (Szegedy et al. 2015, figure 6)."""


def tower(inputs: int, widths: Sequence[int], kernels: Sequence[Size], *, stride: int = 1) -> Chain:
    """conv1 -> conv2 -> ...: convolutions in series, one branch of an Inception module.

    With stride 2, the last convolution has the stride and no padding, as in the reduction modules.
    """
    layers: dict[str, nn.Module] = {}
    for i, (width, kernel) in enumerate(zip(widths, kernels, strict=True), 1):
        if i == len(widths) and stride > 1:
            layers[f"conv{i}"] = conv_valid(inputs, width, kernel=kernel, stride=stride)
        else:
            layers[f"conv{i}"] = conv(inputs, width, kernel=kernel)
        inputs = width
    return Chain(**layers)


class Fork(Chain):
    """tower -> [1x3 | 3x1]: the output of a tower feeds two convolutions (v3 figure 7, v4 figure 6)."""

    def __init__(self, inputs: int, before: Sequence[int], kernels: Sequence[Size], row: int, column: int) -> None:
        super().__init__(
            before=tower(inputs, before, kernels),
            fork=Concat(row=conv(before[-1], row, kernel=(1, 3)), column=conv(before[-1], column, kernel=(3, 1))),
        )


def pool_branch(inputs: int, width: int, *, count_include_pad: bool) -> Chain:
    """3x3 average pooling -> 1x1; `count_include_pad`: the zeros around the map count (v3), or not (v4)."""
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=count_include_pad)
    return Chain(pool=pool, proj=conv(inputs, width, kernel=1))


class ModuleRow(Row):
    """A row of equal Inception modules.

    block: builds one module from the number of input channels and the row, whose cells are the widths of its branches.
    depth: number of modules. outputs: number of channels of one module's output, for `inputs` input channels.
    """

    block: ClassVar[type[Concat]]
    depth: int = 1

    def outputs(self, inputs: int) -> int:
        raise NotImplementedError

    def build(self, inputs: int) -> Iterator[nn.Module]:
        block: Any = self.block
        for _ in range(self.depth):
            yield block(inputs, self)
            inputs = self.outputs(inputs)


def widths_after(stages: Sequence[Sequence[ModuleRow]], inputs: int) -> list[int]:
    """Return the number of channels behind each stage."""
    widths = []
    for rows in stages:
        for row in rows:
            for _ in range(row.depth):
                inputs = row.outputs(inputs)
        widths.append(inputs)
    return widths


def build_stages(stages: Sequence[Sequence[ModuleRow]], inputs: int) -> Chain:
    """Return the stages, each a chain of all modules of its rows."""
    built = []
    for rows in stages:
        modules: list[nn.Module] = []
        for row in rows:
            modules += row.build(inputs)
            (inputs,) = widths_after([[row]], inputs)
        built.append(Chain(*modules))
    return Chain(*built)


def module_paths(stages: Sequence[Sequence[ModuleRow]]) -> list[str]:
    """Return the path "stage.module" of every module, in order."""
    return [f"{i}.{j}" for i, rows in enumerate(stages) for j in range(sum(row.depth for row in rows))]


class Reduction(Concat):
    """[left tower /2 | right tower /2 | 3x3 max pooling /2] (v3 figure 10, v4 figures 7 and 8).

    left: 3x3 /2 or 1x1 -> 3x3 /2. right: 1x1 -> 3x3 -> 3x3 /2, or with `seven` 1x1 -> 1x7 -> 7x1 -> 3x3 /2.
    """

    def __init__(self, inputs: int, row: ReductionRow) -> None:
        left: tuple[Size, ...] = (3,) if len(row.left) == 1 else (1, 3)
        inner: tuple[Size, ...] = (ROW_KERNEL, COLUMN_KERNEL) if row.seven else (3,)
        super().__init__(
            left=tower(inputs, row.left, left, stride=2),
            right=tower(inputs, row.right, (1, *inner, 3), stride=2),
            pool=nn.MaxPool2d(3, 2),
        )


@dataclass(frozen=True)
class ReductionRow(ModuleRow):
    """Widths of the two towers of a `Reduction`; a scaled network reduces as often as the published one."""

    block = Reduction

    left: tuple[Width, ...]
    right: tuple[Width, ...]
    seven: bool = False

    def outputs(self, inputs: int) -> int:
        return inputs + self.left[-1] + self.right[-1]
