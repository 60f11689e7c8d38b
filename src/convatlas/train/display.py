"""What a training shows while it runs: header, table of epochs, results; for the command, terminals and notebooks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from convatlas.data.class_names import mirrored_classes
from convatlas.data.dataset import UnreadableImage
from convatlas.errors import listed, printable
from convatlas.system.progress import Progress, progress_display
from convatlas.tasks.result import Result
from convatlas.tasks.table import pluralize
from convatlas.tasks.task import Task
from convatlas.train.run import Event, Run
from convatlas.train.run_folder import runs_folder
from convatlas.train.state import Epoch
from convatlas.train.step import last_frozen
from convatlas.train.stop_signals import Terminated

MAX_EPOCH_ROWS = 25
"""Maximum number of rows in the table of epochs: of a longer training, every n-th epoch is printed."""

NARROW, WIDE = 7, 11
"""Minimum width of a column of metrics; the larger one where there are no more than two."""

MAX_SKIPPED = 5
"""Maximum number of unreadable images that are listed; unreadable.csv has all of them."""


class Display:
    """Prints the course of a run.

    console: of header, epochs and results. errors: of warnings. progress: called after each step.
    command: whether hints name options of the command line, rather than arguments.
    """

    def __init__(self, console: Console, errors: Console, progress: Progress, *, command: bool = False) -> None:
        self.console, self.errors, self.progress, self.command = console, errors, progress, command

    def print_header(self, run: Run) -> None:
        """Print what a run is going to do."""
        config = run.config
        counts = ", ".join(f"{len(images):,} {split}" for split, images in run.dataset.splits.items())
        beside = run.folder.parent == runs_folder(config.data) != Path("runs")
        self._print(
            f"{config.model} on {run.dataset.name}: {pluralize(len(run.task.classes), 'class')}, {counts}; seed "
            f"{config.seed}; "
            f"{run.describe_execution()}; run directory {run.folder}{' (beside the data, not in it)' if beside else ''}"
        )
        self._print(f"weights: {self.describe_weights(config.weights, config.weights_reason)}")
        if run.task.predicts != Task.predicts:
            self._print(
                f"task: {run.task.short_name} ({run.task.name}), as {config.model} predicts {run.task.predicts}"
            )
        if config.preprocessing.is_whole:
            self._print(f"images: whole; {config.preprocessing.input_text}")
        if (sampling := config.preprocessing.sampling) is not None:
            self._print(
                f"clips: {config.preprocessing.input_text}; one of each video in an epoch, at a random place, and "
                f"{sampling.clips} in evaluation"
            )
        if config.recipe.augment.flip and (pairs := mirrored_classes(run.task.classes)):
            turn_off = "--set flip=false" if self.command else "flip=False"
            self._print(
                f"flip: half of the {run.task.noun}s are flipped horizontally, which exchanges the classes "
                f"{listed(f'{a} and {b}' for a, b in pairs)}; {turn_off} turns it off"
            )
        if config.spec.training_note:
            self._print(config.spec.training_note)
        if last := last_frozen(run.network, config.recipe):
            self._print(f"never trained: all layers up to {last}")
        epochs, min_steps = config.recipe.epochs, config.recipe.min_steps
        if (epochs - 1) * run.steps_per_epoch < min_steps:
            self._print(f"epochs: {epochs}, which are the {min_steps} steps that the recipe needs at least")
        self.print_remarks(run.dataset.remarks)
        self.print_remarks(f"annotations: {fault.text()}" for fault in config.annotation_faults)

    def describe_weights(self, name: str, reason: str) -> str:
        """Return which weights a training starts from and why, in one line."""
        if not name:
            return f"random ({reason})"
        if not reason:
            return name
        none = "--weights none" if self.command else 'weights="none"'
        return f"{name}, {reason}; {none} starts from random weights"

    def train(self, run: Run, on_event: Callable[[Event], None] | None = None) -> None:
        """Train a run to its end; an interruption prints how to continue."""
        table = EpochTable(self, run)
        try:
            with closing(run.steps()) as events:  # an interrupted run is unlocked at once
                for event in events:
                    if on_event:
                        on_event(event)
                    table.add(event)
        except (KeyboardInterrupt, Terminated):
            if run.distributed.is_main:
                text = run.describe_interruption(command=self.command)
                self.errors.print(f"convatlas: {printable(text)}")
            raise

    def print_results(self, run: Run) -> None:
        """Print the metrics of a finished run, what they are worth, and where its files are."""
        for split, result in run.results.items():
            epoch = f"best epoch {run.state.best_epoch}" if run.dataset.val else "last epoch"
            selected = f", selected on these {run.task.noun}s" if split == "val" else ""
            self.print_result(split, result, f"; {epoch}{selected}")
            verdict = result.verdict(run.task.baseline(run.dataset.splits[split].targets))
            self.print_verdict(split, verdict)
        self.print_skipped(run.dataset.unreadable)
        self._print(f"model file: {run.model_file}")
        if run.report_file.exists():
            self._print(f"report: {run.report_file}")
        self.print_notes(run)

    def print_result(self, split: str, result: Result, note: str = "") -> None:
        """Print the headline metric of a split."""
        self.console.print(Text.assemble(f"{split}: ", (result.text(), "bold"), note))

    def print_verdict(self, split: str, verdict: str) -> None:
        """Print that a result is no better than a constant prediction; nothing if it is better."""
        if verdict:
            self.console.print(printable(f"{split}: {verdict}"), style="yellow")

    def print_remarks(self, remarks: Iterable[str]) -> None:
        """Print the remarks on a data set, one line each."""
        for remark in remarks:
            self._print(remark)

    def print_skipped(self, unreadable: Sequence[UnreadableImage]) -> None:
        """Print the first unreadable images and their number; a run lists all of them in unreadable.csv."""
        for image in unreadable[:MAX_SKIPPED]:
            self._print(f"skipped: {image.reason}")
        if len(unreadable) > MAX_SKIPPED:
            self._print(f"skipped: {len(unreadable):,} unreadable files in total")

    def print_notes(self, run: Run) -> None:
        """Print what went wrong without an effect on the model."""
        for note in run.state.notes:
            self.errors.print(f"convatlas: {printable(note)}", style="yellow")

    def _print(self, line: str) -> None:
        self.console.print(printable(line))


class EpochTable:
    """Prints a row for each epoch of a run, and reports each step to a progress bar."""

    def __init__(self, display: Display, run: Run, name: str = "training") -> None:
        self.display, self.run, self.name = display, run, name
        self.reads = run.task.reads
        self.epochs, self.batch = run.config.recipe.epochs, run.config.recipe.batch
        self.first, self.start = run.state.step, time.monotonic()
        least = WIDE if len(run.task.progress_columns) <= 2 else NARROW
        self.columns = {column: max(least, len(column.heading)) for column in run.task.progress_columns}
        headings = "  ".join(column.heading.rjust(width) for column, width in self.columns.items())
        display.console.print(f"{'epoch':>7}  {'loss':>8}  {headings}  {'elapsed':>8}", style="bold")
        for epoch in run.history:
            self._print_epoch(epoch, style="dim")

    def add(self, event: Event) -> None:
        """Print an epoch, report a step."""
        if isinstance(event, Epoch):
            self._print_epoch(event)
            return
        if event.remark:
            self.display.print_remarks([event.remark])
        done = event.number + 1
        rate = (done - self.first) * self.batch / max(time.monotonic() - self.start, 1e-6)
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        self.display.progress(f"{self.name}: {event.describe()}, {speed} {self.reads}/s", done, self.run.total_steps)

    def _print_epoch(self, epoch: Epoch, style: str = "") -> None:
        """Print the row of an epoch; of a long training, every n-th one and the last."""
        if epoch.number % max(1, self.epochs // MAX_EPOCH_ROWS) and epoch.number != self.epochs:
            return
        metrics = "  ".join(
            column.text(epoch.metrics.get(column.key)).rjust(width) for column, width in self.columns.items()
        )
        best = "  best" if epoch.best and self.run.dataset.val else ""
        self.display.console.print(
            f"{epoch.number:>7}  {epoch.train_loss:>8.4f}  {metrics}  {epoch.elapsed_s:>6.1f} s{best}", style=style
        )


@contextmanager
def training_display(enabled: bool = True) -> Iterator[Display]:
    """Yield the display of a training in Python: in a terminal on standard error, in a notebook in the cell's output.

    Where there is neither, in processes other than rank 0, and if not enabled, nothing is shown.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    text = errors = console
    if console.is_jupyter:  # plain text, of which the lines of a cell become one output
        text = errors = Console(
            file=sys.stdout, force_jupyter=False, force_terminal=False, soft_wrap=True, highlight=False, markup=False,
            emoji=False,
        )  # fmt: skip
    shown = enabled and os.environ.get("RANK", "0") == "0" and (console.is_jupyter or console.is_terminal)
    if not shown:
        text = errors = Console(quiet=True)
    with progress_display(shown, console=console) as progress:
        yield Display(text, errors, progress)
