"""The commands on data sets: check and convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import DATA, OUTPUT, DataSet, Download, Json, option
from convatlas.errors import InputError, printable

MAX_EXAMPLES = 10
"""Maximum number of examples of a finding that are printed; --json has all of them."""


def check(
    data: DataSet,
    task: Annotated[
        str | None,
        option(
            "Task of the training, as in convatlas fit, such as video or detect; by default the data's own.",
            metavar="TASK",
            panel=DATA,
        ),
    ] = None,
    group_pattern: Annotated[
        str | None,
        option(
            "Regular expression whose first group names the recording in a path, as in convatlas fit: reports groups "
            "that are in more than one split.",
            metavar="REGEX",
            panel=DATA,
        ),
    ] = None,
    download: Download = False,
    sheet: Annotated[
        Path | None,
        option(
            "Write a contact sheet of the images, or of frames of the videos, to this file: .svg, .png or .pdf.",
            metavar="FILE",
            panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check files, classes, splits, images or videos, and list every finding with its fix; exit code 1 for errors."""
    from convatlas.data.check import check_data
    from convatlas.draw.style import check_figure_path

    if sheet is not None:
        check_figure_path(sheet)
    with console.progress_bar() as progress:
        report = check_data(data, task=task, group_pattern=group_pattern, download=download, progress=progress)
    if sheet is not None and report.in_memory:
        raise InputError(f"--sheet: needs {report.noun} files, but {data} contains arrays")
    if as_json:
        console.print_json(report.to_plain())
    else:
        if report.counts:
            console.metrics_table(report.table())
            console.console.print()
        for line in [*report.image_lines(), *report.lines(MAX_EXAMPLES), report.summary()]:
            console.console.print(printable(line))
    if sheet is not None and report.images:  # after the findings, which do not depend on it
        report.draw_sheet(sheet)
        if not as_json:
            console.console.print(printable(str(sheet)))
    if report.has_errors:
        raise typer.Exit(1)


def convert(
    data: DataSet,
    to: Annotated[str, option("Format of the annotations: coco.", metavar="FORMAT", panel=OUTPUT)],
    out: Annotated[
        Path,
        option("Write to this folder, or to this .json file.", metavar="FILE", panel=OUTPUT),
    ],
    copy_images: Annotated[
        bool, option("Copy the images to where the annotations are.", "--copy-images", panel=OUTPUT)
    ] = False,
) -> None:
    """Write the boxes, masks and keypoints of a data set as COCO JSON, one file for each split."""
    from convatlas.data.convert import convert_data
    from convatlas.tasks.table import pluralize

    with console.progress_bar() as progress:
        files = convert_data(data, out, to=to, copy_images=copy_images, progress=progress)
    for each in files:
        text = f"{each.path}: {pluralize(each.images, 'image')}, {pluralize(each.objects, 'object')}"
        text += f"; {pluralize(each.skipped, 'unreadable image')} skipped" if each.skipped else ""
        console.console.print(printable(text))
