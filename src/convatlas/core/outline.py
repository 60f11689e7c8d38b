"""The content of a drawing: boxes in sequence and in parallel, repeats folded, norms merged into convolutions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import groupby
from typing import Literal, TypeGuard

from torch import nn

from convatlas.core.compose import Chain, Concat, Join, Layer, Product, Sum
from convatlas.core.network import Network

Kind = Literal["conv", "depthwise", "pool", "dense", "trim", "other"]
"""The kind of a box; a trim (norm, activation, dropout) is written into the box of the convolution next to it."""


@dataclass(frozen=True)
class Box:
    """One layer: its lines of text."""

    lines: tuple[str, ...]
    kind: Kind


@dataclass(frozen=True)
class Series:
    """Items in sequence. A block has a title; it is repeated `times`, with different widths if it `varies`."""

    items: tuple[Outline, ...]
    title: str = ""
    times: int = 1
    varies: bool = False


@dataclass(frozen=True)
class Parallel:
    """Branches in parallel, joined by a sign: "+", "×" or "‖" (stacked channels); None is an identity branch."""

    branches: tuple[Outline | None, ...]
    sign: str
    title: str = ""
    times: int = 1
    varies: bool = False


Outline = Box | Series | Parallel

_PLAIN = (nn.Sequential, Chain, Sum, Concat, Product)


@singledispatch
def outline(layer: nn.Module) -> Outline | None:
    """Return what a drawing shows of a layer, or None for nothing; `outline.register` adds a kind of layer."""
    if not list(layer.parameters()) and not list(layer.children()):
        return Box((type(layer).__name__,), "other")
    return Box((type(layer).__name__, *_short(layer)), "other")


def _short(layer: nn.Module) -> tuple[str, ...]:
    text = layer.extra_repr()
    return (text,) if 0 < len(text) <= 40 else ()


def _stride(strides: object) -> str:
    """Return ", /2", ", /1×2×2" for a layer that keeps the time, and nothing for a stride of 1."""
    if isinstance(strides, tuple) and len(set(strides)) == 1:
        strides = strides[0]
    return "" if strides == 1 else f", /{_sizes(strides) if isinstance(strides, tuple) else strides}"


def _sizes(sizes: object) -> str:
    return "×".join(map(str, sizes)) if isinstance(sizes, tuple) else f"{sizes}×{sizes}"


@outline.register(nn.Conv1d)
@outline.register(nn.Conv2d)
@outline.register(nn.Conv3d)
def _(layer: nn.Conv2d) -> Box:
    text = f"{_sizes(layer.kernel_size)}, {layer.out_channels}"
    depthwise = layer.groups == layer.in_channels > 1
    if depthwise:
        text = f"{_sizes(layer.kernel_size)} depthwise"
    elif layer.groups > 1:
        text += f", {layer.groups} groups"
    return Box((text + _stride(layer.stride),), "depthwise" if depthwise else "conv")


@outline.register
def _(layer: nn.ConvTranspose2d) -> Box:
    return Box((f"{_sizes(layer.kernel_size)} transposed, {layer.out_channels}, ×{layer.stride[0]}",), "conv")


@outline.register
def _(layer: nn.Linear) -> Box:
    return Box((f"linear, {layer.out_features}",), "dense")


def _pool(name: str, layer: nn.MaxPool2d | nn.AvgPool2d) -> Box:
    return Box((f"{name} {_sizes(layer.kernel_size)}{_stride(layer.stride)}",), "pool")


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
    """Show a kind of layer as a box with this text; hide it if the text is empty."""
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
    """Return the title of a block, its class name as words: "inverted residual" for InvertedResidual."""
    if type(layer) in _PLAIN or (isinstance(layer, Layer) and not layer.show_title):
        return ""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(layer).__name__).lower()


def in_series(layers: Sequence[nn.Module], *, title: str = "") -> Outline | None:
    """Return the outline of layers in sequence: repeats folded, trims written into the box next to them."""
    outlines = [item for layer in layers if (item := outline(layer)) is not None]
    flat = [part for item in outlines for part in (item.items if _is_untitled(item) else (item,))]
    items = list(_fold(list(_merge_trims(flat))))
    if not items:
        return None
    if len(items) == 1 and not title:
        return items[0]
    return Series(tuple(items), title)


def _is_untitled(item: Outline) -> TypeGuard[Series]:
    return isinstance(item, Series) and not item.title and item.times == 1


def _merge_trims(items: Sequence[Outline]) -> Iterator[Outline]:
    """Write trims into the box of the layer before them; those before the first layer, into the box that follows."""
    before: list[str] = []
    last: Outline | None = None
    for item in items:
        if isinstance(item, Box) and item.kind == "trim":
            if isinstance(last, Box) and last.kind in ("conv", "depthwise", "dense"):
                after = last.lines[1:] or ("",)
                last = replace(last, lines=(last.lines[0], f"{after[0]} {item.lines[0]}".strip()))
            else:
                before.append(item.lines[0])
            continue
        if last is not None:
            yield last
        last = item
        if before and isinstance(item, Box):
            last = replace(item, lines=(" ".join(before) + " →", *item.lines))
            before = []
        elif before:
            yield Box((" ".join(before),), "trim")
            before = []
    if last is not None:
        yield last
    if before:
        yield Box((" ".join(before),), "trim")


def _without_numbers(item: Outline | None) -> str:
    """Return the text of an outline without its numbers: what stays the same while widths change."""
    return re.sub(r"\b\d+\b(?!×)", "", repr(item))


def _fold(items: Sequence[Outline]) -> Iterator[Outline]:
    """Fold consecutive blocks that differ only in numbers into one that is repeated; boxes stay as they are."""
    for _, run in groupby(items, key=lambda item: item if isinstance(item, Box) else _without_numbers(item)):
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
