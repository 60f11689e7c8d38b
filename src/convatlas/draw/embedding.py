"""The plot of an embedding: images as points in the plane of two principal components."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convatlas.draw.names import MAX_NAME, Names
from convatlas.draw.style import INK, QUIET, default_settings, label, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "*", "p", "h")
"""One for each label, so that the labels differ in black and white, too."""

COLORS = (
    "#1f7a8c", "#e09f3e", "#8a6fb0", "#5b8c5a", "#c43d50", "#4f7cac", "#a68a64", "#c9788f", "#1f2933", "#d9763a",
    "#7d8f99", "#335c67",
)  # fmt: skip

FEW, MANY = 300, 5000
"""Numbers of points up to which they are large, and from which they are drawn as pixels in files of vectors."""


@default_settings()
def draw_embedding(
    places: NDArray[Any], labels: Sequence[str], shares: tuple[float, float], *, title: str, noun: str = "image",
    path: str | Path | None = None,
) -> Figure:  # fmt: skip
    """Draw points (n, 2), each label with a marker of its own; the labels beyond the most frequent ones share one.

    shares: of the variance, of both components. noun: what a point is.
    """
    counts = Counter(filter(None, labels))
    few = len(counts) <= len(MARKERS)
    shown = sorted(name for name, count in counts.most_common(len(MARKERS)) if few or count > 1)
    figure = new_figure(8.4, 4.6)
    legend = bool(counts)
    axes = figure.add_axes((0.08, 0.11, 0.6 if legend else 0.88, 0.79))
    names, all_labels = Names(shown), np.array(labels, dtype=object)
    size = 34 if len(places) <= FEW else 10 if len(places) <= MANY else 4
    how: dict[str, Any] = {"s": size, "linewidths": 0.5, "rasterized": len(places) > MANY}
    for number, name in enumerate(shown):
        chosen = all_labels == name
        axes.scatter(
            *places[chosen].T, marker=MARKERS[number], facecolors=COLORS[number], edgecolors="white",
            label=f"{names.label(name, MAX_NAME)} ({counts[name]:,})", **how,
        )  # fmt: skip
    others = ~np.isin(all_labels, shown)
    if others.any():
        rest = len(counts) - len(shown)
        text = f"{f'{rest:,} other labels' if rest else 'without label'} ({others.sum():,})" if legend else ""
        axes.scatter(*places[others].T, color=QUIET, marker=".", label=text, zorder=0.5, **how)
    first, second = (f"{share:.1%} of the variance" for share in shares)
    style_axes(axes, x=f"first principal component, {first}", y=f"second principal component, {second}")
    figure.text(0.08, 0.945, label(title, 110), fontsize=9, color=INK, weight="bold")
    if legend:
        axes.legend(
            frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.02, 1.0), handletextpad=0.4,
            markerscale=max(1.0, (34 / size) ** 0.5), title=f"label ({noun}s)", title_fontsize=8, alignment="left",
        )  # fmt: skip
    names.add_legend(figure)
    return save_figure(figure, path)
