"""The commands that search networks: search, search worker, search report."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import (
    EXECUTION,
    LIMITS,
    OUTPUT,
    RECIPE,
    DataSet,
    LatencyEngine,
    RecipeChanges,
    Resolution,
    ValShare,
    integer,
    option,
)
from convatlas.errors import InputError, printable
from convatlas.system import quantities

if TYPE_CHECKING:
    from convatlas.search.store import Evaluation

SEARCH = "Search"


SearchFolder = Annotated[Path, typer.Argument(metavar="SEARCH", help="The directory of a search.")]
Storage = Annotated[
    str | None,
    option("The URL of a database that has the study, such as postgresql://user@host/name, or of a gRPC proxy of "
           "Optuna, grpc://host:13000; by default it is a file in the directory of the search.", metavar="URL",
           panel=SEARCH),
]  # fmt: skip


def search(
    data: DataSet,
    max_latency: Annotated[
        float | None,
        option("Maximum latency for one image, for example 8ms.", metavar="TIME", panel=LIMITS,
               read=quantities.seconds),
    ] = None,
    max_params: Annotated[
        int | None,
        option("Maximum number of parameters, for example 2M.", metavar="COUNT", panel=LIMITS, read=quantities.count),
    ] = None,
    max_macs: Annotated[
        int | None,
        option("Maximum number of MACs for one image, for example 300M.", metavar="COUNT", panel=LIMITS,
               read=quantities.count),
    ] = None,
    max_file: Annotated[
        int | None,
        option("Maximum size of the model file, for example 4MB.", metavar="SIZE", panel=LIMITS, read=quantities.size),
    ] = None,
    max_memory: Annotated[
        int | None,
        option("Maximum memory for weights and activations of one image, for example 32MB.", metavar="SIZE",
               panel=LIMITS, read=quantities.size),
    ] = None,
    time: Annotated[
        float | None,
        option("Time of the whole search, with the training of the finalists, for example 1h.", metavar="TIME",
               panel=SEARCH, read=quantities.seconds, default="1h"),
    ] = None,
    space: Annotated[
        str,
        option("The search space: mnasnet, efficientnet, mixed, mobilenet_v2, mobilenet_v3, residual, resnet, "
               "densenet, or a .yaml file: a spec with {choose: [3, 5]} in its cells.", metavar="NAME", panel=SEARCH),
    ] = "resnet",
    method: Annotated[
        str,
        option("What competes: quick (candidates of the space and hand-made baselines), supernet (the same, but "
               "candidates share weights), random (random candidates), baselines, transfer (networks with cached "
               "pretrained weights), catalog (networks of the catalog); separated by commas.", metavar="NAMES",
               panel=SEARCH),
    ] = "quick,transfer",
    objective: Annotated[
        str,
        option("How latency counts: hard (as a limit) or soft (accuracy x (latency / limit)^-0.07).",
               metavar="hard|soft", panel=SEARCH),
    ] = "hard",
    seed: Annotated[
        int, option("Random seed of the search, the training and the val split.", metavar="N", panel=SEARCH,
                    read=integer())
    ] = 0,
    storage: Storage = None,
    workers: Annotated[
        int | None,
        option("Number of processes on this machine, which share its cores. The default is one per core, at most four, "
               "and a single one with a GPU or a supernet.", metavar="N", panel=EXECUTION, read=integer(1)),
    ] = None,
    engine: LatencyEngine = "torch",
    latency_threads: Annotated[
        int, option("CPU threads with which latencies are measured.", metavar="N", panel=EXECUTION, read=integer(1))
    ] = 1,
    latency: Annotated[
        str | None,
        option("Latencies of another machine: a file of `convatlas latency record`, or the name of an imported one.",
               metavar="FILE", panel=EXECUTION),
    ] = None,
    recipe: Annotated[
        str | None,
        option("A recipe or a .yaml file for all networks; the default is that of each network.", metavar="RECIPE",
               panel=RECIPE),
    ] = None,
    change: RecipeChanges = None,
    resolution: Resolution = None,
    val_share: ValShare = 0.2,
    out: Annotated[
        Path | None,
        option("Directory of the search; that of a stopped one continues it. The default is runs/search-DATA.",
               "--out", "-o", metavar="FOLDER", panel=OUTPUT),
    ] = None,
) -> None:  # fmt: skip
    """Search the most accurate network within limits of a device, and train it on the data."""
    from convatlas.cli.fit import recipe_fields
    from convatlas.search.latency_files import read_latency_model
    from convatlas.search.launch import search as run_search
    from convatlas.search.limits import Limits
    from convatlas.search.setup import SearchOptions
    from convatlas.train.settings import DataOptions

    if objective not in ("hard", "soft"):
        raise InputError(f"--objective: must be hard or soft, got {objective}")
    options = SearchOptions(
        space=space, methods=tuple(method.split(",")), objective=objective, engine=engine,  # type: ignore[arg-type]
        latency_threads=latency_threads, latency_model=None if latency is None else read_latency_model(latency),
        workers=workers, seed=seed, recipe=recipe, fields=recipe_fields(change or []), storage=storage,
        data_options=DataOptions().replaced({"resolution": resolution, "val_share": val_share}),
    )  # fmt: skip
    limits = Limits(max_latency, max_params, max_macs, max_file, max_memory)
    with console.progress_bar() as progress:
        result = run_search(
            data, limits=limits, time_s=time, out=out, options=options, on_evaluation=_Lines(),
            on_phase=_print_phase, progress=progress,
        )  # fmt: skip
    console.console.print(printable(result.verdict))
    for split, measured in result.run.results.items():
        console.console.print(f"{split} after the final training: {measured.text()}")
    console.console.print(printable(f"model file: {result.model_file}"))
    console.console.print(printable(f"report: {result.folder / 'report.html'}"))


def _print_phase(text: str) -> None:
    for line in text.splitlines():
        console.console.print(printable(line))


class _Lines:
    """Prints a line for each evaluation that has ended since the start, those of other workers, too."""

    def __init__(self) -> None:
        self._begin = time.time()
        self._printed: set[int] = set()

    def __call__(self, evaluation: Evaluation, everything: Sequence[Evaluation], left: float) -> None:
        ended = [
            each for each in everything
            if each.state in ("complete", "failed") and each.end >= self._begin and each.number not in self._printed
        ]  # fmt: skip
        for each in sorted(ended, key=lambda each: each.end):
            self._printed.add(each.number)
            _print_evaluation(each, everything, left)


def _print_evaluation(evaluation: Evaluation, everything: Sequence[Evaluation], left: float) -> None:
    """Print one line: what was evaluated, and how far the search is."""
    from convatlas.search.standings import front, is_final, network_name, standings
    from convatlas.search.store import elapsed
    from convatlas.system.progress import clock
    from convatlas.system.quantities import TIME
    from convatlas.tasks.table import pluralize

    if evaluation.state == "complete":
        metrics = evaluation.metrics
        outcome = (
            f"{metrics['accuracy']:.2%}, {1000 * metrics['latency']:.3g} ms"
            f"{' (disturbed by other processes)' if metrics['disturbed'] else ''}, "
            f"{metrics['parameters']:,.0f} parameters"
        )
    else:
        outcome = evaluation.error or evaluation.state
    name = str(evaluation.plain["name"])
    if is_final(evaluation):
        after = f" after {TIME.format(round(evaluation.metrics['seconds']))}" if evaluation.metrics else ""
        parts = [f"finalist {network_name(name)}{after}: {outcome}"]
    else:
        parts = [f"{name} at {evaluation.fidelity:.0%}: {outcome}"]
        if found := standings(everything):
            first = found[0]
            parts.append(f"best {first.accuracy:.2%} ({first.name} at {first.fidelity:.0%})")
            parts.append(f"{pluralize(len(front(found)), 'network')} on the front")
    done = sum(each.state == "complete" and each.end <= evaluation.end for each in everything)
    minutes = max(1e-9, elapsed(everything)) / 60
    parts.append(f"{done / minutes:.2g} per minute, {clock(max(0.0, left))} left")
    console.console.print(printable(f"{done:>3}  {'; '.join(parts)}"))


def worker(
    search: SearchFolder,
    storage: Storage = None,
    stop_at_eof: Annotated[
        bool,
        option("Stop when standard input ends, as it does when the process that started the worker ends.",
               "--stop-at-eof", panel=SEARCH),
    ] = False,
) -> None:  # fmt: skip
    """Work on a search that was started, on this or another machine that shares its directory, until it is over."""
    from convatlas.search.launch import work

    if stop_at_eof:
        threading.Thread(target=_terminate_at_eof, daemon=True).start()
    work(search, storage=storage, on_evaluation=_Lines())


def _terminate_at_eof() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def report(search: SearchFolder, storage: Storage = None) -> None:
    """Write the report of a search, at any time: front, networks, choices, lineage of the best candidate."""
    from convatlas.search.launch import report as write

    console.console.print(printable(f"report: {write(search, storage=storage)}"))
