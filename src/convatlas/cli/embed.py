"""The command `embed`: the features of a data set, their principal components, and the nearest images of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from convatlas.cli import console
from convatlas.cli.options import (
    DATA,
    MODEL,
    OUTPUT,
    DataSet,
    Device,
    Json,
    MaxUnreadableLikeTraining,
    ModelFile,
    integer,
    option,
)
from convatlas.errors import DataError, InputError, printable

NEAREST = "Nearest images"


def embed(
    model: ModelFile,
    data: DataSet,
    layer: Annotated[
        str,
        option("Layer whose maps are averaged, for example stages.3.", metavar="PATH", panel=MODEL,
               default="the input of the layer that computes class scores; of detectors, the last map of the body"),
    ] = "",
    split: Annotated[str, option("Split: train, val, test or all.", metavar="NAME", panel=DATA)] = "all",
    max_unreadable: MaxUnreadableLikeTraining = None,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        option("Write the features with names, labels and splits to this file: .npz or .parquet.",
               "--out", "-o", metavar="FILE", panel=OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None,
        option("Plot the images at their two principal components to this file: .svg, .png or .pdf.",
               metavar="FILE", panel=OUTPUT),
    ] = None,
    nearest: Annotated[
        str | None,
        option("Print the nearest images of this image, or videos of this video, by cosine similarity; it need not be "
               "part of the data.", metavar="FILE", panel=NEAREST),
    ] = None,
    count: Annotated[
        int | None,
        option("Number of nearest images.", metavar="N", panel=NEAREST, read=integer(1), default="9"),
    ] = None,
    sheet: Annotated[
        Path | None,
        option("Write the image and its nearest ones as a contact sheet to this file: .svg, .png or .pdf.",
               metavar="FILE", panel=NEAREST),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Compute the features of a data set: what the network computes in front of its classifier.

    The data may have any classes, or be a folder of images or videos without labels.
    """
    from convatlas.data.decode.video_name import VideoName
    from convatlas.draw.style import check_figure_path
    from convatlas.explanation.embedding import check_features_path
    from convatlas.inference.embed import embed as compute
    from convatlas.inference.load import load

    if nearest is None and (sheet is not None or count is not None):
        raise InputError(f"--{'sheet' if sheet is not None else 'count'}: needs --nearest, the image to compare")
    if nearest is not None and not os.path.exists(VideoName.parse(nearest).path):
        raise DataError(f"--nearest: {nearest}: no such file")
    if out is not None:
        check_features_path(out)
    for figure in (plot, sheet):
        if figure is not None:
            check_figure_path(figure)
    opened = load(model, device=device)
    with console.progress_bar() as progress:
        embedding = compute(
            opened, data, layer=layer, split=split, max_unreadable=max_unreadable, progress=progress
        )  # fmt: skip
    found = None if nearest is None else embedding.nearest(nearest, **({} if count is None else {"count": count}))
    if out is not None:
        embedding.save(out)
    if plot is not None:
        embedding.figure(plot)
    if sheet is not None and found is not None:
        found.figure(sheet)
    if as_json:
        console.print_json({**embedding.to_plain(), **({} if found is None else {"nearest": found.to_plain()})})
        return
    console.console.print(str(embedding.table()))
    if found is not None:
        table = found.table()
        console.console.print()
        console.table(table.columns, table.rows, right=["similarity"])
    display = console.display()
    display.print_remarks(embedding.remarks)
    display.print_skipped(embedding.unreadable)
    for file in (out, plot, sheet):
        if file is not None:
            console.errors.print(printable(str(file)))
