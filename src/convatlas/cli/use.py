"""The command `predict`: classify images, or find objects in them."""

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
from convatlas.system import quantities

if TYPE_CHECKING:
    from convatlas.inference.model import Model
    from convatlas.tasks.prediction import Prediction
    from convatlas.tasks.task import Task

TOP = 3
"""Default number of classes for each image."""


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
        int | None,
        option("Number of classes for each image, also in --json; only of classifiers.",
               metavar="N", panel=OUTPUT, read=integer(1), default=str(TOP)),
    ] = None,
    threshold: Annotated[
        float | None,
        option("Minimum score of an object, of detectors; minimum probability of the predicted class, of classifiers: "
               "below it an image is unknown. The default is the model's own.",
               metavar="P", panel=MODEL, read=probability),
    ] = None,
    classes: Annotated[
        str | None,
        option("Classes of which objects are kept, separated by commas; only of detectors.",
               metavar="NAMES", panel=MODEL),
    ] = None,
    nms: Annotated[
        float | None,
        option("Maximum intersection over union (IoU) of two objects of one class; above it only the one with the "
               "higher score is kept. Only of detectors, which use 0.5 themselves.",
               metavar="IOU", panel=MODEL, read=probability),
    ] = None,
    tile: Annotated[
        int | None,
        option("Also predict tiles of this size of larger images, for small objects; only of detectors.",
               metavar="PX", panel=MODEL, read=integer(32)),
    ] = None,
    overlap: Annotated[
        float,
        option("Overlap of neighboring tiles, as a share of their size; it should be larger than the objects; only "
               "with --tile.",
               metavar="SHARE", panel=MODEL, read=quantities.share),
    ] = 0.2,
    tta: Annotated[
        str,
        option("Test-time augmentation: none; flip for the image and its mirror image; ten-crop for the corners, the "
               "center and their mirror images; only of classifiers.", metavar="NAME", panel=MODEL),
    ] = "none",
    ensemble: Annotated[
        list[str] | None,
        option("Average the probabilities with those of this model; repeatable; only of classifiers.",
               metavar="MODEL", panel=MODEL),
    ] = None,
    engine: Engine = "auto",
    device: Device = "auto",
    batch: Batch = None,
    fetch: Annotated[
        bool, option("Allow the download of images from http:// and https:// URLs.", "--fetch", panel=DATA)
    ] = False,
    sheet: Annotated[
        Path | None,
        option("Write a contact sheet of the first images and their predictions to this file: .svg, .png or .pdf.",
               metavar="FILE", panel=OUTPUT),
    ] = None,
    as_json: Annotated[bool, option("Print one JSON object per line.", "--json", panel=OUTPUT)] = False,
    as_csv: Annotated[
        bool, option("Print comma-separated values: a row for each image, or object.", "--csv", panel=OUTPUT)
    ] = False,
    save: Annotated[
        Path | None,
        option("Write the images, with the objects drawn on them, to this folder; only of detectors.",
               metavar="FOLDER", panel=OUTPUT),
    ] = None,
    coco: Annotated[
        Path | None,
        option("Write the objects to this result file of COCO (JSON); only of detectors.",
               metavar="FILE", panel=OUTPUT),
    ] = None,
    yolo: Annotated[
        Path | None,
        option("Write the objects of each image to a text file of YOLO in this folder; only of detectors.",
               metavar="FOLDER", panel=OUTPUT),
    ] = None,
) -> None:  # fmt: skip
    """Classify images, or find objects in them. Unreadable images are reported; the exit code is then 2."""
    from convatlas.inference.inputs import expand_inputs
    from convatlas.inference.model import Ensemble
    from convatlas.inference.options import BATCH, PredictOptions, refusal
    from convatlas.inference.prediction_files import PredictionFiles

    if as_json and as_csv:
        raise InputError("--json and --csv exclude each other; give one of them")
    names = [] if classes is None else [name.strip() for name in classes.split(",")]
    options = PredictOptions.from_plain(
        {
            "batch": batch, "tta": tta, "threshold": threshold, "fetch": fetch, "top": top, "classes": names,
            "nms": nms, "tile": tile, "overlap": overlap,
        },
        where="predict",
    )  # fmt: skip
    inputs = expand_inputs(images, fetch=fetch)
    if inputs.ignored:
        console.errors.print(inputs.ignored.text())
    size = min(batch or BATCH, inputs.count or batch or BATCH)
    models = [
        load_on_engine(name, engine, device, batch=size, count=inputs.count or 0) for name in [model, *(ensemble or [])]
    ]
    predictor = Ensemble(tuple(models)) if ensemble else models[0]
    task = models[0].header.task
    options.check(task, members=len(models))
    for option_name, path in (("save", save), ("coco", coco), ("yolo", yolo)):
        if path is not None and option_name not in task.options:
            raise refusal(task, option_name)
    top = min(top or TOP, len(task.classes))
    if "top" in task.options:
        options = dataclasses.replace(options, top=top)
    write = _write_json if as_json else _csv_writer(task, top) if as_csv else None
    files = PredictionFiles(task.classes, sheet, save, coco, yolo)
    files.prepare()
    originals = list(inputs.images) if inputs.count is not None else []
    rows: list[tuple[str, ...]] = []
    headings: tuple[str, ...] = ()
    unreadable: list[Prediction] = []
    start, done = time.perf_counter(), 0
    with console.progress_bar() as progress:
        for prediction in predictor.stream(inputs.images, options):
            if prediction.error:
                unreadable.append(prediction)
            files.add(originals[done] if originals else prediction.source, prediction)
            done += 1
            if write is not None:
                write(prediction)
            elif not prediction.error:
                headings = prediction.headings(top)
                rows.append((printable(prediction.source), *prediction.cells(top)))
            progress("predicting", done, inputs.count or 0)
    duration = time.perf_counter() - start
    if rows:
        console.table(("image", *headings), rows)
    for line in files.finish():
        console.errors.print(printable(line))
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
    """Return a function that writes the rows of each prediction; the header is written now."""
    columns = list(task.unreadable("", "").to_rows(top)[0])
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()

    def write(prediction: Prediction) -> None:
        writer.writerows(prediction.to_rows(top))
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
