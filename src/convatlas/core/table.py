"""Small tables of text: for the terminal, and as HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


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

    __repr__ = __str__

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        aligned = (
            cell.rjust(width) if i in self.right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    def _repr_html_(self) -> str:
        head = f"<thead>{self._html_row('th', self.columns)}</thead>" if self.columns else ""
        return f"<table>{head}<tbody>{''.join(self._html_row('td', row) for row in self.rows)}</tbody></table>"

    def _html_row(self, tag: str, cells: Iterable[str]) -> str:
        parts = (
            f'<{tag} style="text-align: {"right" if i in self.right else "left"}">{html.escape(cell)}</{tag}>'
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(parts)}</tr>"


def by_x(sizes: Iterable[int]) -> str:
    """Return "6 x 28 x 28" for (6, 28, 28)."""
    return " x ".join(map(str, sizes))
