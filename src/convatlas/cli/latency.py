"""The commands that measure latencies on one machine, for a search on another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import EXECUTION, MODEL, OUTPUT, LatencyEngine, integer, option
from convatlas.errors import printable


def record(
    out: Annotated[
        Path, option("The file that is written.", "--out", "-o", metavar="FILE", panel=OUTPUT)
    ] = Path("latency.json"),
    space: Annotated[
        str, option("The search space whose networks are measured, by name or as a .yaml file.", metavar="NAME",
                    panel=MODEL)
    ] = "resnet",
    resolution: Annotated[
        int, option("Side of the images in pixels; up to 64, networks get the stems for small images.", metavar="PX",
                    panel=MODEL, read=integer(1))
    ] = 32,
    channels: Annotated[
        int, option("Number of channels of the images.", metavar="N", panel=MODEL, read=integer(1))
    ] = 3,
    classes: Annotated[int, option("Number of classes.", metavar="N", panel=MODEL, read=integer(2))] = 10,
    number: Annotated[
        int, option("Number of networks that are measured.", metavar="N", panel=EXECUTION, read=integer(12))
    ] = 60,
    engine: LatencyEngine = "torch",
    threads: Annotated[
        int, option("Number of CPU threads.", metavar="N", panel=EXECUTION, read=integer(1))
    ] = 1,
    seed: Annotated[int, option("Random seed of the networks.", metavar="N", panel=MODEL, read=integer(0))] = 0,
) -> None:  # fmt: skip
    """Measure random networks of a space on this machine, and write a model of its latencies."""
    from convatlas.search.latency_files import record_latency, write_latency_model

    with console.progress_bar() as progress:
        model = record_latency(
            space, resolution=resolution, channels=channels, classes=classes, number=number, engine=engine,
            threads=threads, seed=seed, progress=progress,
        )  # fmt: skip
    write_latency_model(model, out)
    console.console.print(model.describe())
    console.console.print(printable(f"written: {out}; `convatlas search DATA --latency {out}` uses it"))


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `convatlas latency record`.")],
    name: Annotated[
        str, option("The name under which `convatlas search --latency NAME` finds it; by default that of the file.",
                    metavar="NAME", panel=OUTPUT)
    ] = "",
) -> None:  # fmt: skip
    """Keep the latencies of another machine in the cache, under a name."""
    from convatlas.search.latency_files import import_latency_model

    name = name or file.stem
    model = import_latency_model(file, name)
    console.console.print(model.describe())
    console.console.print(printable(f"imported: `convatlas search DATA --latency {name}` uses it"))
