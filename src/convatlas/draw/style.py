"""Colors, figures and axes that all drawings share.

Figures are made without pyplot, so the caller's backend and open figures are not touched.
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
"""Text and axes."""
QUIET = "#9aa5b1"
"""What stays in the background."""
RIGHT = "#1f7a8c"
"""Val, and correct predictions."""
WRONG = "#d1495b"
"""Errors."""
TRAIN = "#e09f3e"
"""Train."""

FORMATS = (".png", ".svg", ".pdf")
"""Suffixes of files that a figure can be saved to."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, facecolor="white")


def encode(figure: Figure, file_format: str = "png") -> bytes:
    """Return a figure as the bytes of an image file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format)
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path | None) -> Figure:
    """Save a figure, atomically, if a path is given; return the figure.

    Raises InputError for a suffix that is not one of `FORMATS`.
    """
    if path is not None:
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            raise InputError(f"{path}: the suffix must be one of {', '.join(FORMATS)}, got {path.suffix!r}")
        encoded = encode(figure, path.suffix.lower().removeprefix("."))
        with atomic(path) as file:
            file.write(encoded)
    return figure


def plain_axes(axes: Any) -> None:
    """Draw axes with two spines, in the colors of the style."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    axes.tick_params(colors=INK, labelsize=8)
