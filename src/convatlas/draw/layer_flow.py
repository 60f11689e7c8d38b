"""Charts of statistics by layer: over a training, and along a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convatlas.draw.style import (
    INK,
    NOTE,
    QUIET,
    RIGHT,
    WRONG,
    default_settings,
    label,
    lay_out,
    new_figure,
    save_figure,
    style_axes,
)
from convatlas.draw.ticks import log_ticks, set_log_axis, tick_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LABELS = 26
"""Maximum number of layers whose names are at the axis."""

MAX_NAME = 22
"""Maximum length of the name of a layer."""

MIN_DECADES = 3
"""Minimum length of a logarithmic scale of grays, in powers of ten; 0 is at its end."""

Values = Sequence[float | None]


@dataclass(frozen=True)
class FlowPanel:
    """One statistic of layers over a training.

    layers: their paths, from the input to the output. values: for each layer one for each step; None where there is
    none. logarithmic: whether colors are on a logarithmic scale; otherwise they range from 0 to 1.
    marked: (layer, step) of the cell with a cross.
    """

    title: str
    layers: Sequence[str]
    values: Sequence[Values]
    logarithmic: bool = True
    marked: tuple[int, int] | None = None


@dataclass(frozen=True)
class FlowLine:
    """One statistic of the layers, in order. dashed: draw a dashed line with squares."""

    name: str
    values: Values
    dashed: bool = False


@default_settings()
def flow_over_time(panels: Sequence[FlowPanel], epochs: Sequence[int], *, path: str | Path | None = None) -> Figure:
    """Draw statistics as heat maps: layers from the input (top) to the output, against the measured steps.

    epochs: that of each step. Darker is larger, so that the map can be read without colors.
    """
    rows = max(len(panel.layers) for panel in panels)
    figure = new_figure(3.1 * len(panels) + 0.4, min(7.5, 1.3 + 0.17 * max(6, min(rows, MAX_LABELS + 6))))
    for number, panel in enumerate(panels, 1):
        _plot_map(figure, figure.add_subplot(1, len(panels), number), panel, epochs)
    lay_out(figure)
    return save_figure(figure, path)


def _plot_map(figure: Figure, axes: Any, panel: FlowPanel, epochs: Sequence[int]) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    values = np.array([[_number(value) for value in row] for row in panel.values], dtype=float)
    positive = values[np.isfinite(values) & (values > 0)]
    norm: Any = Normalize(0, 1)
    colors: Any = colormaps["Greys"]
    if panel.logarithmic:
        colors = ListedColormap(colors(np.linspace(0.12, 1, 256)))  # white is for what is not measured
        high = float(positive.max()) if len(positive) else 1.0
        low = min(float(positive.min()) if len(positive) else 1.0, high / 10**MIN_DECADES)
        norm = LogNorm(low, high)
        values = np.where(np.isfinite(values), values.clip(low), np.nan)
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap=colors, norm=norm)
    style_axes(axes, x="epoch", title=panel.title)
    _name_layers(axes.yaxis, panel.layers)
    shown = _spread(len(epochs), 6)
    axes.set_xticks(shown, ["start" if i == 0 else str(epochs[i]) for i in shown])
    if panel.marked is not None:
        layer, step = panel.marked
        axes.plot([step], [layer], marker="x", color=WRONG, markersize=8, markeredgewidth=2.2, clip_on=False)
    bar = figure.colorbar(image, ax=axes, pad=0.03, aspect=30)
    if panel.logarithmic:
        ticks = log_ticks(norm.vmin, norm.vmax)
        bar.set_ticks(ticks, labels=tick_texts(ticks), minor=False)
        bar.minorticks_off()
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_edgecolor(QUIET)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _name_layers(axis: Any, layers: Sequence[str]) -> None:
    shown = _spread(len(layers), MAX_LABELS)
    axis.set_ticks(shown, [label(layers[i], MAX_NAME) for i in shown])
    axis.set_tick_params(labelsize=6.5)


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` indices, evenly spaced, with the first and the last one."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


@default_settings()
def flow_along_network(
    lines: Sequence[FlowLine], layers: Sequence[str], *, title: str = "", path: str | Path | None = None
) -> Figure:
    """Draw statistics of the layers, on a logarithmic axis, from the input (left) to the output (right)."""
    figure = new_figure(7.4, 3.6)
    axes = figure.add_subplot()
    drawn: list[float] = []
    for line, color in zip(lines, (RIGHT, WRONG, NOTE), strict=False):
        points = [(i, value) for i, value in enumerate(line.values) if value is not None and value > 0]
        drawn.extend(value for _, value in points)
        how: dict[str, Any] = {"linestyle": "-", "marker": "o", "markerfacecolor": color}
        if line.dashed:
            how = {"linestyle": "--", "marker": "s", "markerfacecolor": "none"}
        axes.plot([i for i, _ in points], [value for _, value in points], color=color, linewidth=1.5, label=line.name,
                  markersize=3.5 if len(points) < 60 else 2, **how)  # fmt: skip
    style_axes(axes, title=title)
    set_log_axis(axes.yaxis, drawn)
    _name_layers(axes.xaxis, layers)
    axes.tick_params(axis="x", rotation=90)
    axes.grid(axis="y", color=QUIET, linewidth=0.4, alpha=0.5)
    axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="best")
    lay_out(figure)
    return save_figure(figure, path)
