"""A chart of one metric by arm: a circle for each seed, a bar for their mean, a note on each arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from convatlas.draw.style import INK, NOTE, QUIET, label, lay_out, new_figure, style_axes
from convatlas.experiments.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 0.36
"""Height of an arm in inches."""


def draw_arms(
    results: Results, arms: Mapping[str, str], *, metric: str = "accuracy", x: str = "test accuracy"
) -> Figure:
    """Return the chart of a metric in percent. arms: name -> note below it, from top to bottom."""
    figure = new_figure(6.8, 0.75 + ROW * len(arms))
    axes = figure.add_subplot()
    for place, arm in enumerate(arms):
        values = 100 * results.values(arm, metric)
        axes.axhline(place, color=QUIET, linewidth=0.4)
        axes.plot(values, [place] * len(values), "o", color=INK, markerfacecolor="none", markersize=4)
        axes.plot([values.mean()], [place], "|", color=INK, markersize=13, markeredgewidth=2)
        axes.annotate(f"{values.mean():.1f}", (1, place), (4, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=8, color=INK, va="center")  # fmt: skip
    names = [f"{label(arm)}\n{label(note)}" if note else label(arm) for arm, note in arms.items()]
    axes.set_yticks(range(len(arms)), names)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    style_axes(axes, x=f"{x} in %; circles: seeds, bar and number: their mean")
    axes.tick_params(axis="y", length=0, labelsize=7, labelcolor=INK)
    axes.xaxis.label.set_color(NOTE)
    lay_out(figure)
    return figure


def cost_note(results: Results, arm: str) -> str:
    """Return "19,306 parameters, 423,360 multiply-adds" of an arm, which has these metrics."""
    return f"{results.mean(arm, 'parameters'):,.0f} parameters, {results.mean(arm, 'macs'):,.0f} multiply-adds"
