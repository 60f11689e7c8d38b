"""The commands on data sets: check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from convatlas.cli import console
from convatlas.cli.options import OUTPUT, DataSet, Download, Json, option
from convatlas.errors import InputError

MAX_LISTED = 10
"""Maximum number of images, and of groups of images, that are listed in a terminal; --json has all of them."""


def check(
    data: DataSet,
    download: Download = False,
    sheet: Annotated[
        Path | None, option("Write a contact sheet of the images to this PNG file.", metavar="FILE", panel=OUTPUT)
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every image: unreadable files, sizes, rare classes, duplicates, leaks between splits."""
    from convatlas.data.check import check
    from convatlas.data.open import open_data

    with console.progress_bar() as progress:
        source = open_data(data, download=download, progress=progress)
        if sheet is not None and source.splits["train"].pixels is not None:
            raise InputError(f"--sheet: needs image files, but {data} contains arrays")
        checked = check(source, progress=progress)
    if sheet is not None:
        from convatlas.data.decode.display import display_image
        from convatlas.draw.contact_sheet import contact_sheet

        contact_sheet([(text, map(display_image, files)) for text, files in checked.sheet()], path=sheet)
    if as_json:
        console.print_json(checked.to_plain())
        return
    console.metrics_table(checked.table())
    show = console.console.print
    show()
    smallest, median, largest = (f"{width} x {height}" for width, height in checked.sizes)
    show(f"sizes: {smallest} to {largest}, median {median}")
    show(f"pixel formats: {', '.join(f'{mode} ({n:,})' for mode, n in checked.modes.items())}")
    for line in checked.findings() or ["no problems found"]:
        show(f"- {line}")
    for image in checked.unreadable[:MAX_LISTED]:
        show(f"  {image.name}: {image.unreadable}")
    for group in [*checked.leaks, *checked.label_conflicts][:MAX_LISTED]:
        show("  " + " = ".join(f"{p.name} ({p.split}, {checked.class_names(p)})" for p in group[:4]))
    if sheet is not None:
        show(str(sheet))
