"""The commands that use a model: predict, evaluate, export, bench, serve."""

from __future__ import annotations

import csv
import dataclasses
import glob
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convatlas.cli import console
from convatlas.errors import ConvatlasError

if TYPE_CHECKING:
    from convatlas.inference.model import Model
    from convatlas.inference.predict import EncodedImage, Prediction

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
File = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model file, an exported one (.onnx, .xml), or published weights, name@library:tag."
    ),
]
Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="A data set by name, a folder, a table of images, or arrays (docs/data.md)."),
]
EngineName = Annotated[
    str, typer.Option(help="torch, compile, onnxruntime, openvino, or auto: the fastest that is installed.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto: where torch computes.")]

SHEET = 60
"""Images on a contact sheet, at most."""


def predict(
    model: File,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Files, folders, patterns such as 'a/*.jpg', or -: standard input."),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 3,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Below this probability an image is none of the classes.")
    ] = None,
    views: Annotated[
        str, typer.Option(help="one; flip: with its mirror image; ten: corners, center and their mirror images.")
    ] = "one",
    others: Annotated[
        list[str] | None, typer.Option("--with", metavar="MODEL", help="Average with another model; repeatable.")
    ] = None,
    engine: EngineName = "auto",
    device: Device = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 16,
    fetch: Annotated[bool, typer.Option("--fetch", help="Allow images from http:// and https:// addresses.")] = False,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the first images with their answers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Name what is in images. Unreadable ones are reported, the others answered; the exit code is then 2."""
    from convatlas.inference.model import Ensemble
    from convatlas.inference.predict import PredictOptions

    if as_json and as_csv:
        raise ConvatlasError("choose one of --json and --csv")
    options = PredictOptions(batch=batch, views=views, threshold=threshold, fetch=fetch)  # type: ignore[arg-type]  # checked there
    inputs, count = _expand_inputs(images, fetch=fetch)
    size = min(batch, count or batch)
    models = [_model(name, engine, device, batch=size, inputs=count) for name in [model, *(others or [])]]
    answering = Ensemble(tuple(models)) if others else models[0]
    printer = _Printer(answering.classes, top, as_json=as_json, as_csv=as_csv, several=_several(models[0]))
    begun, done, unreadable = time.perf_counter(), 0, []
    shown: list[tuple[str, str, float]] = []
    with console.reading() as progress, printer as say:
        for prediction in answering.stream(inputs, options):
            done += 1
            if prediction.error:
                unreadable.append(prediction)
            elif len(shown) < SHEET:
                shown.append((prediction.source, prediction.text, prediction.probability))
            say(prediction)
            progress("predicting", done, count or done)
    taken = time.perf_counter() - begun
    if sheet is not None and shown:
        from convatlas.draw.contact_sheet import draw_answers

        draw_answers(shown, sheet)
        console.errors.print(str(sheet))
    if done > 1 and taken > 2:
        console.errors.print(f"{done:,} images in {taken:.1f} s, {done / taken:,.1f} images/s; {models[0].engine}")
    for each in unreadable:
        console.errors.print(f"convatlas: {each.error}", style="red")
    if unreadable:
        raise typer.Exit(2)


def _several(model: Model) -> bool:
    return model.header.task == "tagging"


def _model(name: str, engine: str, device: str, *, batch: int, inputs: int | None = None) -> Model:
    """Open a model on an engine, and say which one was chosen where there was a choice."""
    from convatlas.inference.model import load

    runtime = engine in ("onnxruntime", "openvino")  # which run on the CPU, and have their graphs made there
    model = load(name, device="cpu" if runtime and device == "auto" else device)
    if model.network is None:
        if engine not in ("auto", "torch" if inputs == 0 else "", model.engine.name):
            raise ConvatlasError(f"--engine {engine}: {name} is exported for {model.engine.name}")
        return model
    chosen = model.choose(engine, batch=batch, count=inputs)
    if chosen.seconds:
        console.errors.print(f"engine for {batch} at once: {chosen}")
    for other, why in chosen.refused.items():
        console.errors.print(f"engine {other} left out: {why}")
    return dataclasses.replace(model, given=chosen.engine)


class _Printer:
    """Print predictions as they come: JSON lines, CSV, or at the end as a table."""

    def __init__(self, classes: tuple[str, ...], top: int, *, as_json: bool, as_csv: bool, several: bool) -> None:
        self.classes, self.top = classes, min(top, len(classes))
        self.as_json, self.as_csv, self.several = as_json, as_csv, several
        self.rows: list[tuple[str, ...]] = []
        self.said = False

    def __enter__(self) -> Any:
        if self.as_csv:
            self.writer = csv.writer(sys.stdout, lineterminator="\n")
            self.writer.writerow(["source", "label", "probability", *self.classes, "error"])
        return self.json if self.as_json else self.csv if self.as_csv else self.row

    def __exit__(self, *_: object) -> None:
        if self.rows:
            answers = ("is",) * self.said
            rows = [row if self.said else (row[0], *row[2:]) for row in self.rows]
            console.table(("image", *answers, "most probable", *("next",) * (self.top - 1)), rows)

    def json(self, p: Prediction) -> None:
        line = {"source": p.source, "error": p.error} if p.error else {
            "source": p.source, "label": p.label, "probability": p.probability, "labels": list(p.labels),
            "probabilities": p.probabilities,
        }  # fmt: skip
        print(json.dumps(line, ensure_ascii=False), flush=True)

    def csv(self, p: Prediction) -> None:
        names = (p.label, *self.classes)
        numbers = [f"{p.probabilities[name]:.6f}" if not p.error else "" for name in names]
        self.writer.writerow([p.source, p.label if p.labels or p.error else "", *numbers, p.error])

    def row(self, p: Prediction) -> None:
        if not p.error:
            self.said |= self.several or p.labels != (p.label,)
            likely = [f"{q:7.2%}  {name}" for name, q in list(p.probabilities.items())[: self.top]]
            self.rows.append((p.source, p.text, *likely))


def _expand_inputs(images: list[str], *, fetch: bool) -> tuple[Iterable[Path | str | EncodedImage], int | None]:
    """Return what is to be looked at, and how many that are; None where standard input says it as it goes."""
    from convatlas.data.readers.folder import images_in

    if images == ["-"]:
        return _from_input(), None
    found: list[Path | str] = []
    for name in images:
        path = Path(name)
        if name.startswith(("http://", "https://")):
            if not fetch:
                raise ConvatlasError(f"{name}: images are fetched from the network only with --fetch")
            found.append(name)
        elif path.is_dir():
            inside = images_in(path)
            if not inside:
                raise ConvatlasError(f"{path}: there are no images in this folder")
            found += inside
        elif glob.has_magic(name) and not path.exists():
            matching = sorted(Path(each) for each in glob.glob(name, recursive=True))
            found += [each for each in matching if each.is_file()] or [path]  # which is then said to be missing
        else:
            found.append(path)
    return found, len(found)


def _from_input() -> Iterator[Path | EncodedImage]:
    """Yield the images that standard input names, one in a line, or the one that it is."""
    from convatlas.inference.predict import EncodedImage

    source = sys.stdin.buffer
    first = source.readline()
    if b"\0" in first or first.startswith((b"\x89PNG", b"\xff\xd8", b"GIF8", b"BM", b"P5", b"P6")):
        yield EncodedImage("standard input", first + source.read())
        return
    while first:
        name = first.decode(errors="surrogateescape").strip()
        if name:
            yield Path(name)
        first = source.readline()


def evaluate(
    model: File,
    data: Data,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; test if left out, or else val, or else all.")
    ] = None,
    max_unreadable: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of unreadable images to leave out; as in the training if not given."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="As for predict; torch, or that of an exported file, if left out.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on a data set, class by class."""
    opened = _model(model, engine or "torch", device, batch=64, inputs=None if engine else 0)
    with console.reading() as progress:
        split, result, unreadable = opened.evaluate(data, split=split, max_unreadable=max_unreadable, progress=progress)
    columns, rows = console.by_class(result, opened.classes)
    if as_json:
        classes = {name: dict(zip(columns[1:], values, strict=True)) for name, *values in rows}
        unread = [dataclasses.asdict(image) for image in unreadable]
        summary = {
            "model": model, "data": data, "split": split, "engine": str(opened.engine), **result.summary(),
            "classes": classes, "unreadable": unread,
        }  # fmt: skip
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    shown = [
        tuple("" if v is None else f"{v:.2%}" if isinstance(v, float) else str(v) for v in values) for values in rows
    ]
    console.table(columns, shown, right=columns[1:])
    whole = "; all images: a flattering number if the network was trained on some of them"
    console.measured(split, result, whole if split == "all" else "")
    console.left_out(unreadable)


