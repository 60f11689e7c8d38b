"""The timeline of the networks of the catalog, from 1989 to today, by category."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.draw.style import INK, QUIET, new_page, save_figure
from convatlas.models.card import CATEGORIES, Category
from convatlas.models.catalog import CATALOG, stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure
COLORS: dict[Category, str] = {
    "spatial exploitation": "#1f7a8c", "depth": "#2f5d9b", "multi-path": "#6a4c93", "width": "#9b5094",
    "feature-map exploitation": "#c8553d", "attention": "#d1495b", "channel boosting": "#e09f3e",
    "efficiency": "#4f8a3d", "search": "#8a7a1f", "routing": "#5b6770", "time": "#20709e",
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


def timeline(*, path: str | Path | None = None) -> Figure:
    """Draw the families as dots over the years, a lane for each category; a larger dot has more parameters.

    A family of several categories has its dot in the lane of the first one and a ring in the others. With a `path`, the
    drawing is also written there, as SVG, PNG or PDF.
    """
    families = entries()
    lanes = [lane for lane in CATEGORIES if any(lane in entry.categories for entry in families)]
    # labels that would overlap go to lines of their own
    line_of: dict[str, int] = {}
    ends: dict[str, list[float]] = {lane: [] for lane in lanes}
    for entry in families:
        lines = ends[entry.categories[0]]
        start, end = _x(entry.year), _x(entry.year) + 0.3 + 0.068 * len(entry.title)
        line = next((i for i, taken in enumerate(lines) if taken < start - 0.1), len(lines))
        lines[line : line + 1] = [end]
        line_of[entry.title] = line
    depth = {lane: max(1, len(lines)) for lane, lines in ends.items()}
    step, width = 0.3, 15.5
    tops, y = {}, 1.05
    for lane in lanes:
        tops[lane] = y
        y += depth[lane] * step + 0.22
    height = y + 0.55
    figure, axes = new_page(width, height)
    years = f"{families[0].year} to {families[-1].year}"
    axes.text(0.25, 0.35, f"Convolutional networks, {years}", fontsize=14, weight="bold", color=INK, va="center")
    axes.text(
        0.25, 0.65, "by category; a larger dot has more parameters; a ring marks a further category",
        fontsize=8.5, color=QUIET, va="center",
    )  # fmt: skip
    for i, lane in enumerate(lanes):
        bottom = tops[lane] + depth[lane] * step + 0.1
        if i % 2 == 0:
            axes.axhspan(tops[lane] - 0.12, bottom, color="#f5f7f9", zorder=0)
        middle = (tops[lane] + bottom - 0.1) / 2
        axes.text(0.25, middle, lane, fontsize=9, weight="bold", color=COLORS[lane], va="center")
    for year in [1989, 1995, 2000, 2005, *range(2012, families[-1].year + 1)]:
        axes.plot([_x(year)] * 2, [tops[lanes[0]] - 0.12, y - 0.1], color="#dde3e8", linewidth=0.6, zorder=1)
        axes.text(_x(year), y + 0.1, str(year), fontsize=8, color="#616e7c", ha="center")
    for entry in families:
        lane = entry.categories[0]
        at = tops[lane] + (line_of[entry.title] + 0.5) * step
        size = 8 + 9 * max(0.0, math.log10(entry.parameters) - 3)
        axes.scatter(_x(entry.year), at, s=size, color=COLORS[lane], zorder=3, linewidths=0)
        axes.text(_x(entry.year) + 0.12, at, entry.title, fontsize=8, color=INK, va="center", zorder=4)
        for other in entry.categories[1:]:
            low = tops[other] + depth[other] * step
            ring: dict[str, Any] = {"facecolors": "white", "edgecolors": COLORS[lane], "linewidths": 0.9, "zorder": 2}
            axes.scatter(_x(entry.year), low, s=14, **ring)
    return save_figure(figure, path)


def _x(year: float) -> float:
    """Return the x position of a year, in inches; before 2012 years are closer together."""
    return 2.5 + (year - 1989) * 0.12 if year < 2012 else 5.26 + (year - 2012) * 0.92
