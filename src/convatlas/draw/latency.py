"""Models compared in one chart: accuracy, or size, against latency or number of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.pareto import pareto_front
from convatlas.draw.names import Names
from convatlas.draw.style import (
    INK,
    NOTE,
    PAPER,
    QUIET,
    RIGHT,
    WRONG,
    default_settings,
    lay_out,
    new_figure,
    save_figure,
    style_axes,
)
from convatlas.draw.ticks import set_log_axis
from convatlas.errors import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

MAX_NAME = 48
"""Maximum length of the name of a model in the chart; of a longer one the middle is left out."""

MIN_POINTS = 5.0
"""Minimum length of an axis in percentage points, so that noise does not look like a difference."""

COLORS = (RIGHT, "#a8651b", WRONG, "#6b5b95", "#3f7a3e", NOTE)
"""Colors of the models, of their dots and names."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of the series, such as engines."""


Place = tuple[float, float]
"""x and y of a point in the chart."""


@dataclass(frozen=True)
class Measured:
    """A model in the chart.

    name: of the model. series: what has one marker, such as its engine. x: in milliseconds or a count. y: in percent or
    millions. x_high: the 95th percentile, the end of a whisker. y_low, y_high: the bounds of the 95 % interval.
    """

    name: str
    series: str
    x: float
    y: float
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None


@default_settings()
def trade_off(
    points: Sequence[Measured], *, x_title: str, y_title: str, with_front: bool = True, path: str | Path | None = None
) -> Figure:  # fmt: skip
    """Draw models as dots, x on a logarithmic axis of at least one octave, y in percent or from zero.

    If y is a percentage, a dashed line connects the dots that no other one dominates, unless with_front is off. Dots of
    one model have one color and are connected; its name and its interval are drawn at the one with the smallest x.
    x_title, y_title: with their units.
    """
    figure = new_figure(7, 4.4)
    axes = figure.add_subplot()
    is_percentage = y_title.endswith("%")
    front: list[Measured] = []
    if is_percentage and with_front:
        front = [points[i] for i in pareto_front([point.y for point in points], [point.x for point in points])]
        axes.step([point.x for point in front], [point.y for point in front], where="post", color=QUIET, linewidth=1,
                  linestyle="--", zorder=0)  # fmt: skip
    series = list(dict.fromkeys(point.series for point in points))
    models = list(dict.fromkeys(point.name for point in points))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(models)}
    for point in points:
        _plot(axes, point, colors[point.name], MARKERS[series.index(point.series) % len(MARKERS)])
    first: dict[str, Measured] = {}
    for point in sorted(points, key=lambda point: point.x):
        if point.name in first:
            start = first[point.name]
            axes.plot(
                [start.x, point.x], [start.y, point.y], color=colors[point.name], linewidth=0.8, alpha=0.6, zorder=1
            )
        else:
            first[point.name] = point
            if point.y_low is not None and point.y_high is not None:
                color = colors[point.name]
                axes.plot([point.x] * 2, [point.y_low, point.y_high], color=color, linewidth=1.2, alpha=0.6, zorder=2)
    ends = [point.x_high for point in points if point.x_high is not None]
    set_log_axis(axes.xaxis, [*(point.x for point in points), *ends], min_ratio=2, margin=0.25)
    _set_height(axes, points, is_percentage=is_percentage)
    style_axes(axes, x=x_title, title=y_title)
    if len(series) > 1:
        _add_legend(axes, series)
    lay_out(figure)
    names = Names()
    texts = [(point, names.label(_short(name)), colors[name]) for name, point in first.items()]
    intervals = [
        ((point.x, point.y_low), (point.x, point.y_high))
        for point in first.values()
        if point.y_low is not None and point.y_high is not None
    ]
    corners = [(a, (b.x, a.y), b) for a, b in pairwise(front)]
    steps = [line for a, corner, b in corners for line in (((a.x, a.y), corner), (corner, (b.x, b.y)))]
    _annotate(figure, axes, texts, points, [*intervals, *steps])
    names.add_legend(figure)
    return save_figure(figure, path)


def _short(name: str) -> str:
    """Return a name without the middle of what is before its last part in parentheses, such as the network's name."""
    head, parenthesis, last = name.rpartition(" (")
    if not parenthesis or len(last) > MAX_NAME // 2:
        return shorten(name, MAX_NAME)
    return f"{shorten(head, MAX_NAME - len(last) - 2)} ({last}"