def export(
    model: File,
    to: Annotated[str, typer.Option(help="onnx, openvino or torch-export.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file; beside the model if left out.")] = None,
    check: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images to compare the answers on; the data of the training if left out."),
    ] = None,
    int8: Annotated[
        str | None, typer.Option(metavar="DATA", help="8-bit numbers, calibrated and measured on this labeled data.")
    ] = None,
    max_accuracy_drop: Annotated[
        float, typer.Option(metavar="POINTS", help="Of int8: percentage points of accuracy that may be lost.")
    ] = 0.5,
    as_json: Json = False,
) -> None:
    """Write a model for other programs, with its preprocessing; only if it answers the same on real images."""
    from convatlas.inference.export import SUFFIXES, export
    from convatlas.inference.model import load

    opened = load(model)
    if out is None:
        path = Path(model)
        beside = path if path.is_file() else Path(model.replace("@", "-").replace(":", "-"))
        ending = "-int8" * (int8 is not None) + SUFFIXES.get(to, "")
        out = beside.with_name(beside.name.removesuffix(".safetensors") + ending)
    with console.reading() as progress:
        made = export(
            opened, to, out, check=check, int8=int8, max_accuracy_drop=max_accuracy_drop / 100, progress=progress
        )
    if as_json:
        print(json.dumps({**dataclasses.asdict(made), "path": str(made.path)}, indent=2, ensure_ascii=False))
        return
    kept = sum(layer.kept for layer in made.layers)
    if made.layers:
        rows = [
            (layer.name, f"{layer.decibels:.1f}", "float32" if layer.kept else "int8") for layer in made.layers[:10]
        ]
        console.table(("layer", "dB", ""), rows, right=("dB",))
        console.console.print(
            f"signal to noise of the {len(rows)} worst of {len(made.layers)} layers; {kept} in float32"
        )
    same, n = made.parity.same, made.parity.images
    console.console.print(
        f"{same} of {n} images with the same answer, probabilities up to {made.parity.difference:.1e} apart"
    )
    if made.parity.accuracy:
        before, after = made.parity.accuracy
        console.console.print(f"accuracy {before:.2%} in float32, {after:.2%} in int8")
    files = [made.path, made.path.with_suffix(".bin")] if made.format == "openvino" else [made.path]
    size = sum(file.stat().st_size for file in files) / 2**20
    console.console.print(f"{' and '.join(map(str, files))}: {size:.1f} MiB")


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODELS...", help="Model files, or networks by name.")],
    engines: Annotated[
        str, typer.Option(metavar="NAMES", help="Separated by commas; all that are installed, if left out.")
    ] = "",
    batches: Annotated[str, typer.Option(metavar="SIZES", help="Images at once, separated by commas.")] = "1,16",
    seconds: Annotated[float, typer.Option(min=0.1, help="For each row.")] = 3.0,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Measure accuracy, too, of models that know its classes.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Save the rows as .csv.")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw accuracy, or else parameters, against latency.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure on this machine: latency, images/s, memory and load time, by engine and batch."""
    from convatlas.inference.benchmark import benchmark, draw, numbers, write

    sizes = numbers("--batches", batches)
    with console.reading() as progress:
        rows = benchmark(
            models, engines=[name for name in engines.split(",") if name], batches=sizes, seconds=seconds, data=data,
            progress=progress,
        )  # fmt: skip
    if out is not None:
        write(rows, out)
    if image is not None:
        draw(rows, image)
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    columns = ("model", "engine", "batch", "p50 ms", "p95 ms", "min ms", "images/s", "MiB", "load s")
    scored = any(row.accuracy is not None for row in rows)
    console.table(
        (*columns, *("accuracy",) * scored),
        [
            (
                row.model, row.engine, row.batch, f"{row.p50:.2f}", f"{row.p95:.2f}", f"{row.least:.2f}",
                f"{row.rate:,.1f}", f"{row.memory:,.0f}", f"{row.load:.2f}",
                *("" if row.accuracy is None else f"{row.accuracy:.2%}",) * scored,
            )
            for row in rows
        ],
        right=(*columns[2:], "accuracy"),
    )  # fmt: skip


