"""Colors, figures and files of all drawings.

Figures are made without pyplot, with matplotlib's default settings and the fonts of the caller: the backend of the
caller, its settings and its open figures stay as they are.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
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
NOTE = "#616e7c"
"""Text that is less important."""
PAPER = "#ffffff"
"""The background."""
RIGHT = "#1f7a8c"
"""Correct predictions, and the val split."""
WRONG = "#c43d50"
"""Errors."""
TRAIN = "#e09f3e"
"""The train split."""
RIGHT_CELL, WRONG_CELL = "#17687a", "#b5384b"
"""Cells of correct predictions and of errors; white text is readable on them."""

DARK = {
    INK: "#e4e7eb", QUIET: "#6b7785", NOTE: "#9aa5b1", PAPER: "#12171d", RIGHT: "#4fb3c6", WRONG: "#f0768a",
    TRAIN: "#f0b357",
}  # fmt: skip
"""The colors on a dark background; others are the same on both."""

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


OF_THE_CALLER = frozenset(
    ("backend", "backend_fallback", "interactive", "date.epoch", "font.family", "font.sans-serif")
)
"""Settings of matplotlib that are not replaced by the default ones."""


@contextmanager
def default_settings() -> Iterator[None]:
    """Draw with matplotlib's default settings; those of the caller return at the end. Decorates every drawing."""
    import matplotlib

    ours = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in OF_THE_CALLER}
    with matplotlib.rc_context(ours):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches. Notebooks show it, with and without pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    figure._repr_png_ = partial(encode, figure)  # type: ignore[attr-defined]  # notebooks look for it
    return figure


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
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors=INK, labelsize=8)
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
        line = "".join(_with_escapes(line))
    line = shorten(line, limit).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line  # legends leave out names that begin with an underscore


def is_drawable(text: str) -> bool:
    """Return whether the installed fonts have the characters of a text."""
    line = printable(text)
    return line.isascii() or all(_has_glyph(character) or _needs_no_glyph(character) for character in line)


def _with_escapes(text: str) -> Iterator[str]:
    """Yield the characters of a text, or what stands for them where no font has them."""
    for character in text:
        if _has_glyph(character):
            yield character
        elif not _needs_no_glyph(character):
            yield character.encode("unicode_escape").decode("ascii")


def _has_glyph(character: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont

    if character.isascii():
        return True
    paths = (findfont(FontProperties()), *fallback_fonts().values())
    return any(ord(character) in _characters(path) for path in paths)


def _needs_no_glyph(character: str) -> bool:
    """Return whether a character is a joiner or a variant of emoji."""
    return unicodedata.category(character) in ("Cf", "Mn")


def font_has(path: str, text: str) -> bool:
    """Return whether a font file has all characters of a text."""
    return all(ord(character) in _characters(path) for character in text)


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


@default_settings()
def encode(figure: Figure, file_format: str = "png", **how: Any) -> bytes:
    """Return a figure as the bytes of a file of that format. how: other arguments of `Figure.savefig`."""
    _use_fallback_fonts(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, **{"dpi": DPI, "facecolor": figure.get_facecolor(), **how})
    return buffer.getvalue()


def encode_for_page(figure: Figure, *, crop: bool = False) -> bytes:
    """Return a figure as SVG without a background, whose colors follow the color scheme of the reader.

    crop: leave out what is empty at the borders.
    """
    how: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.05} if crop else {}
    drawn = encode(figure, "svg", facecolor="none", **how).decode()
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", drawn, flags=re.S)
    names = {light: f"c{number}" for number, light in enumerate(DARK)}
    for light, name in names.items():
        svg = svg.replace(light, f"var(--{name})")
    light, dark = (
        "".join(f"--{names[color]}:{(color, other)[scheme]};" for color, other in DARK.items()) for scheme in (0, 1)
    )
    style = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return svg.replace("<defs>", f"<defs><style>{style}</style>", 1).encode()


def check_figure_path(path: Path) -> None:
    """Raise InputError for a suffix that is not in `FORMATS`."""
    if path.suffix.lower() not in FORMATS:
        known, suffix = ", ".join(FORMATS), path.suffix or "none"
        raise InputError(f"{path}: the suffix of a drawing must be one of {known}, got {suffix}")


def save_figure(figure: Figure, path: str | Path | None) -> Figure:
    """Write a figure atomically, if there is a path, and return it.

    Raises InputError for a suffix that is not in `FORMATS`.
    """
    if path is not None:
        path = Path(path)
        check_figure_path(path)
        encoded = encode(figure, path.suffix.lower().removeprefix("."))
        with atomic(path) as file:
            file.write(encoded)
    return figure
