"""What the command line prints about training: the header of a run, its epochs, its results, and model selection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.text import Text

from convatlas.cli.console import console, errors, print_result, print_skipped, progress_bar, table
from convatlas.system.quantities import TIME

if TYPE_CHECKING:
    from convatlas.train.cross_validation import CrossValidation
    from convatlas.train.run import Epoch, Run
    from convatlas.train.select_model import Choice

MAX_EPOCH_ROWS = 25
"""Maximum number of rows in the table of epochs: of a longer training, every n-th epoch is printed."""

MAX_CANDIDATES = 20
"""Maximum number of networks in the table of a model selection; choice.csv has all of them."""


def print_run_header(run: Run) -> None:
    """Print what a run is going to do."""
    counts = ", ".join(f"{len(images):,} {split}" for split, images in run.dataset.splits.items())
    console.print(
        f"{run.config.model} on {run.dataset.name}: {len(run.task.classes)} classes, {counts}; seed "
        f"{run.config.seed}; {run.device.type}, {run.plan}; run directory {run.folder}"
    )


def train(run: Run) -> None:
    """Train a run to its end, with a row for each epoch and a progress bar."""
    try:
        _train(run)
    except KeyboardInterrupt:
        errors.print(f"convatlas: interrupted; `convatlas resume {run.folder}` continues from the last checkpoint")
        raise


def _train(run: Run) -> None:
    from convatlas.train.run import Epoch

    recipe = run.config.recipe
    _print_epoch_header(run)
    for epoch in run.history:
        _print_epoch(run, epoch, style="dim")
    total = recipe.epochs * -(-len(run.dataset.train) // recipe.batch)
    first, start = run.state.step, time.monotonic()
    with progress_bar(console) as progress:
        for event in run.steps():
            if isinstance(event, Epoch):
                _print_epoch(run, event)
                continue
            done = event.number + 1
            rate = (done - first) * recipe.batch / max(time.monotonic() - start, 1e-6)
            progress(f"training: {event.describe()}, {rate:,.0f} images/s", done, total)


def _print_epoch_header(run: Run) -> None:
    headings = "  ".join(f"{column.heading:>11}" for column in run.task.progress_columns)
    console.print(f"{'epoch':>7}  {'loss':>8}  {headings}  {'seconds':>7}", style="bold")


def _print_epoch(run: Run, epoch: Epoch, style: str = "") -> None:
    """Print the row of an epoch; of a long training, every n-th one and the last."""
    epochs = run.config.recipe.epochs
    if epoch.number % max(1, epochs // MAX_EPOCH_ROWS) and epoch.number != epochs:
        return
    metrics = "  ".join(f"{column.text(epoch.metrics.get(column.key)):>11}" for column in run.task.progress_columns)
    best = "  best" if epoch.best and run.dataset.val else ""
    console.print(f"{epoch.number:>7}  {epoch.train_loss:>8.4f}  {metrics}  {epoch.seconds:>7.1f}{best}", style=style)


def print_results(run: Run) -> None:
    """Print the metrics of a finished run and where its files are."""
    for split, result in run.results.items():
        epoch = f"best epoch {run.state.best_epoch}" if run.dataset.val else "last epoch"
        print_result(split, result, f"; {epoch}" + (", selected on these images" if split == "val" else ""))
    print_skipped(run.dataset.unreadable)
    console.print(f"model file: {run.model_file}")
    console.print(f"report: {run.report_file}")


def print_folds(crossed: CrossValidation) -> None:
    """Print the score of each fold, their mean and standard deviation."""
    rows = [
        (number, f"{run.results['val'].n:,}", f"{score:.2%}")
        for number, (run, score) in enumerate(zip(crossed.runs, crossed.scores, strict=True), 1)
    ]
    columns = ("fold", "images", crossed.headline)
    console.print()
    table(columns, rows, right=columns)
    mean = Text.assemble((f"{crossed.mean:.2%}", "bold"), f" ± {crossed.deviation:.2%}")
    console.print(Text.assemble(f"{crossed.headline} over {len(rows)} folds: ", mean, " (standard deviation)"))
    console.print(f"runs: {crossed.folder}")


def print_selection(choice: Choice) -> None:
    """Print the networks within a budget and their scores in the search."""
    rungs = [f"{choice.score} after {TIME.format(round(seconds))}" for seconds in choice.seconds]
    columns = ["network", "px", "parameters", "MACs", "ms / image", *rungs]
    if any(entry.weights for entry in choice.entries):
        columns.append("weights")
    rows = []
    for entry in choice.entries[:MAX_CANDIDATES]:
        scores = [f"{score:.2%}" for score in entry.scores]
        if entry.error:
            scores.append(entry.error)
        scores += [""] * (len(rungs) - len(scores))
        name = f"{entry.name} (small images)" if entry.stem == "cifar" else entry.name
        sizes = (f"{entry.parameters:,}", f"{entry.macs:,}", f"{1000 * entry.latency_s:.1f}")
        rows.append((name, entry.resolution, *sizes, *scores, entry.weights)[: len(columns)])
    table(columns, rows, right=columns[1 : 5 + len(rungs)])
    if len(choice.entries) > MAX_CANDIDATES:
        console.print(f"and {len(choice.entries) - MAX_CANDIDATES} more, in choice.csv")
    console.print(f"selected: {choice.best.name}")
    if not choice.tells:
        errors.print(
            f"convatlas: search inconclusive: after {TIME.format(round(choice.seconds[-1]))} the best network is no "
            f"better than chance ({choice.guessed:.1%}); increase --search-time, use --weights, or name a network"
        )
    console.print()
