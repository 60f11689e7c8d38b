"""How the command line prints: tables, JSON, progress, errors, and the course of a training run."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from convatlas.errors import printable
from convatlas.system.progress import progress_display

if TYPE_CHECKING:
    from convatlas.data.dataset import UnreadableImage
    from convatlas.system.progress import Progress
    from convatlas.tasks.table import MetricTable
    from convatlas.tasks.task import Result

# no markup and no emoji codes: names of classes and files are printed verbatim
plain = partial(Console, highlight=False, markup=False, emoji=False)
console = plain(soft_wrap=not sys.stdout.isatty())
errors = plain(stderr=True, soft_wrap=True)

LINE_INTERVAL = 10.0
"""Seconds between two lines of progress where the output is not a terminal."""


def accept_any_text() -> None:
    """Let standard output and error print names that their encoding lacks, as escapes such as \\xe9."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_error(message: str) -> None:
    """Print an error as one line."""
    errors.print(f"convatlas: {printable(message)}", style="red")


def print_json(data: Any, *, indent: int | None = 2) -> None:
    """Print strict JSON in any encoding: NaN is an error, and characters that the encoding lacks are \\u escapes.

    indent: None for one line.
    """
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf8")
    print(json.dumps(data, indent=indent, ensure_ascii=not unicode, allow_nan=False), flush=True)


def progress_bar(target: Console = errors) -> AbstractContextManager[Progress]:
    """Show progress: a bar in a terminal, otherwise a line per interval."""
    return progress_display(not console.quiet, console=target, line_interval=LINE_INTERVAL)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print a table; the columns named in `right` are aligned right."""
    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    for row in rows:
        drawn.add_row(*(Text("\n".join(map(printable, str(cell).split("\n")))) for cell in row))
    if console.is_terminal:
        console.print(drawn)
    else:  # a file or a pipe has no edge: as wide as the table
        plain(width=max(80, Console(width=10_000).measure(drawn).maximum), quiet=console.quiet).print(drawn)


def metrics_table(rows: MetricTable) -> None:
    """Print a table of numbers, whose first column names the row."""
    table(rows.headings, rows.texts(), right=rows.headings[1:])


def print_result(split: str, result: Result, note: str = "") -> None:
    """Print the headline metric of a split."""
    console.print(Text.assemble(f"{split}: ", (result.text(), "bold"), note))


def print_remarks(remarks: Iterable[str]) -> None:
    """Print the remarks on a data set, one line each."""
    for remark in remarks:
        console.print(printable(remark))


def print_skipped(unreadable: Sequence[UnreadableImage]) -> None:
    """Print the first unreadable images and their number; a run lists all of them in unreadable.csv."""
    for image in unreadable[:5]:
        console.print(printable(f"skipped: {image.reason}"))
    if len(unreadable) > 5:
        console.print(f"skipped: {len(unreadable)} unreadable images in total")
