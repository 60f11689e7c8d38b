"""The command `experiment`: statements of textbooks about convolutional networks, tested."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import DATA, EXECUTION, OUTPUT, integer, option
from convatlas.errors import ConvatlasError, ExperimentError, InputError


def experiment(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="An experiment of --list.")] = None,
    list_: Annotated[bool, option("List the experiments and their statements.", "--list", panel=OUTPUT)] = False,
    all_: Annotated[bool, option("Run all experiments.", "--all", panel=EXECUTION)] = False,
    full: Annotated[
        bool, option("The real size, hours rather than minutes.", "--full", panel=EXECUTION)
    ] = False,
    smoke: Annotated[
        bool, option("Seconds, to see that it runs; the verdict means nothing.", "--smoke", panel=EXECUTION)
    ] = False,
    data: Annotated[
        Path | None,
        option("Folder with data sets, such as mnist/ or cifar10/, and weights/; what is not in it is looked up in the "
               "cache.", metavar="FOLDER", panel=DATA),
    ] = None,
    download: Annotated[bool, option("Download data sets that are not cached.", "--download", panel=DATA)] = False,
    out: Annotated[
        Path, option("Folder of the pages and figures.", "--out", "-o", metavar="FOLDER", panel=OUTPUT)
    ] = Path("experiments"),
    workers: Annotated[
        int | None,
        option("Number of processes, each with one thread; that of the cores by default. The numbers do not depend on "
               "it.", metavar="N", panel=EXECUTION, read=integer(1)),
    ] = None,
) -> None:  # fmt: skip
    """Test statements of textbooks: an experiment has seeds, a criterion that was written before, and a verdict.

    Writes NAME.md, NAME.png and NAME.json; an interrupted experiment continues with the same command.
    """
    from convatlas.experiments import registry
    from convatlas.experiments.experiment import Size
    from convatlas.experiments.materials import Materials
    from convatlas.experiments.page import write_page
    from convatlas.experiments.run import run_trials

    if list_:
        listed = [registry.find(each) for each in registry.names()]
        console.table(("experiment", "statement"), [(each.name.replace("_", "-"), each.claim) for each in listed])
        return
    if (name is None) == (not all_):
        raise InputError("experiment: needs a NAME or --all, and not both; --list lists the experiments")
    if full and smoke:
        raise InputError("--full and --smoke exclude each other; give one of them")
    materials = Materials(data, download)
    size: Size = "full" if full else "smoke" if smoke else "default"
    folder = out / size if size != "default" else out
    wanted = [registry.find(each) for each in (registry.names() if name is None else [name])]
    failed = []
    for each in wanted:
        log = folder / "trials" / f"{each.name}.jsonl"
        try:
            with console.progress_bar() as progress:
                results = run_trials(each, size, log, materials, workers=workers, progress=progress)
        except ConvatlasError as error:
            if not all_:
                raise
            failed.append(each.name.replace("_", "-"))
            console.errors.print(f"{failed[-1]}: {error}")
            continue
        verdict = write_page(each, size, results, folder)
        console.console.print(f"{each.name.replace('_', '-')}: {verdict.word}. {verdict.reason}")
        console.errors.print(f"{folder / each.name}.md")
    if failed:
        raise ExperimentError(f"experiment: {len(failed)} of {len(wanted)} could not be run: {', '.join(failed)}")
