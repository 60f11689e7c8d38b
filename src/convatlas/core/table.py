"""Small tables and texts: for the terminal, and as HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SCREEN_LINES, SCREEN_COLUMNS, SCREEN_CHARACTERS = 30, 200, 2000
"""What `repr` shows at most; a longer line is cut."""


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of text; `str` and `repr` align the columns, notebooks show HTML.

    columns: the headings; empty for a table without a heading line.
    right: indices of the columns that are aligned to the right, such as numbers.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()

    @classmethod
    def of_pairs(cls, pairs: Mapping[str, str]) -> Table:
        """Return a table of names and values, one pair a line; pairs with an empty value are left out."""
        return cls((), tuple((name, value) for name, value in pairs.items() if value))

    def __str__(self) -> str:
        lines = [self.columns, *self.rows] if self.columns else list(self.rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(self._line(cells, widths) for cells in lines)

    def __repr__(self) -> str:
        return fit_screen(str(self))

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        aligned = (
            cell.rjust(width) if i in self.right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    def _repr_html_(self) -> str:
        head = f"<thead>{self._html_row('th', self.columns)}</thead>" if self.columns else ""
        body = "".join(self._html_row("td", row) for row in self.rows)
        return _scrolling(f"<table>{head}<tbody>{body}</tbody></table>", len(self.rows))

    def _html_row(self, tag: str, cells: Iterable[str]) -> str:
        parts = (
            f'<{tag} style="text-align: {"right" if i in self.right else "left"}">{html.escape(cell)}</{tag}>'
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(parts)}</tr>"


class Text(str):
    """A text of several lines: `print` shows all of it, `repr` what fits a screen, notebooks a block that scrolls."""

    def __repr__(self) -> str:
        return fit_screen(str(self))

    def _repr_html_(self) -> str:
        return _scrolling(f"<pre>{html.escape(self)}</pre>", self.count("\n"))


def fit_screen(text: str) -> str:
    """Return a text that fits a screen: of a longer one the first lines and the last, and how many are left out."""
    lines = text.split("\n")
    short = [line if len(line) <= SCREEN_COLUMNS else f"{line[: SCREEN_COLUMNS - 1]}…" for line in lines]
    if len(short) <= SCREEN_LINES and sum(map(len, short)) + len(short) <= SCREEN_CHARACTERS:
        return "\n".join(short)
    first, last = short[: SCREEN_LINES - 2], short[-1]
    while sum(map(len, (*first, last))) + len(first) > SCREEN_CHARACTERS - 60:
        first.pop()
    left_out = len(lines) - len(first) - 1
    return "\n".join([*first, f"… {left_out:,} more lines; print() shows all", last])


def _scrolling(inner: str, lines: int) -> str:
    """Return HTML that scrolls where it has more lines than a screen."""
    return inner if lines <= SCREEN_LINES else f'<div style="max-height: 32em; overflow: auto">{inner}</div>'


def by_x(sizes: Iterable[int]) -> str:
    """Return "6 x 28 x 28" for (6, 28, 28)."""
    return " x ".join(map(str, sizes))