def _plot(axes: Any, point: Measured, color: str, marker: str) -> None:
    if point.x_high is not None:
        axes.plot([point.x, point.x_high], [point.y, point.y], color=color, linewidth=1.2, alpha=0.6, zorder=2)
    axes.scatter(point.x, point.y, s=34, color=color, marker=marker, linewidths=0, zorder=3)


def _set_height(axes: Any, points: Sequence[Measured], *, is_percentage: bool) -> None:
    values = [value for point in points for value in (point.y, point.y_low, point.y_high) if value is not None]
    if not is_percentage:
        axes.set_ylim(0, 1.25 * max(values) or 1)
        return
    low, high = min(values), max(values)
    margin = max(0.15 * (high - low), (MIN_POINTS - (high - low)) / 2)
    low, high = max(0.0, low - margin), min(100.0, high + margin)
    axes.set_ylim(min(low, high - MIN_POINTS), high + 0.01 * (high - low))


def _add_legend(axes: Any, series: Sequence[str]) -> None:
    names = Names()
    handles = [
        axes.scatter([], [], s=34, color=INK, marker=marker, linewidths=0, label=names.label(name, MAX_NAME))
        for name, marker in zip(series, cycle(MARKERS), strict=False)
    ]
    axes.legend(handles=handles, frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1))


OFFSETS = (
    (7, 0, "left", "center"), (-7, 0, "right", "center"), (5, 5, "left", "bottom"), (-5, 5, "right", "bottom"),
    (5, -5, "left", "top"), (-5, -5, "right", "top"),
)  # fmt: skip
"""Places of a text beside its point: offsets in points, and alignments; the first that is free is used."""


def _annotate(
    figure: Figure, axes: Any, texts: Sequence[tuple[Measured, str, str]], points: Sequence[Measured],
    lines: Sequence[tuple[Place, Place]],
) -> None:  # fmt: skip
    """Write (point, text, color) beside each point, at a place where it covers no other text, no point and no line.

    lines: horizontal and vertical ones, by their ends. Where no place is free, texts cover lines: they have the
    background of the page.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    inside = axes.get_window_extent(renderer)
    taken = [*(_box(axes, point) for point in points), *(_line_box(axes, *ends) for ends in lines)]
    ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
    for point, text, color in texts:
        at = (point.x, point.y)
        how = {"textcoords": "offset points", "fontsize": 8, "color": color, "bbox": ground, "zorder": 2.5}
        for number, (right, up, horizontal, vertical) in enumerate((*OFFSETS, *_further(len(texts)))):
            drawn = axes.annotate(text, at, xytext=(right, up), ha=horizontal, va=vertical, **how)
            box = drawn.get_window_extent(renderer)
            fits = box.x0 >= inside.x0 and box.x1 <= (inside.x1 if number < len(OFFSETS) else figure.bbox.x1)
            if fits and not any(box.overlaps(other) for other in taken):
                break
            drawn.remove()
        else:
            is_left = axes.transData.transform(at)[0] < (inside.x0 + inside.x1) / 2
            place = ((7, 0), "left") if is_left else ((-7, 0), "right")
            drawn = axes.annotate(text, at, xytext=place[0], ha=place[1], va="center", **how)
            box = drawn.get_window_extent(renderer)
        taken.append(box)


def _box(axes: Any, point: Measured) -> Bbox:
    """Return what a point and the whisker to its right cover, in pixels."""
    from matplotlib.transforms import Bbox

    (x, y), (end, _) = axes.transData.transform([(point.x, point.y), (point.x_high or point.x, point.y)])
    return Bbox.from_extents(x - 4, y - 4, max(x, end) + 4, y + 4)


def _line_box(axes: Any, start: Place, end: Place) -> Bbox:
    """Return what a line covers, in pixels."""
    from matplotlib.transforms import Bbox

    (x0, y0), (x1, y1) = axes.transData.transform([start, end])
    return Bbox.from_extents(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)


def _further(count: int) -> list[tuple[int, int, str, str]]:
    """Return places that are further up and down, for points that lie on each other."""
    heights = [sign * 11 * step for step in range(1, count + 2) for sign in (1, -1)]
    return [(7, height, "left", "center") for height in heights] + [
        (-7, height, "right", "center") for height in heights
    ]