def serve(
    model: File,
    host: Annotated[
        str, typer.Option(help="Address to listen on; only this machine can reach the default.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    token: Annotated[
        str | None, typer.Option(envvar="CONVATLAS_TOKEN", help="Requests must carry it: Authorization: Bearer TOKEN.")
    ] = None,
    engine: EngineName = "auto",
    device: Device = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images at once, of different requests.")] = 16,
    wait: Annotated[float, typer.Option(min=0, metavar="MS", help="To wait for others to fill a batch.")] = 2.0,
    max_bytes: Annotated[int, typer.Option(min=1, help="Of a request.")] = 32 * 2**20,
    max_images: Annotated[int, typer.Option(min=1, help="In a request.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of an image.")] = 50_000_000,
    queue: Annotated[int, typer.Option(min=1, help="Images that may wait; more are refused with 503.")] = 1024,
) -> None:
    """Answer about images over HTTP: POST /predict; /health, /metrics and /openapi.json beside it."""
    from convatlas.system.extras import needed

    for library in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        needed(library, "serve")
    from convatlas.inference.serve import Limits, listen, run

    listening = listen(host, port)
    opened = _model(model, engine, device, batch=batch)
    limits = Limits(
        batch=batch, wait=wait / 1000, bytes=max_bytes, images=max_images, pixels=max_pixels, queue=queue
    )  # fmt: skip
    run(opened, limits, listening, token=token, say=lambda text: console.errors.print(text))
