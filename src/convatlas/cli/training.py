"""What the command line prints about training: the header of a run, its epochs, its results, and model selection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.text import Text

from convatlas.cli.console import console, errors, print_remarks, print_result, print_skipped, progress_bar, table
from convatlas.errors import printable
from convatlas.system.quantities import TIME

if TYPE_CHECKING:
    from convatlas.system.progress import Progress
    from convatlas.train.cross_validation import CrossValidation, FoldEvent
    from convatlas.train.run import Event, Run
    from convatlas.train.select_model import ModelSelection
    from convatlas.train.state import Epoch

MAX_EPOCH_ROWS = 25
"""Maximum number of rows in the table of epochs: of a longer training, every n-th epoch is printed."""

MAX_CANDIDATES = 20
"""Maximum number of networks in the table of a model selection; candidates.csv has all of them."""


def print_run_header(run: Run) -> None:
    """Print what a run is going to do."""
    counts = ", ".join(f"{len(images):,} {split}" for split, images in run.dataset.splits.items())
    text = (
        f"{run.config.model} on {run.dataset.name}: {len(run.task.classes)} classes, {counts}; seed "
        f"{run.config.seed}; {run.device.type}, {run.plan}; run directory {run.folder}"
    )
    console.print(printable(text))
    print_remarks(run.dataset.remarks)


class EpochTable:
    """Prints a row for each epoch of a run, and reports each step to a progress bar."""

    def __init__(self, run: Run, progress: Progress, name: str = "training") -> None:
        self.run, self.progress, self.name = run, progress, name
        recipe = run.config.recipe
        self.epochs, self.batch = recipe.epochs, recipe.batch
        self.first, self.start = run.state.step, time.monotonic()
        headings = "  ".join(f"{column.heading:>11}" for column in run.task.progress_columns)
        console.print(f"{'epoch':>7}  {'loss':>8}  {headings}  {'seconds':>7}", style="bold")
        for epoch in run.history:
            self._print_epoch(epoch, style="dim")

    def add(self, event: Event) -> None:
        from convatlas.train.state import Epoch

        if isinstance(event, Epoch):
            self._print_epoch(event)
            return
        done = event.number + 1
        rate = (done - self.first) * self.batch / max(time.monotonic() - self.start, 1e-6)
        self.progress(f"{self.name}: {event.describe()}, {rate:,.0f} images/s", done, self.run.total_steps)

    def _print_epoch(self, epoch: Epoch, style: str = "") -> None:
        """Print the row of an epoch; of a long training, every n-th one and the last."""
        if epoch.number % max(1, self.epochs // MAX_EPOCH_ROWS) and epoch.number != self.epochs:
            return
        columns = self.run.task.progress_columns
        metrics = "  ".join(f"{column.text(epoch.metrics.get(column.key)):>11}" for column in columns)
        best = "  best" if epoch.best and self.run.dataset.val else ""
        console.print(
            f"{epoch.number:>7}  {epoch.train_loss:>8.4f}  {metrics}  {epoch.seconds:>7.1f}{best}", style=style
        )


def train(run: Run) -> None:
    """Train a run to its end."""
    with progress_bar(console) as progress:
        table = EpochTable(run, progress)
        try:
            for event in run.steps():
                table.add(event)
        except KeyboardInterrupt:
            errors.print(f"convatlas: interrupted; `convatlas resume {run.folder}` continues from the last checkpoint")
            raise


class FoldPrinter:
    """Prints the events of a cross-validation."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.table: EpochTable | None = None

    def add(self, event: FoldEvent) -> None:
        from convatlas.train.cross_validation import FoldEnd, FoldStart

        if isinstance(event, FoldStart):
            console.print(f"fold {event.number} of {event.folds}", style="bold")
            print_run_header(event.run)
            self.table = EpochTable(event.run, self.progress, f"fold {event.number}")
        elif isinstance(event, FoldEnd):
            console.print()
        elif self.table:
            self.table.add(event)


def print_results(run: Run) -> None:
    """Print the metrics of a finished run and where its files are."""
    for split, result in run.results.items():
        epoch = f"best epoch {run.state.best_epoch}" if run.dataset.val else "last epoch"
        print_result(split, result, f"; {epoch}" + (", selected on these images" if split == "val" else ""))
    print_skipped(run.dataset.unreadable)
    console.print(printable(f"model file: {run.model_file}"))
    if run.report_file.exists():
        console.print(printable(f"report: {run.report_file}"))
    print_notes(run)


def print_notes(run: Run) -> None:
    """Print what went wrong without an effect on the model."""
    for note in run.state.notes:
        errors.print(f"convatlas: {printable(note)}", style="yellow")


def print_folds(crossed: CrossValidation) -> None:
    """Print the score of each fold, their mean and standard deviation."""
    results = [run.results["val"] for run in crossed.runs]
    metric = results[0].headline_name or crossed.headline
    columns = ("fold", "images", metric)
    rows = [
        (number, f"{result.n:,}", f"{score:.2%}")
        for number, (result, score) in enumerate(zip(results, crossed.scores, strict=True), 1)
    ]
    table(columns, rows, right=columns)
    mean = Text.assemble((f"{crossed.mean:.2%}", "bold"), f" ± {crossed.std:.2%}")
    console.print(Text.assemble(f"{metric} over {len(rows)} folds: ", mean, " (standard deviation)"))
    console.print(printable(f"runs: {crossed.folder}"))
    for run in crossed.runs:
        print_notes(run)


def print_selection(selection: ModelSelection) -> None:
    """Print the networks within a budget and their scores in the search."""
    rungs = [f"{selection.metric} after {TIME.format(round(seconds))}" for seconds in selection.rung_seconds]
    columns = ["network", "px", "parameters", "MACs", "ms / image", *rungs]
    if any(candidate.weights for candidate in selection.candidates):
        columns.append("weights")
    rows = []
    for candidate in selection.candidates[:MAX_CANDIDATES]:
        scores = [f"{score:.2%}" for score in candidate.scores]
        if candidate.error:
            scores.append(candidate.error)
        scores += [""] * (len(rungs) - len(scores))
        name = f"{candidate.name} (small images)" if candidate.stem == "cifar" else candidate.name
        sizes = (f"{candidate.params:,}", f"{candidate.macs:,}", f"{1000 * candidate.latency_s:.1f}")
        rows.append((name, candidate.resolution, *sizes, *scores, candidate.weights)[: len(columns)])
    table(columns, rows, right=columns[1 : 5 + len(rungs)])
    if len(selection.candidates) > MAX_CANDIDATES:
        console.print(f"and {len(selection.candidates) - MAX_CANDIDATES} more, in candidates.csv")
    console.print(f"selected: {selection.best.name}")
    if not selection.conclusive:
        errors.print(f"convatlas: {selection.warning}")
    console.print()
