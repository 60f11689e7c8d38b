"""Tables of results: named columns with a format, printed by the command line, the report and notebooks alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convatlas.core.table import Table


@dataclass(frozen=True)
class Column:
    """A column of a table.

    key: its name in plain data. heading: its name in printed tables. form: format specification of values. complement:
    1 - value is printed, such as the error for an accuracy.
    """

    key: str
    heading: str
    form: str = ""
    complement: bool = False

    def text(self, value: Any) -> str:
        """Return a value as text; empty for None and NaN, which stand for "not measured"."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return format(1 - value if self.complement else value, self.form)


@dataclass(frozen=True, repr=False)
class MetricTable:
    """Rows of values under columns; the first column names the row."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]

    @property
    def headings(self) -> tuple[str, ...]:
        return tuple(column.heading for column in self.columns)

    def texts(self) -> list[tuple[str, ...]]:
        """Return the rows as text."""
        return [tuple(column.text(value) for column, value in zip(self.columns, row, strict=True)) for row in self.rows]

    def to_text(self) -> Table:
        """Return the table as text, which prints in terminals and notebooks."""
        return Table(self.headings, tuple(self.texts()), right=frozenset(range(1, len(self.columns))))

    def __repr__(self) -> str:
        return repr(self.to_text())

    def _repr_html_(self) -> str:
        return self.to_text()._repr_html_()

    def to_plain(self) -> dict[str, dict[str, Any]]:
        """Return {name of the row: {key: value}}; None for what was not measured."""
        keys = [column.key for column in self.columns[1:]]
        return {str(name): dict(zip(keys, map(_none_for_nan, values), strict=True)) for name, *values in self.rows}


def _none_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def pluralize(number: int, what: str) -> str:
    """Return "1 image", "2 images", "3 classes"."""
    ending = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{ending}"


def rows_of(values: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    """Return columns as rows."""
    return tuple(zip(*values, strict=True))
