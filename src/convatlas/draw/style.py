"""Colors, figures and files of all drawings.

Figures are made without pyplot: the backend of the caller, its settings and its open figures stay as they are.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.errors import InputError
from convatlas.system.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1f2933"
"""Text and lines that are to be read."""
QUIET = "#9aa5b1"
"""Axes, frames, and what is less important."""
PAPER = "#ffffff"
"""The background."""
RIGHT = "#1f7a8c"
"""Correct predictions, and the val split."""
WRONG = "#d1495b"
"""Errors."""
TRAIN = "#e09f3e"
"""The train split."""

FORMATS = (".svg", ".png", ".pdf")
"""Suffixes of files that a drawing can be written to."""

DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)


def new_page(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure of that size in inches, and axes that cover it: in inches, y downwards, nothing drawn."""
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return figure, axes


def style_axes(axes: Any, *, x: str = "", y: str = "", title: str = "") -> None:
    """Leave only the left and the bottom spine, and set small labels."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    axes.tick_params(colors=INK, labelsize=8)
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.set_title(title, loc="left", fontsize=9, color=INK)


def encode(figure: Figure, file_format: str = "png") -> bytes:
    """Return a figure as the bytes of a file of that format."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format)
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path | None) -> Figure:
    """Write a figure atomically, if there is a path, and return it.

    Raises InputError for a suffix that is not in `FORMATS`.
    """
    if path is not None:
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            known, suffix = ", ".join(FORMATS), path.suffix or "none"
            raise InputError(f"{path}: the suffix of a drawing must be one of {known}, got {suffix}")
        encoded = encode(figure, path.suffix.lower().removeprefix("."))
        with atomic(path) as file:
            file.write(encoded)
    return figure
