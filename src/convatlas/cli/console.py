"""How the command line shows things: tables, progress, errors."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from convatlas.data.dataset import UnreadableImage
    from convatlas.system.progress import Progress
    from convatlas.tasks.classification.results import Result
    from convatlas.train.cross_validation import CrossValidation
    from convatlas.train.loop import Step
    from convatlas.train.run import Run
    from convatlas.train.select_model import Choice


# no markup and no emoji codes: names of classes and files are printed as they are
plain = partial(Console, highlight=False, markup=False, emoji=False)
console = plain(soft_wrap=not sys.stdout.isatty())
errors = plain(stderr=True, soft_wrap=True)

INTERVAL = 10.0
"""Seconds between two lines of progress where the output is no terminal."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print a table; columns named in `right` are aligned right."""
    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    if console.is_terminal:
        console.print(drawn)
    else:  # as wide as it needs to be: a file or a pipe has no edge
        wide = plain(width=max(80, Console(width=10_000).measure(drawn).maximum))
        wide.print(drawn)


@contextmanager
def reading() -> Iterator[Progress]:
    """Show progress of reading or fetching data, on standard error."""
    if errors.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=errors, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def advance(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done)

            yield advance
    else:
        last = time.monotonic()

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= INTERVAL:
                last = time.monotonic()
                errors.print(f"{what}: {done:,} of {total:,}")

        yield tell


def begun(run: Run) -> None:
    """Print what a run is about to do."""
    counts = ", ".join(f"{len(images):,} {split}" for split, images in run.dataset.splits.items())
    console.print(
        f"{run.config.model} on {run.dataset.name}: {len(run.config.classes)} classes, {counts}; seed "
        f"{run.config.seed}; {run.device.type}, {run.execution}; run folder {run.folder}"
    )


def fold(run: Run) -> None:
    """Train the run of a fold to its end."""
    begun(run)
    train(run)


def folds(crossed: CrossValidation) -> None:
    """Print what a cross-validation reached."""
    named = "mAP" if crossed.headline == "map" else crossed.headline
    rows = [
        (number, f"{len(run.results['val'].labels):,}", f"{score:.2%}")
        for number, (run, score) in enumerate(zip(crossed.runs, crossed.scores, strict=True), 1)
    ]
    console.print()
    table(("fold", "images", named), rows, right=("fold", "images", named))
    mean = Text.assemble((f"{crossed.mean:.2%}", "bold"), f" +- {crossed.deviation:.2%}")
    console.print(Text.assemble(f"{named} over {len(rows)} folds: ", mean, " (standard deviation)"))
    console.print(f"runs: {crossed.folder}")


def train(run: Run) -> None:
    """Train a run to its end: a live bar in a terminal, otherwise a line per interval; a table row per epoch."""
    try:
        _train(run)
    except KeyboardInterrupt:
        errors.print(f"convatlas: stopped; `convatlas resume {run.folder}` goes on from the last checkpoint")
        raise


