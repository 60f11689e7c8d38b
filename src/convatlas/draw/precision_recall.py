"""Plots of detectors: precision against recall, and missed and false objects by size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convatlas.draw.names import MAX_NAME, Names
from convatlas.draw.style import (
    INK,
    NOTE,
    QUIET,
    RIGHT,
    TRAIN,
    WRONG,
    default_settings,
    lay_out,
    new_figure,
    save_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_HIGHLIGHTED = 10
"""Number of classes, those with the lowest average precision, whose curves have a color and a name."""

RECALLS = np.linspace(0, 1, 101)
"""The recalls of interpolated curves (COCO)."""


@default_settings()
def precision_recall(
    precision: NDArray[np.float64], average_precisions: NDArray[np.float64], classes: Sequence[str],
    titles: Sequence[str], *, path: str | Path | None = None,
) -> Figure:  # fmt: skip
    """Draw interpolated precision against recall, a line for each class, one plot for each title.

    Of many classes, those with the lowest average precision in the first plot have a color and a name.
    precision: (plots, 101, classes), NaN for a class without objects. average_precisions: (plots, classes).
    """
    figure = new_figure(7.4, 3.4)
    names = Names(classes)
    order = [k for k in np.argsort(-average_precisions[0], kind="stable") if not math.isnan(average_precisions[0, k])]
    highlighted = order[-NUM_HIGHLIGHTED:]
    plots = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for plot, (axes, title) in enumerate(zip(plots, titles, strict=True)):
        for k in order:
            how: dict[str, Any] = {"linewidth": 0.7, "color": QUIET}
            if k in highlighted:
                name = f"{names.label(classes[k], MAX_NAME)} {_values(average_precisions[:, k])}"
                how = {"linewidth": 1.5, "color": f"C{highlighted.index(k)}", "label": name}
            axes.plot(RECALLS, precision[plot, :, k], **how)
        style_axes(axes, x="recall", y="" if plot else "precision", title=title)
        axes.set_xlim(-0.02, 1.03)
        axes.set_ylim(-0.02, 1.05)
    if highlighted:
        legend = plots[-1].legend(
            frameon=False, fontsize=7, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5),
            title=f"average precision,\n{' / '.join(titles)}", title_fontproperties={"size": 7},
        )  # fmt: skip
        legend.get_title().set_color(NOTE)
    lay_out(figure)
    names.add_legend(figure)
    return save_figure(figure, path)


def _values(numbers: NDArray[np.float64]) -> str:
    return " / ".join("-" if math.isnan(number) else f"{number:.1%}" for number in numbers.tolist())


@default_settings()
def missed_and_false(counts: Mapping[str, tuple[int, int, int]], *, path: str | Path | None = None) -> Figure:
    """Draw bars of numbers of objects for each size. counts: size -> (detected, missed, false)."""
    figure = new_figure(4.4, 2.9)
    axes = figure.add_subplot()
    heights = list(zip(*counts.values(), strict=True))
    for number, (name, color, values) in enumerate(
        zip(("detected", "missed", "false"), (RIGHT, TRAIN, WRONG), heights, strict=True)
    ):
        places = [place + 0.27 * (number - 1) for place in range(len(values))]
        axes.bar(places, values, width=0.25, color=color, label=name)
        for place, value in zip(places, values, strict=True):
            axes.text(place, value, f"{value:,}", fontsize=6.5, color=INK, ha="center", va="bottom")
    axes.set_xticks(range(len(counts)), list(counts))
    style_axes(axes, y="objects")
    axes.set_ylim(0, 1.12 * max(1, *(value for values in heights for value in values)))
    locator: Any = axes.yaxis.get_major_locator()
    locator.set_params(integer=True)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    lay_out(figure)
    return save_figure(figure, path)
