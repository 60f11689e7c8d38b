"""Progress callbacks, and their display in terminals, notebooks and log files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, int, int], None]
"""Called with a description of the work, the amount done, and the total amount (0 if unknown).

The part of the description before the first colon identifies the bar; the rest may change from call to call, as in
`training: loss 0.312`.
"""

REFRESH_S = 0.1
"""Seconds between two updates of a bar; more frequent ones would take longer than a step of a small network."""


@contextmanager
def progress_display(
    enabled: bool = True, *, console: Console | None = None, line_interval: float | None = None
) -> Iterator[Progress]:
    """Yield a Progress callback that shows a bar in a terminal and a text line in a notebook.

    enabled: False shows nothing.
    console: where the bar is drawn; standard error by default.
    line_interval: seconds between two plain lines where the output is neither a terminal nor a notebook. None (the
        default) prints nothing there, as a library should.
    """
    from rich.console import Console as RichConsole

    console = console or RichConsole(stderr=True, markup=False, highlight=False)
    if not enabled or console.quiet:
        yield ignore
    elif console.is_jupyter:
        with _notebook_line() as advance:
            yield advance
    elif console.is_terminal:
        with _bars(console) as advance:
            yield advance
    else:
        yield ignore if line_interval is None else _plain_lines(console, line_interval)


@contextmanager
def progress_callback(progress: Progress | bool) -> Iterator[Progress]:
    """Yield a callback for an argument `progress`: a callback itself, True for a display, or False for nothing."""
    if isinstance(progress, bool):
        with progress_display(progress) as report:
            yield report
    else:
        yield progress


def ignore(what: str, done: int, total: int) -> None:
    """Show nothing."""


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich would send redirected standard output to the console of the bars, away from its file or pipe
    redirect = sys.stdout.isatty()
    with Bars(*columns, console=console, transient=True, redirect_stdout=redirect) as bars:
        tasks: dict[str, Any] = {}
        updated: dict[str, float] = {}

        def advance(what: str, done: int, total: int) -> None:
            key, now = what.partition(":")[0], time.monotonic()
            if key not in tasks:
                tasks[key] = bars.add_task(what, total=total or None)
            elif now - updated[key] < REFRESH_S and done != total:
                return
            updated[key] = now
            bars.update(tasks[key], completed=done, total=total or None, description=what)

        yield advance


@contextmanager
def _notebook_line() -> Iterator[Progress]:
    """Yield a callback that rewrites one line of the cell's output, which is empty at the end; it needs no widgets."""
    from IPython.display import display  # type: ignore[import-not-found, unused-ignore]  # a notebook has it

    line = display({"text/plain": ""}, raw=True, display_id=True)
    updated = 0.0
    remaining = RemainingTime()

    def advance(what: str, done: int, total: int) -> None:
        nonlocal updated
        left = remaining.after(what, done, total)
        if time.monotonic() - updated >= REFRESH_S or done == total:
            updated = time.monotonic()
            line.update({"text/plain": describe(what, done, total, left)}, raw=True)

    try:
        yield advance
    finally:
        line.update({"text/plain": ""}, raw=True)


def _plain_lines(console: Console, interval: float) -> Progress:
    last = time.monotonic()
    remaining = RemainingTime()

    def advance(what: str, done: int, total: int) -> None:
        nonlocal last
        left = remaining.after(what, done, total)
        if time.monotonic() - last >= interval:
            last = time.monotonic()
            console.print(describe(what, done, total, left))

    return advance


class RemainingTime:
    """Estimates the time that is left for each kind of work, from its speed so far."""

    def __init__(self) -> None:
        self._starts: dict[str, tuple[float, int]] = {}

    def after(self, what: str, done: int, total: int) -> float | None:
        """Return the seconds that are left; None if they cannot be estimated yet."""
        now = time.monotonic()
        start, first = self._starts.setdefault(what.partition(":")[0], (now, done))
        return (now - start) / (done - first) * (total - done) if first < done < total else None


def describe(what: str, done: int, total: int, left: float | None = None) -> str:
    """Return progress as one line of text; left: the estimated seconds until the end."""
    if not total:
        return f"{what} ({done:,})"
    return f"{what} ({done:,} of {total:,}{'' if left is None else f', {clock(left)} left'})"


def clock(seconds: float) -> str:
    """Return a duration as text: 0:07, 12:05, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
