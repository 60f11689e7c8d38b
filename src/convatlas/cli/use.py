"""The command `predict`: classify images."""

from __future__ import annotations

import csv
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import (
    DATA,
    MODEL,
    OUTPUT,
    Batch,
    Device,
    Engine,
    ModelFile,
    integer,
    option,
    probability,
)
from convatlas.errors import InputError, printable

if TYPE_CHECKING:
    from convatlas.inference.model import Model
    from convatlas.tasks.prediction import Prediction
    from convatlas.tasks.task import Task

MAX_SHEET = 60
"""Maximum number of images on a contact sheet."""


def predict(
    model: ModelFile,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Image files, folders, glob patterns, URLs (with --fetch), or - for standard input.",
        ),
    ],
    top: Annotated[
        int, option("Number of classes for each image, also in --json.", metavar="N", panel=OUTPUT, read=integer(1))
    ] = 3,
    threshold: Annotated[
        float | None,
        option("Minimum probability of a predicted class; an image without one is reported as unknown.",
               metavar="P", panel=MODEL, read=probability),
    ] = None,
    tta: Annotated[
        str,
        option("Test-time augmentation: none; flip for the image and its mirror image; ten-crop for the corners, the "
               "center and their mirror images.", metavar="NAME", panel=MODEL),
    ] = "none",
    ensemble: Annotated[
        list[str] | None,
        option("Average the probabilities with those of this model; repeatable.", metavar="MODEL", panel=MODEL),
    ] = None,
    engine: Engine = "auto",
    device: Device = "auto",
    batch: Batch = 16,
    fetch: Annotated[
        bool, option("Allow the download of images from http:// and https:// URLs.", "--fetch", panel=DATA)
    ] = False,
    sheet: Annotated[
        Path | None,
        option("Write a contact sheet of the first images and their predictions to this file: .svg, .png or .pdf.",
               metavar="FILE", panel=OUTPUT),
    ] = None,
    as_json: Annotated[bool, option("Print one JSON object per line.", "--json", panel=OUTPUT)] = False,
    as_csv: Annotated[bool, option("Print comma-separated values.", "--csv", panel=OUTPUT)] = False,
) -> None:  # fmt: skip
    """Classify images. Unreadable images are reported, all others are classified; the exit code is then 2."""
    from convatlas.inference.inputs import expand_inputs
    from convatlas.inference.model import Ensemble
    from convatlas.inference.predict import PredictOptions

    if as_json and as_csv:
        raise InputError("--json and --csv exclude each other; give one of them")
    if sheet is not None:
        from convatlas.draw.style import check_figure_path

        check_figure_path(sheet)
    options = PredictOptions.from_plain(
        {"batch": batch, "tta": tta, "threshold": threshold, "fetch": fetch, "top": top}, where="predict"
    )
    inputs = expand_inputs(images, fetch=fetch)
    if inputs.ignored:
        console.errors.print(inputs.ignored.text())
    size = min(batch, inputs.count or batch)
    models = [
        load_on_engine(name, engine, device, batch=size, count=inputs.count or 0) for name in [model, *(ensemble or [])]
    ]
    predictor = Ensemble(tuple(models)) if ensemble else models[0]
    task = models[0].header.task
    top = min(top, len(task.classes))
    write = _write_json if as_json else _csv_writer(task, top) if as_csv else None
    rows: list[tuple[str, ...]] = []
    headings: tuple[str, ...] = ()
    unreadable: list[Prediction] = []
    sheet_images: list[tuple[str, str, float]] = []
    start, done = time.perf_counter(), 0
    with console.progress_bar() as progress:
        for prediction in predictor.stream(inputs.images, options):
            done += 1
            if prediction.error:
                unreadable.append(prediction)
            elif len(sheet_images) < MAX_SHEET:
                sheet_images.append((prediction.source, prediction.text, prediction.probability or 0.0))
            if write is not None:
                write(prediction)
            elif not prediction.error:
                headings = prediction.headings(top)
                rows.append((printable(prediction.source), *prediction.cells(top)))
            progress("predicting", done, inputs.count or 0)
    duration = time.perf_counter() - start
    if rows:
        console.table(("image", *headings), rows)
    if sheet is not None and sheet_images:
        from convatlas.data.decode.display import display_image
        from convatlas.draw.contact_sheet import Captioned, captioned_images

        captioned_images(
            [
                Captioned(display_image(file), text, f"{probability:.1%}  {Path(file).name}")
                for file, text, probability in sheet_images
            ],
            path=sheet,
        )
        console.errors.print(str(sheet))
    if done > 1 and duration > 2:
        rate = f"{done:,} images in {duration:.1f} s, {done / duration:,.1f} images/s"
        console.errors.print(f"{rate}; engine {models[0].engine}")
    for prediction in unreadable:
        console.print_error(prediction.error)
    if unreadable:
        raise typer.Exit(2)


def _write_json(prediction: Prediction) -> None:
    console.print_json(prediction.to_plain(), indent=None)


def _csv_writer(task: Task, top: int) -> Callable[[Prediction], None]:
    """Return a function that writes a row for each prediction; the header is written now."""
    columns = list(task.unreadable("", "").to_row(top))
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()

    def write(prediction: Prediction) -> None:
        writer.writerow(prediction.to_row(top))
        sys.stdout.flush()

    return write


def load_on_engine(name: str, engine: str, device: str, *, batch: int, count: int | None = None) -> Model:
    """Load a model on an engine. Engines that were measured or that cannot run the network are reported.

    count: number of images; 0 if it is unknown and nothing should be measured, None for many.
    """
    from convatlas.inference.model import load

    cpu_only = engine in ("onnxruntime", "openvino")
    model = load(name, device="cpu" if cpu_only and device == "auto" else device)
    if model.network is None:
        if engine not in ("auto", model.engine.name):
            raise InputError(f"--engine: {name} is exported for {model.engine.name}, got {engine}")
        return model
    choice = model.choose(engine, batch=batch, count=count, log=console.errors.print)
    if choice.seconds:
        console.errors.print(f"engine for batches of {batch}: {choice}")
    for other, reason in choice.failures.items():
        console.errors.print(f"engine {other} skipped: {reason}")
    return dataclasses.replace(model, engine_override=choice.engine)
