"""The timeline of the networks of the catalog, from 1989 to today, by category."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.draw.style import INK, NOTE, default_settings, new_page, save_figure
from convatlas.models.card import CATEGORIES, Category
from convatlas.models.catalog import CATALOG, stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure
COLORS: dict[Category, str] = {
    "spatial exploitation": "#1f7a8c", "depth": "#2f5d9b", "multi-path": "#6a4c93", "width": "#9b5094",
    "feature-map exploitation": "#c8553d", "attention": "#d1495b", "channel boosting": "#e09f3e",
    "efficiency": "#4f8a3d", "search": "#8a7a1f", "routing": "#5b6770", "time": "#20709e",
    "detection": "#a83f6f", "own": "#6b6b6b",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A family of networks: year, categories and number of parameters of its first network."""

    title: str
    year: int
    categories: tuple[Category, ...]
    parameters: int


def entries() -> list[Entry]:
    """Return one entry for each family of the catalog, sorted by year."""
    families: dict[str, Entry] = {}
    for name, row in CATALOG.items():
        card = row.card
        if card.family not in families or card.year < families[card.family].year:
            families[card.family] = Entry(card.family, card.year, card.categories, stats(name).parameters)
    return sorted(families.values(), key=lambda entry: entry.year)


@default_settings()
def timeline(*, path: str | Path | None = None) -> Figure:
    """Draw the families over the years, a lane for each category; a larger dot has more parameters.

    A family of several categories has its dot in the lane of the first one and a ring in the others. With a `path`, the
    drawing is also written there, as SVG, PNG or PDF.
    """
    families = entries()
    lanes = {lane: [entry for entry in families if lane in entry.categories] for lane in CATEGORIES}
    lanes = {lane: members for lane, members in lanes.items() if members}
    line_of = {lane: _lines(members) for lane, members in lanes.items()}
    step, width = 0.3, _x(families[-1].year) + 1.1
    tops, y = {}, 1.05
    for lane, lines in line_of.items():
        tops[lane] = y
        y += (max(lines.values()) + 1) * step + 0.22
    figure, axes = new_page(width, y + 0.55)
    years = f"{families[0].year} to {families[-1].year}"
    axes.text(0.25, 0.35, f"Convolutional networks, {years}", fontsize=14, weight="bold", color=INK, va="center")
    axes.text(
        0.25, 0.65, "by category; a larger dot has more parameters; a ring repeats a network in a further category",
        fontsize=8.5, color=NOTE, va="center",
    )  # fmt: skip
    bottoms = [*list(tops.values())[1:], y]
    for i, (lane, bottom) in enumerate(zip(lanes, bottoms, strict=True)):
        if i % 2 == 0:
            axes.axhspan(tops[lane] - 0.12, bottom - 0.12, color="#f5f7f9", zorder=0)
        middle = (tops[lane] + bottom - 0.22) / 2
        axes.text(0.25, middle, lane, fontsize=9, weight="bold", color=COLORS[lane], va="center")
    for year in [1989, 1995, 2000, 2005, *range(2012, families[-1].year + 1)]:
        axes.plot([_x(year)] * 2, [tops[next(iter(lanes))] - 0.12, y - 0.1], color="#dde3e8", linewidth=0.6, zorder=1)
        axes.text(_x(year), y + 0.1, str(year), fontsize=8, color=NOTE, ha="center")
    for lane, members in lanes.items():
        for entry in members:
            _mark(axes, entry, lane, tops[lane] + (line_of[lane][entry.title] + 0.5) * step)
    return save_figure(figure, path)


def _lines(members: list[Entry]) -> dict[str, int]:
    """Return the line of each entry of a lane: labels that would overlap go to lines of their own."""
    ends: list[float] = []
    lines = {}
    for entry in members:
        start, end = _x(entry.year), _x(entry.year) + 0.3 + 0.068 * len(entry.title)
        line = next((i for i, taken in enumerate(ends) if taken < start - 0.1), len(ends))
        ends[line : line + 1] = [end]
        lines[entry.title] = line
    return lines


def _mark(axes: Any, entry: Entry, lane: Category, y: float) -> None:
    """Paint the dot of an entry in its own lane, or its ring in another, and its name."""
    own, x = lane == entry.categories[0], _x(entry.year)
    if own:
        size = 8 + 9 * max(0.0, math.log10(entry.parameters) - 3)
        axes.scatter(x, y, s=size, color=COLORS[lane], zorder=3, linewidths=0)
    else:
        color = COLORS[entry.categories[0]]
        axes.scatter(x, y, s=16, facecolors="white", edgecolors=color, linewidths=0.9, zorder=3)
    axes.text(x + 0.12, y, entry.title, fontsize=8 if own else 7.5, color=INK if own else NOTE, va="center", zorder=4)


def _x(year: float) -> float:
    """Return the x position of a year, in inches: years with more networks are wider."""
    widths = ((1989, 2012, 0.12), (2012, 2019, 0.92), (2019, 2100, 0.7))
    return 2.5 + sum(width * max(0.0, min(year, end) - start) for start, end, width in widths)
