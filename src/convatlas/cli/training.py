"""What only the command line prints about training: cross-validation and model selection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from convatlas.cli.console import console, display, errors, progress_bar, table
from convatlas.errors import printable
from convatlas.system.quantities import TIME
from convatlas.tasks.table import pluralize

if TYPE_CHECKING:
    from convatlas.search.select_model import ModelSelection
    from convatlas.system.progress import Progress
    from convatlas.train.cross_validation import CrossValidation, FoldEvent
    from convatlas.train.display import EpochTable
    from convatlas.train.run import Run


def train(run: Run) -> None:
    """Train a run to its end."""
    with progress_bar(console) as progress:
        display(progress).train(run)


class FoldPrinter:
    """Prints the events of a cross-validation."""

    def __init__(self, progress: Progress) -> None:
        self.display = display(progress)
        self.table: EpochTable | None = None

    def add(self, event: FoldEvent) -> None:
        from convatlas.train.cross_validation import FoldEnd, FoldStart
        from convatlas.train.display import EpochTable

        if isinstance(event, FoldStart):
            console.print(f"fold {event.number} of {event.folds}", style="bold")
            self.display.print_header(event.run)
            self.table = EpochTable(self.display, event.run, f"fold {event.number}")
        elif isinstance(event, FoldEnd):
            console.print()
        elif self.table:
            self.table.add(event)


def print_folds(crossed: CrossValidation) -> None:
    """Print the score of each fold, their mean and standard deviation."""
    results = [run.results["val"] for run in crossed.runs]
    metric = results[0].headline_name or crossed.headline
    columns = ("fold", f"{crossed.runs[0].task.noun}s", metric)
    form = crossed.runs[0].task.progress_columns[-1].form
    rows = [
        (number, f"{result.n:,}", f"{score:{form}}")
        for number, (result, score) in enumerate(zip(results, crossed.scores, strict=True), 1)
    ]
    table(columns, rows, right=columns)
    mean = Text.assemble((f"{crossed.mean:{form}}", "bold"), f" ± {crossed.std:{form}}")
    console.print(Text.assemble(f"{metric} over {len(rows)} folds: ", mean, " (standard deviation)"))
    console.print(printable(f"runs: {crossed.folder}"))
    for run in crossed.runs:
        display().print_notes(run)


def print_selection(selection: ModelSelection) -> None:
    """Print the networks within the limits and their scores in the search."""
    rungs = [f"{selection.metric} after {TIME.format(round(seconds))}" for seconds in selection.seconds]
    columns = ["network", "px", "parameters", "MACs", f"ms / {selection.best.reads[:-1]}", *rungs]
    if any(candidate.weights for candidate in selection.candidates):
        columns.append("weights")
    rows = []
    for candidate in selection.candidates:
        scores = [f"{score:.2%}" for score in candidate.scores]
        if candidate.error:
            scores.append(candidate.error)
        scores += [""] * (len(rungs) - len(scores))
        name = f"{candidate.name} (small images)" if candidate.stem == "cifar" else candidate.name
        sizes = (f"{candidate.parameters:,}", f"{candidate.macs:,}", f"{1000 * candidate.latency_s:.1f}")
        rows.append(
            (name, candidate.resolution, *sizes, *scores, candidate.weights.partition("@")[2] or "random")[
                : len(columns)
            ]
        )
    table(columns, rows, right=columns[1 : 5 + len(rungs)])
    console.print(f"latencies: torch on the CPU, {pluralize(selection.threads, 'thread')}")
    console.print(f"selected: {selection.best.name}")
    if not selection.conclusive:
        errors.print(f"convatlas: {selection.warning}")
    console.print()
