"""The commands on pretrained weights: list, pull, add, verify."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import DATA, OUTPUT, Json, PretrainedWeights, option


def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="List only the weights of this network.")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """List pretrained weights: reported metrics, license, and whether they are cached."""
    from convatlas.weights.pretrained import all_weights, list_weights

    weights = list(all_weights()) if name is None else list_weights(name)
    if as_json:
        console.print_json([w.to_plain() for w in weights])
        return
    if not weights:
        console.console.print(f"{name}: no pretrained weights in the libraries that are installed here")
        return
    console.table(
        ("weights", "px", "reported metrics", "license", "cached"),
        [
            (
                w.name, w.preprocessing.resolution,
                ", ".join(f"{metric} {value:g}" for metric, value in w.reported_metrics.items()),
                w.license or "not stated", "yes" if w.cached_file else "",
            )
            for w in weights
        ],
        right=("px",),
    )  # fmt: skip


def pull(name: PretrainedWeights) -> None:
    """Download weights into the cache and check their SHA-256."""
    from convatlas.weights.fetch import pull
    from convatlas.weights.pretrained import find_weights

    with console.progress_bar() as progress:
        path = pull(find_weights(name), progress=progress)
    console.console.print(str(path))


def add(
    name: PretrainedWeights,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The published file, copied to this machine.")],
) -> None:
    """Add a file to the cache on an offline machine, after checking its SHA-256."""
    from convatlas.weights.fetch import add_file
    from convatlas.weights.pretrained import find_weights

    console.console.print(str(add_file(find_weights(name), file)))


def verify(
    name: Annotated[
        str,
        typer.Argument(metavar="WEIGHTS", help="Pretrained weights, NETWORK@LIBRARY:TAG, or a network and --file."),
    ],
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="A folder of images with labels.csv, or with a folder for each class."),
    ],
    file: Annotated[
        Path | None, option("The weights file, if it is not in the cache.", metavar="FILE", panel=DATA)
    ] = None,
    append: Annotated[
        Path | None, option("Append the result to this CSV file, as a row.", metavar="CSV", panel=OUTPUT)
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure weights on labeled images and compare them with the library they come from, image by image."""
    from convatlas.inference.verify import append_row, verify

    with console.progress_bar() as progress:
        row = verify(name, data, file=file, progress=progress)
    if append is not None:
        append_row(row, shlex.join(["convatlas", *sys.argv[1:]]), append)
    if as_json:
        console.print_json(row.to_plain())
        return
    columns = ("", "top-1", "accuracy", "top-5", "accuracy")
    console.table(columns, row.rows(), right=columns[1:])
    for line in row.notes():
        console.console.print(line)
