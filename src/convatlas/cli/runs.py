"""The commands that continue and end interrupted runs: resume and finish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convatlas.cli import console, training
from convatlas.cli.options import DATA, EXECUTION, RECIPE, integer, option
from convatlas.errors import printable

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory of an interrupted run.")]
MovedData = Annotated[
    str | None,
    option("Where the data is now, if it was moved; it must be the same data.", metavar="DATA", panel=DATA),
]


def resume(
    run: RunFolder,
    data: MovedData = None,
    epochs: Annotated[
        int | None,
        option("New number of epochs, at least those that have begun; the learning rates from here on are those of "
               "the schedule over the new number.", metavar="N", panel=RECIPE, read=integer(1)),
    ] = None,
    threads: Annotated[
        int | None,
        option("New number of CPU threads; the last bits of the result depend on it.",
               metavar="N", panel=EXECUTION, read=integer(1)),
    ] = None,
) -> None:  # fmt: skip
    """Resume an interrupted run. On a CPU the result is bit-identical to that of an uninterrupted run."""
    from convatlas.train.resume import open_run

    with console.progress_bar() as progress:
        opened = open_run(run, data=data, epochs=epochs, threads=threads, progress=progress)
    if opened.state.finished:
        if not opened.report_file.exists():  # the run was interrupted while it was written, or could not write it
            opened.finish()
        console.console.print(printable(f"{run} is finished; its model file is {opened.model_file}"))
        console.display().print_notes(opened)
        return
    console.display().print_header(opened)
    for library, (before, now) in opened.changed_versions.items():
        console.errors.print(
            f"convatlas: {library} was {before} at the start of the run and is {now} now; results may differ in the "
            "last bits"
        )
    for change in opened.config.changes if (epochs, threads) != (None, None) else ():
        what = "results may differ in the last bits" if change.startswith("threads") else "the schedule is the new one"
        console.console.print(f"{change}; {what}")
    console.console.print(f"resuming at step {opened.state.step:,}")
    training.train(opened)
    console.display().print_results(opened)


def finish(run: RunFolder, data: MovedData = None) -> None:
    """End an interrupted run: evaluate it, write its model files and its report. It cannot be resumed afterwards."""
    from convatlas.train.resume import finish

    opened = finish(run, data=data)
    state, epochs = opened.state, opened.config.recipe.epochs
    console.console.print(printable(f"{run}: finished after {len(state.history)} of {epochs} epochs"))
    console.display().print_results(opened)
