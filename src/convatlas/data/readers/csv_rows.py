"""Rows of CSV and TSV files."""

from __future__ import annotations

import codecs
import csv
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from convatlas.core.problems import Problems
from convatlas.errors import DataError, brief, foreign_errors, listed

HEAD_CHARACTERS = 2**20
"""Maximum length of the header line in which the separator is looked for."""


def csv_rows(table: Path, problems: Problems | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, {column: text}) of each row; the separator is a comma, tab or semicolon.

    Blanks before a cell, rows without cells and columns without a name are dropped. Raises DataError for a file that
    is not UTF-8 (or UTF-16 with a byte order mark), and for two columns of one name.
    problems: collects rows with more cells than the header, which are dropped then; without it they raise.
    """
    columns: list[str] | None = None
    for line, cells in _cells(table):
        if columns is None:
            columns = [unicodedata.normalize("NFC", cell).strip() for cell in cells]
            check_columns(table, columns)
            continue
        extra = [cell for cell in cells[len(columns) :] if cell.strip()]
        if extra:
            error = DataError(
                f"{table}: line {line}: has {len(cells)} cells, the header has {len(columns)} columns; put a cell that "
                f"contains the separator into quotes, got {listed(extra)}",
                kind="invalid_rows",
            )
            if problems is None:
                raise error
            problems.add(error)
            continue
        row = dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))
        row.pop("", None)
        yield line, row


def first_column(table: object, columns: Sequence[str], accepted: Sequence[str]) -> str:
    """Return the column with the first of the accepted names, in any case; "" if there is none.

    Raises DataError for two columns of this name.
    """
    first = next((column for each in accepted for column in columns if column.lower() == each), "")
    check_columns(table, [column.lower() for column in columns if column.lower() == first.lower()])
    return first


def check_columns(table: object, columns: Sequence[str]) -> None:
    """Raise DataError for two columns of one name."""
    for column in columns:
        if column and columns.count(column) > 1:
            raise DataError(f"{table}: there are two columns {column}; rename or remove one of them")


def _cells(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of each row that has cells."""
    with foreign_errors(table, DataError, "not a CSV table in UTF-8"):
        with table.open("rb") as file:
            start = file.read(2)
        wide = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        with table.open(encoding="utf-16" if wide else "utf-8-sig", newline="") as lines:
            head = next((line for line in iter(lambda: lines.readline(HEAD_CHARACTERS), "") if line.strip()), "")
            lines.seek(0)
            reader = csv.reader(lines, delimiter=max(",\t;", key=head.count), skipinitialspace=True, strict=True)
            end = 0  # of the row before
            try:
                for cells in reader:
                    end = reader.line_num
                    if cells:
                        yield end, cells
            except csv.Error as error:
                raise DataError(f"{table}: line {end + 1}: {brief(error)}; check its quotes") from error
