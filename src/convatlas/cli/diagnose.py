"""The command `diagnose`: what goes wrong in a training, or at the initialization of a network."""

from __future__ import annotations

from typing import Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import (
    DATA,
    MODEL,
    Channels,
    Classes,
    Download,
    Figure,
    Json,
    Resolution,
    SmallImages,
    assignments,
    complete_network,
    integer,
    number,
    option,
    stem_for,
)
from convatlas.errors import printable


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
    out: Figure = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Name the first layer of a run that goes wrong, why, and what usually helps; or of a network before training."""
    from convatlas.draw.style import check_figure_path
    from convatlas.overview.diagnose import diagnose

    if out is not None:
        check_figure_path(out)
    diagnosis = diagnose(
        source, depth=depth, width=width, cells=dict(assignments(change or [], "CELL=VALUE such as stages[0].depth=9")),
        resolution=resolution, channels=channels, classes=classes, stem=stem_for(small_images), data=data,
        download=download, seed=seed,
    )  # fmt: skip
    if as_json:
        console.print_json(diagnosis.to_plain())
    else:
        console.console.print(str(diagnosis))
    if out is not None:
        diagnosis.figure(out)
        if not as_json:
            console.console.print(printable(f"figure: {out}"))
