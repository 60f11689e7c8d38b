"""Colors and figures that all charts share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.system.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


INK, QUIET, RIGHT, WRONG, TRAIN = "#1f2933", "#9aa5b1", "#1f7a8c", "#d1495b", "#e09f3e"


def _figure(width: float, height: float) -> Figure:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, facecolor="white")


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _save(figure: Figure, path: Path) -> None:
    drawn = png(figure)
    with atomic(path) as file:
        file.write(drawn)


def _plain_axes(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    axes.tick_params(colors=INK, labelsize=8)
