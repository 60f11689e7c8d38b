"""The command `features`: what a network computes inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import DATA, MODEL, OUTPUT, Batch, Device, ModelFile, integer, option
from convatlas.errors import printable

MAXIMIZATION = "Activation maximization"


def _read_unit(text: str) -> tuple[int, ...]:
    """Read a position, numbers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"must be integers separated by commas, such as 3,5, got {text}") from None


def features(
    model: ModelFile,
    image: Annotated[
        str,
        typer.Argument(metavar="IMAGE", help="An image file or a URL (with --fetch); a video, for networks that read "
                       "clips."),
    ],
    layer: Annotated[
        str | None,
        option("Layer of the unit, for example stages.3; the default is the last layer with a map.",
               metavar="PATH", panel=MODEL),
    ] = None,
    channel: Annotated[
        int | None,
        option("Channel of the layer; the default is the strongest one on the image.",
               metavar="N", panel=MODEL, read=integer()),
    ] = None,
    unit: Annotated[
        str | None,
        option("Position of the unit in the map, row and column, of clips T,Y,X; the default is the one with the "
               "largest value.", metavar="Y,X", panel=MODEL, read=_read_unit),
    ] = None,
    maps: Annotated[
        int, option("Number of feature maps of each stage.", metavar="N", panel=MODEL, read=integer(1))
    ] = 8,
    data: Annotated[
        str | None,
        option("Also draw the regions of these images that excite the channel most: a data set (see docs/data.md), a "
               "folder or a pattern.", metavar="DATA", panel=DATA),
    ] = None,
    top: Annotated[
        int, option("Number of regions, at most one of each image.", metavar="N", panel=DATA, read=integer(1))
    ] = 9,
    batch: Batch = None,
    fetch: Annotated[
        bool, option("Allow the download of the image from an http:// or https:// URL.", "--fetch", panel=DATA)
    ] = False,
    maximize: Annotated[
        bool,
        option("Also compute an image for which the mean of the channel is large.", "--maximize", panel=MAXIMIZATION),
    ] = False,
    label: Annotated[
        str | None,
        option("Also compute an image for which the logit of this class is large; only of classifiers.", "--class",
               metavar="NAME", panel=MAXIMIZATION),
    ] = None,
    steps: Annotated[
        int, option("Number of steps.", metavar="N", panel=MAXIMIZATION, read=integer(1))
    ] = 256,
    seed: Annotated[
        int, option("Seed of the random numbers.", metavar="N", panel=MAXIMIZATION, read=integer(0))
    ] = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        option("File of the figure; its suffix is .svg, .png or .pdf.", "--out", "-o", metavar="FILE", panel=OUTPUT,
               default="NAME-features.png; none with --json"),
    ] = None,
    as_json: Annotated[bool, option("Print JSON instead of text.", "--json", panel=OUTPUT)] = False,
) -> None:  # fmt: skip
    """Draw filters, the strongest feature maps of each stage, and the receptive field of a unit.

    With --data also the regions that excite the channel most, with --maximize an image that does. Images of the data
    that are unreadable are reported; the exit code is then 2.
    """
    from convatlas.draw.style import check_figure_path
    from convatlas.inference.load import load

    if out is not None:  # before anything is computed
        check_figure_path(out)
    opened = load(model, device=device)
    with console.progress_bar() as progress:
        view = opened.features(
            image, layer=layer, channel=channel, unit=unit, data=data, maximize=maximize, label=label,  # type: ignore[arg-type]  # read by _read_unit
            maps=maps, top=top, steps=steps, seed=seed, batch=batch, fetch=fetch, progress=progress,
        )  # fmt: skip
    if as_json:
        console.print_json(view.to_plain())
    else:
        for line in view.lines():
            console.console.print(printable(line))
    if out is not None or not as_json:
        path = out or Path(f"{Path(view.source).stem}-features.png")
        view.figure(path)
        (console.errors if as_json else console.console).print(printable(str(path)))
    for error in view.unreadable:
        console.print_error(error)
    if view.unreadable:
        raise typer.Exit(2)
