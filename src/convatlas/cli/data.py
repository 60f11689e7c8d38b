"""The commands on data sets: check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from convatlas.cli import console
from convatlas.cli.options import OUTPUT, DataSet, Download, Json, option
from convatlas.errors import InputError, printable

if TYPE_CHECKING:
    from convatlas.data.check import Check

MAX_LISTED = 10
"""Maximum number of images, and of groups of images, that are listed in a terminal; --json has all of them."""

MAX_NOT_USED = 3
"""Maximum number of files that are listed for each reason why they are not used."""


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
    if as_json:
        console.print_json(checked.to_plain())
    else:
        _print_findings(checked)
    if sheet is not None:  # after the findings, which do not depend on it
        from convatlas.data.decode.display import display_image
        from convatlas.draw.contact_sheet import contact_sheet

        contact_sheet([(text, map(display_image, files)) for text, files in checked.sheet()], path=sheet)
        if not as_json:
            console.console.print(printable(str(sheet)))


def _print_findings(checked: Check) -> None:
    def show(text: str = "") -> None:
        console.console.print(printable(text))

    console.metrics_table(checked.table())
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
    for reason, files in checked.ignored.reasons.items():
        more = f" and {len(files) - MAX_NOT_USED:,} more" if len(files) > MAX_NOT_USED else ""
        show(f"  not used, {reason}: {', '.join(files[:MAX_NOT_USED])}{more}")
