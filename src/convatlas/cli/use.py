"""The commands that use a model: predict and evaluate."""

from __future__ import annotations

import csv
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import (
    DATA,
    EXECUTION,
    MODEL,
    OUTPUT,
    Batch,
    DataSet,
    Device,
    Engine,
    Json,
    ModelFile,
    integer,
    option,
    probability,
)
from convatlas.errors import InputError, printable
from convatlas.system import quantities

if TYPE_CHECKING:
    from convatlas.inference.model import Model
    from convatlas.tasks.task import Prediction

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
        int, option("Number of classes that are printed for each image.", metavar="N", panel=OUTPUT, read=integer(1))
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
        option("Write a contact sheet of the first images and their predictions to this PNG file.",
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
    options = PredictOptions.from_plain(
        {"batch": batch, "tta": tta, "threshold": threshold, "fetch": fetch}, where="predict"
    )
    inputs = expand_inputs(images, fetch=fetch)
    if inputs.ignored:
        console.errors.print(inputs.ignored.text())
    size = min(batch, inputs.count or batch)
    models = [
        load_on_engine(name, engine, device, batch=size, count=inputs.count) for name in [model, *(ensemble or [])]
    ]
    predictor = Ensemble(tuple(models)) if ensemble else models[0]
    task = models[0].header.task
    top = min(top, len(task.classes))
    write = _json_writer() if as_json else _csv_writer(task.classes) if as_csv else None
    rows: list[tuple[str, ...]] = []
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
                rows.append((printable(prediction.source), *prediction.cells(top)))
            progress("predicting", done, inputs.count or 0)
    duration = time.perf_counter() - start
    if rows:
        console.table(("image", *task.prediction_columns(top)), rows)
    if sheet is not None and sheet_images:
        from convatlas.data.decode.display import display_image
        from convatlas.draw.contact_sheet import Captioned, captioned_images

        captioned_images(
            [
                Captioned(display_image(file), text, f"{probability:.1%}  {Path(file).name[:22]}")
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


def _json_writer() -> Callable[[Prediction], None]:
    return lambda prediction: console.print_json(prediction.to_plain(), indent=None)


def _csv_writer(classes: Sequence[str]) -> Callable[[Prediction], None]:
    """Return a function that writes a row for each prediction, with empty cells for unreadable images.

    Several labels are separated by |, as in tables of multi-label data.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["source", "label", "probability", *classes, "error"])

    def write(prediction: Prediction) -> None:
        plain = prediction.to_plain()
        probabilities = plain.get("probabilities", {})
        values = [plain.get("probability"), *map(probabilities.get, classes)]
        numbers = ["" if value is None else f"{value:.6f}" for value in values]
        writer.writerow([prediction.source, "|".join(plain.get("labels", ())), *numbers, prediction.error])
        sys.stdout.flush()

    return write


def load_on_engine(name: str, engine: str, device: str, *, batch: int, count: int | None = None) -> Model:
    """Load a model on an engine. Engines that were measured or that cannot run the network are reported."""
    from convatlas.inference.model import load

    cpu_only = engine in ("onnxruntime", "openvino")
    model = load(name, device="cpu" if cpu_only and device == "auto" else device)
    if model.network is None:
        if engine not in ("auto", model.engine.name):
            raise InputError(f"--engine: {name} is exported for {model.engine.name}, got {engine}")
        return model
    choice = model.choose(engine, batch=batch, count=count)
    if choice.seconds:
        console.errors.print(f"engine for batches of {batch}: {choice}")
    for other, reason in choice.failures.items():
        console.errors.print(f"engine {other} skipped: {reason}")
    return dataclasses.replace(model, engine_override=choice.engine)


def evaluate(
    model: ModelFile,
    data: DataSet,
    split: Annotated[
        str | None,
        option("Split: train, val, test or all. The default is test, else val, else all.", metavar="NAME", panel=DATA),
    ] = None,
    max_unreadable: Annotated[
        float | None,
        option("Maximum share of unreadable images, which are skipped and listed; by default that of the training.",
               metavar="SHARE", panel=DATA, read=quantities.share),
    ] = None,
    engine: Annotated[
        str | None,
        option("Inference engine: torch (the default), compile, onnxruntime, openvino or auto; an exported file has "
               "its own.", metavar="NAME", panel=EXECUTION),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure a model on a data set, class by class."""
    from convatlas.inference.model import load

    opened = load(model, device=device) if engine is None else load_on_engine(model, engine, device, batch=64)
    with console.progress_bar() as progress:
        evaluation = opened.evaluate(data, split=split, max_unreadable=max_unreadable, progress=progress)
    if as_json:
        console.print_json({"model": model, "data": data, "engine": str(opened.engine), **evaluation.to_plain()})
        return
    console.metrics_table(evaluation.result.table())
    note = ""
    if evaluation.split == "all":
        note = "; all images: optimistically biased if the network was trained on some of them"
    console.print_result(evaluation.split, evaluation.result, note)
    console.print_remarks(evaluation.remarks)
    console.print_skipped(evaluation.unreadable)
