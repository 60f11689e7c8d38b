"""Figures of a search: accuracy against latency with the Pareto front, and the choices as parallel coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
from convatlas.draw.ticks import set_log_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = {"candidate": ("o", RIGHT), "baseline": ("s", NOTE), "pretrained": ("^", WRONG)}
"""Marker and color of each kind of network."""


@dataclass(frozen=True)
class Tried:
    """A network of a search. x: latency in ms. y: accuracy in percent. is_full: it had all of a trial's time."""

    name: str
    kind: str
    x: float
    y: float
    is_full: bool
    choices: Mapping[str, str]


@default_settings()
def front_chart(
    tried: Sequence[Tried], front: Sequence[str], best: str, *, limit: float | None = None,
    path: str | Path | None = None,
) -> Figure:  # fmt: skip
    """Draw all networks; those that had all of a trial's time are filled. front, best: names. limit: of the latency."""
    figure = new_figure(7, 4.4)
    axes = figure.add_subplot()
    line = sorted((each.x, each.y) for each in tried if each.name in front and each.is_full)
    if line:
        axes.step([x for x, _ in line], [y for _, y in line], where="post", color=QUIET, linewidth=1, linestyle="--",
                  zorder=0, label="Pareto front")  # fmt: skip
    for kind, (marker, color) in MARKERS.items():
        for is_full in (False, True):
            points = [each for each in tried if (each.kind, each.is_full) == (kind, is_full)]
            if points:
                axes.scatter(
                    [each.x for each in points], [each.y for each in points], marker=marker, s=30, linewidths=1,
                    facecolors=color if is_full else "none", edgecolors=color, zorder=2,
                    label=kind if is_full else f"{kind}, stopped early",
                )  # fmt: skip
    winner = next((each for each in tried if each.name == best and each.is_full), None)
    if winner is not None:
        axes.annotate(label(best), (winner.x, winner.y), (6, 6), textcoords="offset points", color=INK, fontsize=8)
    if limit is not None:
        axes.axvline(limit, color=WRONG, linewidth=1, linestyle=":", label="limit")
    ends = [each.x for each in tried] + ([] if limit is None else [limit])
    set_log_axis(axes.xaxis, ends, min_ratio=2, margin=0.25)
    axes.margins(y=0.12)
    style_axes(axes, x="milliseconds per image", title="accuracy on val, %")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=3)
    lay_out(figure)
    return save_figure(figure, path)


@default_settings()
def parallel_coordinates(
    tried: Sequence[Tried], choices: Mapping[str, Sequence[str]], *, path: str | Path | None = None
) -> Figure:
    """Draw a line for each candidate through its choices; the darker, the higher its rank in accuracy."""
    names = list(choices)
    figure = new_figure(max(5.0, 0.75 * len(names) + 1), 4)
    axes = figure.add_subplot()
    ranked = sorted((each for each in tried if each.choices), key=lambda each: each.y)
    for rank, each in enumerate(ranked):
        heights = [_height(choices[name], each.choices[name]) for name in names]
        share = (rank + 1) / len(ranked)
        color, alpha, width = (WRONG, 1.0, 2) if rank == len(ranked) - 1 else (RIGHT, 0.08 + 0.5 * share**2, 1)
        axes.plot(range(len(names)), heights, color=color, alpha=alpha, linewidth=width)
    for i, name in enumerate(names):
        for option in choices[name]:
            axes.text(i + 0.06, _height(choices[name], option), label(option, 12), fontsize=7, va="center", color=INK)
    axes.set_xticks(range(len(names)), [label(name, 24) for name in names], rotation=60, ha="right", fontsize=7)
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(names) - 0.2)
    style_axes(axes, title="choices of the candidates; red: the most accurate one")
    axes.grid(axis="x", color=QUIET, linewidth=0.5, alpha=0.5)
    lay_out(figure)
    return save_figure(figure, path)


def _height(options: Sequence[str], option: str) -> float:
    return list(options).index(option) / max(1, len(options) - 1)


LINES = {
    "compound": ("o", WRONG, "-"), "fast": ("v", QUIET, "-"), "depth": ("s", RIGHT, "--"), "width": ("^", NOTE, "-."),
    "resolution": ("D", INK, ":"),
}  # fmt: skip
"""Marker, color and line of each rule of scaling."""


@default_settings()
def scaling_chart(lines: Mapping[str, Sequence[tuple[float, float]]], *, path: str | Path | None = None) -> Figure:
    """Draw accuracy in percent against millions of MACs for each rule of scaling (as figure 8 of Tan and Le 2019)."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for name, points in lines.items():
        marker, color, line = LINES[name]
        ordered = sorted(points)
        axes.plot([x for x, _ in ordered], [y for _, y in ordered], marker=marker, color=color, linestyle=line,
                  linewidth=1.5, markersize=5, label="fast (dWr)" if name == "fast" else name)  # fmt: skip
    set_log_axis(axes.xaxis, [x for points in lines.values() for x, _ in points], min_ratio=2, margin=0.25)
    axes.margins(y=0.12)
    style_axes(axes, x="millions of MACs per image", title="accuracy on val, %")
    axes.legend(frameon=False, fontsize=8, loc="best")
    lay_out(figure)
    return save_figure(figure, path)
