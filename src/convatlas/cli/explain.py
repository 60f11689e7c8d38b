"""The command `explain`: which parts of an image speak for a prediction, and how far that can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import MODEL, OUTPUT, Batch, Device, Fetch, JsonLines, ModelFile, integer, option
from convatlas.errors import InputError, printable

if TYPE_CHECKING:
    from convatlas.explanation.explanation import Explanation

FAITHFULNESS = "Faithfulness"


def explain(
    model: ModelFile,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Image files, folders, glob patterns, URLs (with --fetch), or - for standard input; videos, for "
            "networks that read clips.",
        ),
    ],
    label: Annotated[
        str | None,
        option("The class to explain; the default is the predicted class.", "--class", metavar="NAME", panel=MODEL),
    ] = None,
    against: Annotated[
        str | None,
        option("Explain why the class is predicted and not this one: the difference of their logits.",
               metavar="NAME", panel=MODEL),
    ] = None,
    object_: Annotated[
        int,
        option("Number of the object, from 0, the most probable one first; with --class among those of the class. Only "
               "of detectors.", "--object", metavar="N", panel=MODEL, read=integer(0)),
    ] = 0,
    method: Annotated[
        str,
        option("Method: grad-cam, hires-cam, layer-cam, integrated-gradients or occlusion; auto is Grad-CAM where "
               "global average pooling follows the layer, else HiResCAM.", metavar="NAME", panel=MODEL),
    ] = "auto",
    layer: Annotated[
        list[str] | None,
        option("Layer whose maps a CAM reads, for example stages.3; repeatable: the maps are averaged. The default is "
               "the last layer with a map.", metavar="PATH", panel=MODEL),
    ] = None,
    steps: Annotated[
        int, option("Number of steps of integrated gradients.", metavar="N", panel=MODEL, read=integer(1))
    ] = 32,
    faithfulness: Annotated[
        bool,
        option("Measure insertion and deletion curves, beside those of a random map and of an edge map.",
               "--faithfulness/--no-faithfulness", panel=FAITHFULNESS),
    ] = True,
    randomize: Annotated[
        bool,
        option("Also compute the map with random weights: it should be another one.", "--randomize",
               panel=FAITHFULNESS),
    ] = False,
    device: Device = "auto",
    batch: Batch = None,
    fetch: Fetch = False,
    out: Annotated[
        Path | None,
        option("File of the figure of one image (.png, .svg, .pdf), or of a page of any number (.html).",
               "--out", "-o", metavar="FILE", panel=OUTPUT,
               default="NAME-explanation.png, or explanations.html for several images; none with --json"),
    ] = None,
    as_json: JsonLines = False,
) -> None:  # fmt: skip
    """Draw which parts of an image speak for a class, and measure how far the map can be trusted.

    What is unreadable is reported; the exit code is then 2.
    """
    from convatlas.draw.style import FORMATS
    from convatlas.explanation.options import ExplainOptions
    from convatlas.explanation.page import PAGE, RIGHT, ExplanationPage, as_table, row_of
    from convatlas.inference.explanations import explain_images
    from convatlas.inference.inputs import expand_inputs
    from convatlas.inference.load import load
    from convatlas.inference.options import PredictOptions

    suffixes = (*FORMATS, PAGE)
    if out is not None and out.suffix.lower() not in suffixes:
        raise InputError(f"--out: the suffix must be one of {', '.join(suffixes)}, got {out.suffix or 'none'}")
    options = ExplainOptions.from_plain(
        {
            "method": method, "label": label, "against": against, "object": object_, "layers": layer or [],
            "steps": steps, "faithfulness": faithfulness, "randomize": randomize,
        },
        where="explain",
    )  # fmt: skip
    opened = load(model, device=device)
    inputs = expand_inputs(images, opened.kind, fetch=fetch)
    if inputs.ignored:
        console.errors.print(inputs.ignored.text())
    is_figure = inputs.count == 1 if out is None else out.suffix.lower() != PAGE
    if is_figure and inputs.count != 1:
        raise InputError(f"--out: a figure shows one image, got several; name a page, {out and out.with_suffix(PAGE)}")
    page = None if is_figure or (as_json and out is None) else ExplanationPage(f"Explanations by {opened.header.name}")
    shown: list[Explanation] = []
    rows: list[tuple[str, ...]] = []
    errors: list[str] = []
    done = 0
    with console.progress_bar() as progress:
        for explanation in explain_images(opened, inputs.items, options, PredictOptions(batch=batch, fetch=fetch)):
            done += 1
            if explanation.error:
                errors.append(explanation.error)
            elif is_figure:
                shown.append(explanation)
            else:
                rows.append(row_of(explanation))
            if page is not None:
                page.add(explanation)
            if as_json:
                console.print_json(explanation.to_plain(), indent=None)
            progress("explaining", done, inputs.count or 0)
    written: Path | None = None
    if page is not None and rows:
        page.write(written := out or Path(f"explanations{PAGE}"))
    for explanation in shown:
        if out is not None or not as_json:
            explanation.figure(written := out or Path(f"{Path(explanation.source).stem}-explanation.png"))
        if not as_json:
            console.console.print(explanation.text())
    if rows and not as_json:
        table = as_table(rows)
        console.table(table.columns, table.rows, right=[name for i, name in enumerate(table.columns) if i in RIGHT])
    if written is not None:
        (console.errors if as_json else console.console).print(printable(str(written)))
    for error in errors:
        console.print_error(error)
    if errors:
        raise typer.Exit(2)
