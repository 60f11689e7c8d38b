"""How the command line prints: tables, JSON, progress, errors, and the course of a training run."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from convatlas.errors import printable
from convatlas.system.progress import ignore, progress_display

if TYPE_CHECKING:
    from convatlas.system.progress import Progress
    from convatlas.tasks.table import MetricTable
    from convatlas.train.display import Display

for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # closed by the caller, as with `>&-`
        setattr(sys, _name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115

# no markup and no emoji codes: names of classes and files are printed verbatim
plain = partial(Console, highlight=False, markup=False, emoji=False)
console = plain(soft_wrap=not sys.stdout.isatty())
errors = plain(stderr=True, soft_wrap=True)

GAP, MIN_TEXT = 2, 8
"""Columns of a terminal: between two columns of a table, and the least for one of texts."""

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


def print_warning(message: str) -> None:
    """Print a warning as one line on standard error."""
    errors.print(f"convatlas: {printable(message)}", style="yellow")


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
    """Print a table; the columns named in `right` are aligned right.

    A narrow terminal wraps the texts of further columns; the first column and those in `right` are never cut.
    """
    cells = [[Text("\n".join(map(printable, str(cell).split("\n")))) for cell in row] for row in rows]
    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
    needed = 0
    for i, column in enumerate(columns):
        fixed = i == 0 or column in right
        drawn.add_column(column, justify="right" if column in right else "left", no_wrap=fixed, overflow="fold")
        size = max([Text(column).cell_len, *(row[i].cell_len for row in cells)])
        needed += GAP + (size if fixed else min(size, MIN_TEXT))
    for row in cells:
        drawn.add_row(*row)
    widest = max(80, Console(width=10_000).measure(drawn).maximum)
    width = max(console.width, needed) if console.is_terminal else widest  # a file or a pipe has no edge
    target = plain(width=width, quiet=console.quiet, force_terminal=console.is_terminal)
    with target.capture() as text:
        target.print(drawn)
    target.out("\n".join(line.rstrip() for line in text.get().splitlines()), highlight=False)


def metrics_table(rows: MetricTable) -> None:
    """Print a table of numbers, whose first column names the row."""
    table(rows.headings, rows.texts(), right=rows.headings[1:])


def display(progress: Progress = ignore) -> Display:
    """Return what prints runs and results: on standard output, warnings on standard error."""
    from convatlas.train.display import Display

    return Display(console, errors, progress, command=True)