def _train(run: Run) -> None:
    recipe, count = run.config.recipe, len(run.dataset.train)
    val = "" if not run.dataset.val else "val mAP" if run.several else "val error"
    console.print(f"{'epoch':>7}  {'loss':>8}  {'train error':>11}  {val:>9}  {'seconds':>7}", style="bold")

    every = max(1, recipe.epochs // 25)

    def tell(epoch: dict[str, float], style: str = "") -> None:
        """Print the row of an epoch; of a long training every n-th."""
        if epoch["epoch"] % every and epoch["epoch"] != recipe.epochs:
            return
        shown = epoch.get("val_map", 1 - epoch["val_accuracy"] if "val_accuracy" in epoch else None)
        val = "" if shown is None else f"{shown:.2%}"
        best = "  best" if run.state.best_epoch == epoch["epoch"] and val else ""
        errors_told = f"{1 - epoch['train_accuracy']:>11.2%}  {val:>9}"
        text = f"{epoch['epoch']:>7}  {epoch['train_loss']:>8.4f}  {errors_told}  {epoch['seconds']:>7.1f}{best}"
        console.print(text, style=style)

    for past in run.state.history:
        tell(past, "dim")
    if not console.is_terminal:
        _train_in_lines(run, tell)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    steps = -(-count // recipe.batch)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=recipe.epochs * steps, completed=run.state.step, rate="")
        begun, first, shown = time.monotonic(), run.state.step, 0.0
        for event in run.steps():
            if isinstance(event, dict):
                tell(event)
            elif time.monotonic() - shown > 0.1:  # the bar costs more than a small network's step
                shown = time.monotonic()
                rate = (event.number + 1 - first) * recipe.batch / (shown - begun)
                text = f"epoch {event.epoch + 1}/{recipe.epochs}  loss {event.loss:.3f}"
                bar.update(task, completed=event.number + 1, description=text, rate=f"{rate:,.0f} images/s")


def _train_in_lines(run: Run, tell: Callable[[dict[str, float]], None]) -> None:
    last = time.monotonic()
    event: Step | dict[str, float]
    for event in run.steps():
        if isinstance(event, dict):
            last = time.monotonic()
            tell(event)
        elif time.monotonic() - last >= INTERVAL:
            last = time.monotonic()
            console.print(f"        step {event.number + 1:,}  loss {event.loss:.4f}")


def choice(made: Choice, *, shown: int = 20) -> None:
    """Print the networks that keep a budget, and how they raced."""
    rounds = [f"{made.score} after {seconds:.0f} s" for seconds in made.seconds]
    weighted = any(entry.weights for entry in made.entries)
    columns = ("network", "px", "parameters", "MACs", "ms / image", *rounds, *("weights",) * weighted)
    rows = []
    for entry in made.entries[:shown]:
        scores = [f"{score:.2%}" for score in entry.scores] + [entry.told][: bool(entry.told)]
        scores += [""] * (len(rounds) - len(scores))
        told = (f"{entry.parameters:,}", f"{entry.macs:,}", f"{1000 * entry.latency:.1f}")
        name = entry.name + " (small stem)" * (entry.stem == "small")
        rows.append((name, entry.size, *told, *scores, *(entry.weights,) * weighted))
    table(columns, rows, right=columns[1 : 5 + len(rounds)])
    if len(made.entries) > shown:
        console.print(f"and {len(made.entries) - shown} more, in choice.csv")
    console.print(f"the best: {made.best.name}")
    if not made.tells:
        errors.print(
            f"convatlas: after {made.seconds[-1]:.0f} s it is no better than guessing ({made.guessed:.1%}), so the "
            "race says nothing: give it more time (--race), begin from --weights, or name a network"
        )
    console.print()


def measured(split: str, result: Result, note: str = "") -> None:
    """Print the headline number of a split."""
    images = f"{result.errors} of {len(result.labels):,} images wrong"
    named = {"map": "mean average precision"}.get(result.headline, result.headline)
    console.print(Text.assemble(f"{split}: {named} ", (f"{result.score:.2%}", "bold"), f", {images}{note}"))


def by_class(result: Result, classes: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return columns and rows of what a split says about each class; shares are floats, None where there are none."""
    from convatlas.tasks.classification.results import Tags

    if isinstance(result, Tags):
        found, overlooked, invented = result.counts.tolist()
        precisions = [value if value == value else None for value in result.precisions.tolist()]
        images = [a + b for a, b in zip(found, overlooked, strict=True)]
        columns = ("class", "images", "found", "seen where it is not", "average precision")
        return columns, list(zip(classes, images, found, invented, precisions, strict=True))
    images, right = result.confusion.sum(1).tolist(), result.confusion.diag().tolist()
    shares = [r / n if n else None for r, n in zip(right, images, strict=True)]
    return ("class", "images", "right", "accuracy"), list(zip(classes, images, right, shares, strict=True))


def left_out(unreadable: Sequence[UnreadableImage]) -> None:
    """Print which images could not be read; a run lists all of them in unreadable.csv."""
    for image in unreadable[:5]:
        console.print(f"left out: {image.reason}")
    if len(unreadable) > 5:
        console.print(f"left out: {len(unreadable)} images in all")


def outcome(run: Run) -> None:
    """Print what a finished run measured and where it left its files."""
    from convatlas.train.run_folder import REPORT

    for split, result in run.results.items():
        chosen = f"best epoch {run.state.best_epoch}" if run.dataset.val else "last epoch"
        measured(split, result, f"; {chosen}" + (", chosen on these images" if split == "val" else ""))
    left_out(run.dataset.unreadable)
    console.print(f"model file: {run.model_file}")
    console.print(f"report: {run.folder / REPORT}")
