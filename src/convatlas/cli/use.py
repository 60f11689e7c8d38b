"""The command `predict`: classify images or videos, or find objects in images."""

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
    MODEL,
    OUTPUT,
    Batch,
    Device,
    Engine,
    Fetch,
    JsonLines,
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


def _read_seconds(text: str) -> float:
    """Read a time; a number without a unit is in seconds."""
    try:
        return float(text)
    except ValueError:
        return quantities.seconds(text)


def predict(
    model: ModelFile,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Image files, folders, glob patterns, URLs (with --fetch), or - for standard input. For networks that "
            "read clips: video files (FILE#t=10,20 for a part), folders of frames, and folders and patterns of these.",
        ),
    ],
    top: Annotated[
        int | None,
        option("Number of classes for each image or video, also in --json; only of classifiers.",
               metavar="N", panel=OUTPUT, read=integer(1), default=str(TOP)),
    ] = None,
    threshold: Annotated[
        float | None,
        option("Minimum score of an object, of detectors; minimum probability of the predicted class, of classifiers: "
               "below it an image, or a video, is unknown. The default is the model's own.",
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
    every: Annotated[
        float | None,
        option("Also predict clips along time: the time from the start of one clip to that of the next, for example 1s "
               "or 500ms; only of networks that read clips.", metavar="TIME", panel=MODEL, read=_read_seconds),
    ] = None,
    engine: Engine = "auto",
    device: Device = "auto",
    batch: Batch = None,
    fetch: Fetch = False,
    sheet: Annotated[
        Path | None,
        option("Write a contact sheet of the first images, or frames of videos, and their predictions to this file: "
               ".svg, .png or .pdf.", metavar="FILE", panel=OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None,
        option("Plot the probabilities of the most probable classes over time to this file (.svg, .png, .pdf), a panel "
               "for each of the first 12 videos; only with --every.", metavar="FILE", panel=OUTPUT),
    ] = None,
    as_json: JsonLines = False,
    as_csv: Annotated[
        bool,
        option("Print comma-separated values: a row for each image, object, video or clip along time.",
               "--csv", panel=OUTPUT),
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
    """Classify images or videos, or find objects in images. What is unreadable is reported; the exit code is then 2."""
    from convatlas.inference.inputs import expand_inputs
    from convatlas.inference.model import Ensemble
    from convatlas.inference.options import PredictOptions, default_batch, refusal
    from convatlas.inference.prediction_files import PredictionFiles

    if as_json and as_csv:
        raise InputError("--json and --csv exclude each other; give one of them")
    if plot is not None and every is None:
        raise InputError("--plot: needs --every, for example --every 1s: it shows probabilities over time")
    kept = [] if classes is None else [name.strip() for name in classes.split(",")]
    options = PredictOptions.from_plain(
        {
            "batch": batch, "tta": tta, "threshold": threshold, "fetch": fetch, "top": top, "classes": kept,
            "nms": nms, "tile": tile, "overlap": overlap, "every": every,
        },
        where="predict",
    )  # fmt: skip
    loaded = [load_for_engine(name, engine, device) for name in [model, *(ensemble or [])]]
    header = loaded[0].header
    task, steps = header.task, header.preprocessing
    options.check(task, members=len(loaded))
    kind = loaded[0].kind
    inputs = expand_inputs(images, kind, fetch=fetch)
    if inputs.ignored:
        console.errors.print(inputs.ignored.text())
    clips = 1 if steps.sampling is None else steps.sampling.clips
    count = None if every else clips * (inputs.count or 0)
    size = min(batch or default_batch(steps), count or batch or default_batch(steps))
    names = [model, *(ensemble or [])]
    models = [on_engine(each, name, engine, batch=size, count=count) for each, name in zip(loaded, names, strict=True)]
    predictor = Ensemble(tuple(models)) if ensemble else models[0]
    for option_name, path in (("save", save), ("coco", coco), ("yolo", yolo), ("plot", plot)):
        if path is not None and option_name not in task.options:
            raise refusal(task, option_name)
    top = min(top or TOP, len(task.classes))
    if "top" in task.options:  # a plot needs all classes
        options = dataclasses.replace(options, top=None if plot else top)
    write = _write_json if as_json else _csv_writer(task, top) if as_csv else None
    files = PredictionFiles(task.classes, sheet, save, coco, yolo, plot)
    files.prepare()
    originals = list(inputs.items) if inputs.count is not None else []
    rows: list[tuple[str, ...]] = []
    headings: tuple[str, ...] = ()
    unreadable: list[Prediction] = []
    start, done = time.perf_counter(), 0
    with console.progress_bar() as progress:
        for prediction in predictor.stream(inputs.items, options):
            if prediction.error:
                unreadable.append(prediction)
            files.add(originals[done] if originals else prediction.source, prediction)
            done += 1
            if write is not None:
                write(prediction.with_top(top))
            elif not prediction.error:
                headings = prediction.headings(top)
                first, *others = prediction.cell_rows(top)
                rows += [(printable(prediction.source), *first), *(("", *row) for row in others)]
            progress("predicting", done, inputs.count or 0)
    duration = time.perf_counter() - start
    if rows:
        console.table((kind.noun, *headings), rows)
    for line in files.finish():
        console.errors.print(printable(line))
    if done > 1 and duration > 2:
        rate = f"{done:,} {kind.noun}s in {duration:.1f} s, {done / duration:,.1f} {kind.noun}s/s"
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
    """Load a model on an engine; see `load_for_engine` and `on_engine`."""
    return on_engine(load_for_engine(name, engine, device), name, engine, batch=batch, count=count)


def load_for_engine(name: str, engine: str, device: str) -> Model:
    """Load a model on the device that an engine needs."""
    from convatlas.inference.load import load

    cpu_only = engine in ("onnxruntime", "openvino")
    return load(name, device="cpu" if cpu_only and device == "auto" else device)


def on_engine(model: Model, name: str, engine: str, *, batch: int, count: int | None = None) -> Model:
    """Return a model on an engine. Engines that were measured or that cannot run the network are reported.

    name: of the model, as it was given. count: number of images or clips; 0 if it is unknown and nothing should be
    measured, None for many.
    """
    if model.network is None:
        if engine not in ("auto", model.engine.name):
            raise InputError(f"--engine: {name} is exported for {model.engine.name}, got {engine}")
        return model
    choice = model.choose(engine, batch=batch, count=count, log=console.errors.print)
    if choice.seconds:
        console.errors.print(f"engine for batches of {choice.batch}: {choice}")
    for other, reason in choice.failures.items():
        console.errors.print(f"engine {other} skipped: {reason}")
    return dataclasses.replace(model, engine_override=choice.engine)
