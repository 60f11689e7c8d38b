"""What a drawing of a tree shows: boxes in series and side by side, repeats folded, norms told beside convolutions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import groupby
from typing import Literal

from torch import nn

from convatlas.core.compose import Chain, Concat, Join, Product, Sum
from convatlas.core.network import Network

Kind = Literal["conv", "depthwise", "pool", "dense", "trim", "other"]
"""What a box stands for; a trim (norm, activation, dropout) is told in the box of the convolution beside it."""


@dataclass(frozen=True)
class Box:
    """One layer: its lines of text."""

    lines: tuple[str, ...]
    kind: Kind


@dataclass(frozen=True)
class Series:
    """One after another; `times` in a row, with other widths each time where it `varies`; a block has a title."""

    items: tuple[Outline, ...]
    title: str = ""
    times: int = 1
    varies: bool = False


@dataclass(frozen=True)
class Parallel:
    """Side by side and joined by a sign: "+", "×" or "‖" (stacked); None is a branch that passes its input."""

    branches: tuple[Outline | None, ...]
    sign: str
    title: str = ""
    times: int = 1
    varies: bool = False


Outline = Box | Series | Parallel

_PLAIN = (nn.Sequential, Chain, Sum, Concat, Product)


@singledispatch
def outline(layer: nn.Module) -> Outline | None:
    """Return what a drawing shows of a layer, None if nothing; `outline.register` adds a kind of layer."""
    if not list(layer.parameters()) and not list(layer.children()):
        return Box((type(layer).__name__,), "other")
    return Box((type(layer).__name__, *_short(layer)), "other")


def _short(layer: nn.Module) -> tuple[str, ...]:
    told = layer.extra_repr()
    return (told,) if 0 < len(told) <= 40 else ()


def _sizes(sizes: object) -> str:
    return "×".join(map(str, sizes)) if isinstance(sizes, tuple) else f"{sizes}×{sizes}"


@outline.register(nn.Conv1d)
@outline.register(nn.Conv2d)
@outline.register(nn.Conv3d)
def _(layer: nn.Conv2d) -> Box:
    told = f"{_sizes(layer.kernel_size)}, {layer.out_channels}"
    depthwise = layer.groups == layer.in_channels > 1
    if depthwise:
        told = f"{_sizes(layer.kernel_size)} depthwise"
    elif layer.groups > 1:
        told += f", {layer.groups} groups"
    if max(layer.stride) > 1:
        told += f", /{max(layer.stride)}"
    return Box((told,), "depthwise" if depthwise else "conv")


@outline.register
def _(layer: nn.Linear) -> Box:
    return Box((f"linear, {layer.out_features}",), "dense")


def _pool(name: str, layer: nn.MaxPool2d | nn.AvgPool2d) -> Box:
    stride = layer.stride if isinstance(layer.stride, int) else max(layer.stride)
    return Box((f"{name} {_sizes(layer.kernel_size)}" + (f", /{stride}" if stride > 1 else ""),), "pool")


@outline.register(nn.MaxPool1d)
@outline.register(nn.MaxPool2d)
@outline.register(nn.MaxPool3d)
def _(layer: nn.MaxPool2d) -> Box:
    return _pool("max", layer)


@outline.register(nn.AvgPool1d)
@outline.register(nn.AvgPool2d)
@outline.register(nn.AvgPool3d)
def _(layer: nn.AvgPool2d) -> Box:
    return _pool("mean", layer)


@outline.register(nn.AdaptiveAvgPool1d)
@outline.register(nn.AdaptiveAvgPool2d)
@outline.register(nn.AdaptiveAvgPool3d)
def _(layer: nn.AdaptiveAvgPool2d) -> Box:
    return Box(("global mean" if layer.output_size == 1 else f"mean to {_sizes(layer.output_size)}",), "pool")


_TRIMS = {
    nn.BatchNorm1d: "BN", nn.BatchNorm2d: "BN", nn.BatchNorm3d: "BN", nn.LayerNorm: "LN", nn.GroupNorm: "GN",
    nn.LocalResponseNorm: "LRN", nn.ReLU: "ReLU", nn.ReLU6: "ReLU6", nn.SiLU: "SiLU", nn.GELU: "GELU",
    nn.Hardswish: "h-swish", nn.Hardsigmoid: "h-sigmoid", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh",
    nn.Dropout: "dropout",
}  # fmt: skip


def always(kind: type[nn.Module], text: str, box: Kind = "trim") -> None:
    """Show a kind of layer as a box with this text, or not at all where it is empty."""
    outline.register(kind, lambda _: Box((text,), box) if text else None)


for _kind, _text in _TRIMS.items():
    always(_kind, _text)
for _kind in (nn.Identity, nn.Flatten, nn.ConstantPad2d, nn.ZeroPad2d):
    always(_kind, "")
always(nn.ChannelShuffle, "shuffle")


@outline.register
def _(chain: nn.Sequential) -> Outline | None:
    return in_series([child for child in chain._modules.values() if child is not None], title=_title(chain))


@outline.register
def _(join: Join) -> Outline | None:
    branches = tuple(outline(branch) for branch in join.values())
    sign = "‖" if isinstance(join, Concat) else "×" if isinstance(join, Product) else "+"
    if len(branches) == 1:
        only = branches[0]
        return Series((only,), title=_title(join)) if only and _title(join) else only
    return Parallel(branches, sign, _title(join))


@outline.register
def _(network: Network) -> Outline | None:
    return in_series([network.stem, network.stages, network.head])


def _title(layer: nn.Module) -> str:
    """Return the name of a block, spaced: "InvertedResidual" reads "inverted residual"."""
    if type(layer) in _PLAIN or not getattr(layer, "titled", True):
        return ""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(layer).__name__).lower()


def in_series(layers: Sequence[nn.Module], *, title: str = "") -> Outline | None:
    """Return layers one after another: repeats folded, trims told in the box beside them."""
    told = [item for layer in layers if (item := outline(layer)) is not None]
    flat = [part for item in told for part in (item.items if _is_loose(item) else (item,))]  # type: ignore[union-attr]
    items = list(_folded(list(_trimmed(flat))))
    if not items:
        return None
    if len(items) == 1 and not title:
        return items[0]
    return Series(tuple(items), title)


def _is_loose(item: Outline) -> bool:
    return isinstance(item, Series) and not item.title and item.times == 1


def _trimmed(items: Sequence[Outline]) -> Iterator[Outline]:
    """Put the trims behind a layer into its box, and those in front of the first one into the box that follows."""
    before: list[str] = []
    held: Outline | None = None
    for item in items:
        if isinstance(item, Box) and item.kind == "trim":
            if isinstance(held, Box) and held.kind in ("conv", "depthwise", "dense"):
                after = held.lines[1:] or ("",)
                held = replace(held, lines=(held.lines[0], f"{after[0]} {item.lines[0]}".strip()))
            else:
                before.append(item.lines[0])
            continue
        if held is not None:
            yield held
        held = item
        if before and isinstance(item, Box):
            held = replace(item, lines=(" ".join(before) + " →", *item.lines))
            before = []
        elif before:
            yield Box((" ".join(before),), "trim")
            before = []
    if held is not None:
        yield held
    if before:
        yield Box((" ".join(before),), "trim")


def _form(item: Outline | None) -> str:
    """Return the text of an outline without its numbers: what stays equal while widths grow."""
    return re.sub(r"\b\d+\b(?!×)", "", repr(item))


def _folded(items: Sequence[Outline]) -> Iterator[Outline]:
    """Fold equal blocks in a row into one that is repeated; single boxes stay as they are."""
    for _, run in groupby(items, key=lambda item: item if isinstance(item, Box) else _form(item)):
        same = list(run)
        if isinstance(same[0], Box) or len(same) == 1:
            yield from same
            continue
        varies = any(item != same[0] for item in same)
        block = same[0]
        if not isinstance(block, Box) and block.times == 1:
            yield replace(block, times=len(same), varies=varies)
        else:
            yield Series((block,), times=len(same), varies=varies)
