"""The command `diagnose`: what goes wrong in a training, or at the initialization of a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from convatlas.cli import console
from convatlas.cli.options import (
    DATA,
    MODEL,
    OUTPUT,
    Channels,
    Classes,
    Download,
    Json,
    Resolution,
    SmallImages,
    complete_network,
    integer,
    number,
    option,
)
from convatlas.errors import InputError, printable


def diagnose(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|NAME", autocompletion=complete_network,
            help="A run directory, or a network of `convatlas list`, which is diagnosed at initialization.",
        ),
    ],
    depth: Annotated[
        float, option("Factor on all depths of the network.", metavar="FACTOR", panel=MODEL, read=number)
    ] = 1.0,
    width: Annotated[
        float, option("Factor on all widths of the network.", metavar="FACTOR", panel=MODEL, read=number)
    ] = 1.0,
    change: Annotated[
        list[str] | None,
        option("Set a cell of the spec of the network, for example stages[0].depth=9; repeatable.", "--set",
               metavar="CELL=VALUE", panel=MODEL),
    ] = None,
    resolution: Resolution = None,
    channels: Channels = None,
    classes: Classes = None,
    small_images: SmallImages = False,
    data: Annotated[
        str | None,
        option("Images, or videos, that the network reads, as `fit` would; by default noise of variance 1.",
               metavar="DATA", panel=DATA),
    ] = None,
    download: Download = False,
    seed: Annotated[
        int, option("Random seed of the initial weights and of noise.", metavar="N", panel=MODEL, read=integer(0))
    ] = 0,
    out: Annotated[
        Path | None,
        option("File of the figure; its suffix is .svg, .png or .pdf.", "--out", "-o", metavar="FILE", panel=OUTPUT),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Name the first layer of a run that goes wrong, why, and what usually helps; or of a network before training."""
    from convatlas.draw.style import check_figure_path
    from convatlas.overview.diagnose import diagnose

    if out is not None:
        check_figure_path(out)
    diagnosis = diagnose(
        source, depth=depth, width=width, cells=_cells(change or []), resolution=resolution, channels=channels,
        classes=classes, stem="cifar" if small_images else "default", data=data, download=download, seed=seed,
    )  # fmt: skip
    if as_json:
        console.print_json(diagnosis.to_plain())
    else:
        console.console.print(str(diagnosis))
    if out is not None:
        diagnosis.figure(out)
        if not as_json:
            console.console.print(printable(f"figure: {out}"))


def _cells(pairs: list[str]) -> dict[str, Any]:
    """Return CELL=VALUE pairs as a mapping; a value is JSON (a number, true, false, null) or text."""
    cells: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise InputError(f"--set: must be CELL=VALUE such as stages[0].depth=9, got {pair}")
        try:
            cells[name] = json.loads(text)
        except json.JSONDecodeError:
            cells[name] = text
    return cells
