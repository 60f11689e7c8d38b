"""Colors, figures and files of all drawings.

Figures are made without pyplot: the backend of the caller, its settings and its open figures stay as they are.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.errors import InputError, printable, shorten
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

FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans",
    "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Emoji", "Segoe UI Emoji", "Segoe UI Symbol", "Symbola",
)  # fmt: skip
"""Fonts for characters that the default font lacks; those that are installed are used."""


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


def label(text: object, limit: int = 60) -> str:
    """Return text from outside, such as a class name, for a figure; every such text goes through here.

    The result is one line of about `limit` characters. It is never read as a formula, whatever dollars it has, and a
    legend shows it. Characters that no installed font has become escapes such as \\u732b.
    """
    line = printable(str(text))
    if not line.isascii():
        line = "".join(_drawable(line))
    line = shorten(line, limit).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line  # legends leave out names that begin with an underscore


def _drawable(text: str) -> Iterator[str]:
    """Yield the characters of a text, or what stands for them where no font has them."""
    from matplotlib.font_manager import FontProperties, findfont

    paths = [findfont(FontProperties()), *fallback_fonts().values()]
    for character in text:
        if character.isascii() or any(ord(character) in _characters(path) for path in paths):
            yield character
        elif unicodedata.category(character) not in ("Cf", "Mn"):  # joiners and variants of emoji need no escape
            yield character.encode("unicode_escape").decode("ascii")


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points of a font file."""
    from matplotlib.font_manager import get_font

    return frozenset(get_font(path).get_charmap())


def fallback_fonts() -> dict[str, str]:
    """Return the installed fonts of `FALLBACK_FONTS`: name -> file."""
    from matplotlib.font_manager import fontManager

    installed = {font.name: str(font.fname) for font in fontManager.ttflist}
    return {name: installed[name] for name in FALLBACK_FONTS if name in installed}


def lay_out(figure: Figure) -> None:
    """Fit the axes of a figure into its page."""
    _use_fallback_fonts(figure)
    figure.tight_layout()


def _use_fallback_fonts(figure: Figure) -> None:
    from matplotlib.text import Text

    if names := list(fallback_fonts()):
        for text in figure.findobj(Text):
            families = [name for name in text.get_fontfamily() if name not in names]
            text.set_fontfamily([*families, *names])


def encode(figure: Figure, file_format: str = "png") -> bytes:
    """Return a figure as the bytes of a file of that format."""
    _use_fallback_fonts(figure)
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
