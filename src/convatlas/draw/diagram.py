"""Diagrams: a column of boxes for each stage, branches in parallel, skip connections as arcs, and the maps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.compose import Chain
from convatlas.core.cost import Cost, cost
from convatlas.core.network import Network
from convatlas.core.outline import Box, Outline, Parallel, Series, in_series, outline
from convatlas.core.signal import Signal
from convatlas.core.table import by_x
from convatlas.draw.style import INK, NOTE, PAPER, QUIET, default_settings, label, new_page, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILLS = {
    "conv": "#cfe3f5", "depthwise": "#c9ecdf", "pool": "#fbe3bf", "dense": "#e4d7f2", "trim": "#eceff2",
    "other": "#f6d6d6",
}  # fmt: skip
LEGEND = {"conv": "convolution", "depthwise": "depthwise", "pool": "pooling", "dense": "linear", "other": "other"}

# lengths in inches
LETTER, LINE = 0.066, 0.135  # width of a letter, height of a line
PAD, GAP = 0.055, 0.16  # inside of a box, between boxes
ARC, SIGN = 0.2, 0.17  # from a branch to the arc of a skip connection, diameter of a sign
WIDE = 3.0  # blocks of this width that occur more than once are drawn once, below


@dataclass
class Page:
    """Primitives of a diagram, in inches, y downwards. `kinds` collects the kinds of boxes, for the legend."""

    axes: Any
    kinds: set[str] = field(default_factory=set)

    def box(self, x: float, y: float, width: float, height: float, *, fill: str, dashed: bool = False) -> None:
        from matplotlib.patches import FancyBboxPatch

        style = f"round,pad=0,rounding_size={min(0.05, height / 3)}"
        self.axes.add_patch(FancyBboxPatch(
            (x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=QUIET, linewidth=0.6,
            linestyle=(0, (3, 2)) if dashed else "-",
        ))  # fmt: skip

    def text(
        self, x: float, y: float, text: str, *, size: float = 7, bold: bool = False, quiet: bool = False,
        align: str = "center", covering: bool = False,
    ) -> None:  # fmt: skip
        """Paint text. covering: hide what is below it, such as a line."""
        behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8} if covering else None
        self.axes.text(
            x, y, label(text, 200), ha=align, va="center", fontsize=size, color=NOTE if quiet else INK, bbox=behind,
            zorder=5, weight="bold" if bold else "normal",
        )  # fmt: skip

    def line(self, *points: tuple[float, float], arrow: bool = False) -> None:
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs, ys, color=INK, linewidth=0.7, solid_capstyle="round", solid_joinstyle="round")
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            self.axes.annotate("", (x1, y1), (x0, y0), arrowprops={
                "arrowstyle": "-|>,head_length=0.25,head_width=0.12", "color": INK, "linewidth": 0.7, "shrinkA": 0,
                "shrinkB": 0,
            })  # fmt: skip

    def sign(self, x: float, y: float, sign: str) -> None:
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), SIGN / 2, facecolor=PAPER, edgecolor=INK, linewidth=0.7, zorder=3))
        self.axes.text(x, y, sign, ha="center", va="center_baseline", fontsize=7, color=INK, zorder=4)


def size(item: Outline) -> tuple[float, float]:
    """Return the width and height of an outline."""
    if isinstance(item, Box):
        return max(map(len, item.lines)) * LETTER + 2 * PAD, len(item.lines) * LINE + 2 * PAD
    if isinstance(item, Series):
        sizes = [size(inner) for inner in item.items]
        width, height = max(w for w, _ in sizes), sum(h for _, h in sizes) + GAP * (len(sizes) - 1)
        heading = _heading(item)
        framed, text_width = bool(heading), len(heading) * LETTER * 0.85
        return max(width, text_width) + 2 * PAD * framed, height + (LINE + 2 * PAD) * framed
    real = [size(branch) for branch in item.branches if branch is not None]
    arcs = ARC * sum(branch is None for branch in item.branches)
    width = sum(w for w, _ in real) + 2 * PAD * (len(real) - 1)
    height = max((h for _, h in real), default=0) + 2 * GAP + SIGN
    heading = _heading(item)
    framed = bool(heading)
    # symmetric, so that the line through the block stays in its middle
    return max(width + 2 * arcs, len(heading) * LETTER * 0.85) + 2 * PAD * framed, height + (LINE + 2 * PAD) * framed


def _heading(item: Series | Parallel) -> str:
    repeated = f"{item.times} ×" + (", widths vary" if item.varies else "") if item.times > 1 else ""
    return "  ".join(part for part in (repeated, item.title) if part)


def paint(page: Page, item: Outline, x: float, y: float) -> float:
    """Paint an outline, the middle of its top at (x, y), and return the y of its bottom."""
    width, height = size(item)
    if isinstance(item, Box):
        page.kinds.add(item.kind)
        page.box(x - width / 2, y, width, height, fill=FILLS[item.kind])
        for i, line in enumerate(item.lines):
            page.text(x, y + PAD + (i + 0.5) * LINE, line, size=6.5)
        return y + height
    heading = _heading(item)
    top = y
    if heading:
        page.box(x - width / 2, y, width, height, fill="none", dashed=True)
        page.text(x - width / 2 + PAD, y + PAD / 2 + LINE / 2, heading, size=6, align="left", covering=True)
        top = y + LINE + PAD
    if isinstance(item, Series):
        if heading:
            page.line((x, y), (x, top))
        for i, inner in enumerate(item.items):
            if i:
                page.line((x, top), (x, top + GAP), arrow=True)
                top += GAP
            top = paint(page, inner, x, top)
        if heading:
            page.line((x, top), (x, y + height))
        return y + height
    return _paint_parallel(page, item, x, y, top, y + height)


def _paint_parallel(page: Page, item: Parallel, x: float, y: float, top: float, bottom: float) -> float:
    """Paint branches between a fork below `top` and a sign above `bottom`; None becomes an arc around them."""
    real = [branch for branch in item.branches if branch is not None]
    sizes = [size(branch) for branch in real]
    width = sum(w for w, _ in sizes) + 2 * PAD * (len(real) - 1)
    fork, joined = top + GAP / 2, bottom - SIGN / 2 - (PAD if _heading(item) else 0)
    page.line((x, y), (x, fork))
    left = x - width / 2
    for branch, (w, _) in zip(real, sizes, strict=True):
        middle = left + w / 2
        page.line((x, fork), (middle, fork), (middle, fork + GAP / 2), arrow=True)
        end = paint(page, branch, middle, fork + GAP / 2)
        if abs(middle - x) < 0.01:
            page.line((middle, end), (middle, joined - SIGN / 2), arrow=True)
        else:
            side = x - SIGN / 2 if middle < x else x + SIGN / 2
            page.line((middle, end), (middle, joined), (side, joined), arrow=True)
        left += w + 2 * PAD
    for i in range(sum(branch is None for branch in item.branches)):
        # the arc of a skip connection
        out, bend = x + width / 2 + (i + 0.7) * ARC, 0.07
        page.line(
            (x, fork), (out - bend, fork), (out - bend * 0.3, fork + bend * 0.3), (out, fork + bend),
            (out, joined - bend), (out - bend * 0.3, joined - bend * 0.3), (out - bend, joined),
            (x + SIGN / 2, joined), arrow=True,
        )  # fmt: skip
    page.sign(x, joined, item.sign)
    page.line((x, joined + SIGN / 2), (x, bottom))
    return bottom


def _blocks(item: Outline | None) -> Iterator[Series | Parallel]:
    """Yield the blocks with a title inside an outline, each as if it came once."""
    if isinstance(item, Series | Parallel):
        if item.title:
            yield replace(item, times=1, varies=False)
        for inner in item.items if isinstance(item, Series) else item.branches:
            yield from _blocks(inner)


def _wide_repeats(outlines: Iterable[Outline]) -> list[Series | Parallel]:
    """Return the wide blocks that occur more than once, such as the two cells of NASNet."""
    counts = Counter(block for item in outlines for block in _blocks(item))
    return [block for block, count in counts.items() if count > 1 and size(block)[0] > WIDE]


def _with_references(item: Outline, blocks: list[Series | Parallel]) -> Outline:
    """Return the outline with a box, such as "4 × normal cell", in the place of each of these blocks."""
    if isinstance(item, Series | Parallel) and replace(item, times=1, varies=False) in blocks:
        return Box((_heading(item).replace("  ", " "),), "trim")
    if isinstance(item, Series):
        return replace(item, items=tuple(_with_references(inner, blocks) for inner in item.items))
    if isinstance(item, Parallel):
        branches = (inner and _with_references(inner, blocks) for inner in item.branches)
        return replace(item, branches=tuple(branches))
    return item


@default_settings()
def diagram(network: Network, *, title: str = "", path: str | Path | None = None) -> Figure:
    """Draw a network: at the top its maps, below the layers of the stem, of each stage and of the head.

    A map is a slab as high as its resolution and as thick as its number of channels, both on log scales. Wide blocks
    that occur more than once are drawn once, below the columns. With a `path`, the drawing is also written there, as
    SVG, PNG or PDF.
    """
    measured = cost(network)
    columns = [("stem", network.stem), *((f"stage {i}", s) for i, s in enumerate(network.stages.children(), 1)),
               ("head", network.head)]  # fmt: skip
    signals = [measured.signals[path] for path in _paths(network)]
    drawn = [in_series(list(part.children())) if type(part) is Chain else outline(part) for _, part in columns]
    outlines: list[Outline] = [item if item is not None else Box(("identity",), "trim") for item in drawn]
    blocks = _wide_repeats(outlines)
    outlines = [_with_references(item, blocks) for item in outlines]
    widths = [max(size(item)[0], 1.15) for item in outlines]
    spread, top, slabs = 0.42, 0.62, 1.3
    width = max(sum(widths) + spread * len(widths) + 1.2, *(size(block)[0] + 0.6 for block in blocks), 0)
    bottom = top + slabs + 0.5 + max(size(item)[1] for item in outlines) + 0.3
    height = bottom + sum(size(block)[1] + 0.25 for block in blocks) + 0.25
    figure, axes = new_page(width, height)
    page = Page(axes)
    page.text(0.15, 0.2, title, size=12, bold=True, align="left")
    page.text(0.15, 0.43, _numbers(measured), size=8, quiet=True, align="left")
    _slab(page, measured.input, 0.55, top + slabs / 2, slabs, "input", measured.input)
    x = 1.1
    ends: list[tuple[float, float]] = []
    for (name, _), item, signal, w in zip(columns, outlines, signals, widths, strict=True):
        middle = x + spread / 2 + w / 2
        _slab(page, signal, middle, top + slabs / 2, slabs, name, measured.input)
        y = top + slabs + 0.5
        page.line((middle, y - 0.2), (middle, y), arrow=True)
        end = paint(page, item, middle, y)
        if ends:  # from the end of one column to the head of the next, through the gutter
            (px, py), gutter = ends[-1], x + spread / 2 - 0.08
            page.line((px, py), (px, py + 0.12), (gutter, py + 0.12), (gutter, y - 0.2), (middle, y - 0.2))
        ends.append((middle, end))
        x += w + spread
    page.line(ends[-1], (ends[-1][0], ends[-1][1] + 0.2), arrow=True)
    for block in blocks:
        paint(page, block, 0.15 + size(block)[0] / 2, bottom)
        bottom += size(block)[1] + 0.25
    _legend(page, height)
    return save_figure(figure, path)


def _paths(network: Network) -> list[str]:
    return ["stem", *(f"stages.{name}" for name, _ in network.stages.named_children()), "head"]


def _numbers(measured: Cost) -> str:
    return (
        f"{measured.parameters:,} parameters, {measured.macs:,} MACs for {by_x(measured.input.shape)}, "
        f"receptive field {measured.receptive_field_text}"
    )


def _slab(page: Page, signal: Signal, x: float, y: float, room: float, name: str, image: Signal) -> None:
    """Paint the output of a part as a slab: height by the size of the map, thickness by the channels."""
    from matplotlib.patches import Polygon

    extent = max(signal.spatial, default=1)
    full = math.log2(max(image.spatial) + 1)
    height = max(0.1, (room - 0.45) * math.log2(extent + 1) / full)
    thick = 0.03 + 0.05 * math.log2(signal.channels)
    slant = height * 0.18
    left, upper = x - thick / 2, y + 0.02 - height / 2
    for points, shade in (
        ([(left, upper), (left + thick, upper), (left + thick, upper + height), (left, upper + height)], "#dde6ee"),
        ([(left, upper), (left + slant, upper - slant), (left + thick + slant, upper - slant), (left + thick, upper)],
         "#eef3f7"),
        ([(left + thick, upper), (left + thick + slant, upper - slant), (left + thick + slant, upper - slant + height),
          (left + thick, upper + height)], "#c3d0dc"),
    ):  # fmt: skip
        page.axes.add_patch(Polygon(points, closed=True, facecolor=shade, edgecolor=QUIET, linewidth=0.5))
    page.text(x, y + room / 2 + 0.02, name, size=7, bold=True)
    page.text(x, y + room / 2 + 0.17, by_x(signal.shape), size=6.5)


def _legend(page: Page, height: float) -> None:
    x = 0.15
    for kind, text in LEGEND.items():
        if kind in page.kinds:
            page.box(x, height - 0.26, 0.16, 0.12, fill=FILLS[kind])
            page.text(x + 0.22, height - 0.2, text, size=6.5, quiet=True, align="left")
            x += 0.5 + len(text) * LETTER
    page.text(x, height - 0.2, "+ sum   × product   ‖ stacked channels", size=6.5, quiet=True, align="left")
