"""The commands that bring a model to where it runs: export, bench, serve."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import (
    DATA,
    EXECUTION,
    LIMITS,
    OUTPUT,
    Batch,
    Device,
    Engine,
    Json,
    MaxUnreadableLikeTraining,
    ModelFile,
    integer,
    option,
)
from convatlas.cli.use import load_on_engine
from convatlas.errors import printable
from convatlas.system import quantities
from convatlas.system.load import MAX_QUIET_SHARE, describe_load
from convatlas.tasks.table import pluralize

MAX_LAYERS = 10
"""Maximum number of layers in the table of quantization noise; --json has all of them."""


def export(
    model: ModelFile,
    to: Annotated[
        str, option("Format: onnx, openvino or torch-export; of detectors onnx.", metavar="NAME", panel=OUTPUT)
    ],
    out: Annotated[
        Path | None,
        option("File to write; the default is next to the model.", "--out", "-o", metavar="FILE", panel=OUTPUT),
    ] = None,
    check: Annotated[
        str | None,
        option("Images or videos on which the exported file is compared with the model; the default is the training "
               "data.",
               metavar="DATA", panel=DATA),
    ] = None,
    int8: Annotated[
        str | None,
        option("Quantize to 8-bit integers, calibrated and measured on this labeled data; only of classifiers.",
               metavar="DATA", panel=DATA),
    ] = None,
    max_accuracy_drop: Annotated[
        float,
        option("Maximum loss of accuracy with --int8, in percentage points; more must be significant to count.",
               metavar="POINTS", panel=OUTPUT, read=quantities.points, default="0.5pp"),
    ] = 0.005,
    max_unreadable: MaxUnreadableLikeTraining = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Export a model with its preprocessing; the file is written only if its predictions match on real images."""
    from convatlas.inference.export import export, path_beside
    from convatlas.inference.load import load

    path = path_beside(model, to, int8=int8 is not None) if out is None else out
    with console.progress_bar() as progress:
        result = export(
            load(model), to, path, check=check, int8=int8, max_accuracy_drop=max_accuracy_drop,
            max_unreadable=max_unreadable, progress=progress,
        )  # fmt: skip
    if as_json:
        console.print_json(result.to_plain())
        return
    show = console.console.print
    if result.layers:
        worst = result.layers[:MAX_LAYERS]
        rows = [
            (layer.name, f"{layer.signal_to_noise_db:.1f}", "float32" if layer.in_float32 else "int8")
            for layer in worst
        ]
        console.table(("layer", "SNR dB", "precision"), rows, right=("SNR dB",))
        in_float32 = sum(layer.in_float32 for layer in result.layers)
        shown = f"the {len(worst)} with the most noise of {len(result.layers)} layers"
        show(f"{shown}; {pluralize(in_float32, 'layer')} in float32")
    display = console.display()
    display.print_remarks(result.remarks)
    display.print_skipped(result.unreadable)
    show(result.parity.text())
    if result.accuracy:
        show(f"{result.accuracy.metric} {result.accuracy.text()}")
        show(result.accuracy.limit_text(max_accuracy_drop))
    if result.size_and_speed:
        show(result.size_and_speed.text())
    size = sum(file.stat().st_size for file in result.files) / 2**20
    show(f"{' and '.join(map(str, result.files))}: {size:.1f} MiB")


def bench(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODELS...", help="Model files, run directories, exported files, or networks by name."),
    ],
    engines: Annotated[
        str,
        option("Inference engines, separated by commas; the default is all that are installed, except compile.",
               metavar="NAMES", panel=EXECUTION),
    ] = "",
    batches: Annotated[
        str,
        option("Batch sizes, separated by commas.",
               metavar="SIZES", panel=EXECUTION, default="1,16, or 1,4 for clips and detectors"),
    ] = "",
    image_size: Annotated[
        str | None,
        option("Width and height of the images in pixels, for example 1280x720; only of detectors, whose default is "
               "their resolution and a width of 4/3 of it.", metavar="WxH", panel=EXECUTION),
    ] = None,
    duration: Annotated[
        float,
        option("Duration of the measurement for each row, for example 500ms.",
               metavar="TIME", panel=EXECUTION, read=quantities.seconds, default="3s"),
    ] = 3.0,
    data: Annotated[
        str | None, option("Labeled data on which trained models are also evaluated.", metavar="DATA", panel=DATA)
    ] = None,
    out: Annotated[
        Path | None, option("Write the rows to this CSV file.", "--csv", "--out", "-o", metavar="FILE", panel=OUTPUT)
    ] = None,
    plot: Annotated[
        Path | None,
        option("Plot accuracy (or parameters, without --data) against latency by engine into this file (.png, .svg, "
               ".pdf).",
               metavar="FILE", panel=OUTPUT),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure latency, throughput, memory and load time on this machine, by engine and batch size."""
    from convatlas.draw.style import check_figure_path
    from convatlas.inference.benchmark import benchmark, nouns_of, parse_batches, parse_size, plot_latency, write_csv

    if plot is not None:  # before the measurement
        check_figure_path(plot)
    with console.progress_bar() as progress:
        rows = benchmark(
            models, engines=[name for name in engines.split(",") if name],
            batches=parse_batches(batches) if batches else (), seconds=duration,
            size=None if image_size is None else parse_size(image_size), data=data, progress=progress,
        )  # fmt: skip
    if out is not None:
        write_csv(rows, out)
    if plot is not None:
        plot_latency(rows, plot)
    load = max((row.other_load for row in rows), default=0.0)
    if load > MAX_QUIET_SHARE:
        text = f"{describe_load(load)}: times on a quiet machine are shorter"
        console.errors.print(text, style="yellow")
    if as_json:
        console.print_json([row.to_plain() for row in rows])
        return
    speed = f"{nouns_of(rows)}/s"
    columns: tuple[str, ...] = ("model", "engine", "batch", "p50 ms", "p95 ms", "min ms", speed, "MiB", "load s")
    cells: list[tuple[object, ...]] = [
        (
            row.label, row.engine, row.batch, f"{row.p50_ms:.2f}", f"{row.p95_ms:.2f}", f"{row.min_ms:.2f}",
            f"{row.per_second:,.1f}", "" if row.memory_mib is None else f"{row.memory_mib:,.0f}",
            f"{row.load_s:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    if any(row.objects is not None for row in rows):
        columns += ("image px", "objects")
        more = [(row.image_px or "", "" if row.objects is None else f"{row.objects:.1f}") for row in rows]
        cells = [(*cell, *each) for cell, each in zip(cells, more, strict=True)]
    if metrics := dict.fromkeys(row.metric for row in rows if row.metric):
        columns += ("/".join(metrics),)
        scores = ["" if row.score is None else f"{row.score:.2%}" for row in rows]
        cells = [(*cell, score) for cell, score in zip(cells, scores, strict=True)]
    console.table(columns, cells, right=columns[2:])
    for model, evaluation in dict.fromkeys((row.label, row.evaluation) for row in rows if row.evaluation):
        console.console.print(printable(f"{model}: {evaluation}"))


def serve(
    model: ModelFile,
    host: Annotated[
        str, option("Address to listen on; the default is reachable from this machine only.", panel=EXECUTION)
    ] = "127.0.0.1",
    port: Annotated[
        int, option("Port to listen on; 0 for any free port.", panel=EXECUTION, read=integer(0, 65535))
    ] = 8080,
    token: Annotated[
        str | None,
        option("Secret that every request must carry in its header `Authorization: Bearer TOKEN` (or set "
               "CONVATLAS_TOKEN).", panel=EXECUTION),
    ] = None,
    engine: Engine = "auto",
    device: Device = "auto",
    batch: Batch = None,
    wait: Annotated[
        float,
        option("Maximum time to wait for further images to fill a batch.",
               metavar="TIME", panel=EXECUTION, read=quantities.seconds, default="2ms"),
    ] = 0.002,
    max_bytes: Annotated[
        int,
        option("Maximum size of a request.", metavar="SIZE", panel=LIMITS, read=quantities.size, default="32MiB"),
    ] = 32 * 2**20,
    max_images: Annotated[
        int, option("Maximum number of images or videos in a request.", metavar="COUNT", panel=LIMITS, read=integer(1))
    ] = 64,
    max_pixels: Annotated[
        int,
        option("Maximum number of pixels of an image; of a frame of a video, a fifth of it.",
               metavar="COUNT", panel=LIMITS, read=quantities.count, default="50M"),
    ] = 50_000_000,
    max_seconds: Annotated[
        float,
        option("Maximum duration of a video.", metavar="TIME", panel=LIMITS, read=quantities.seconds, default="5min"),
    ] = 300.0,
    max_frames: Annotated[
        int,
        option("Maximum number of frames of a video.", metavar="COUNT", panel=LIMITS, read=quantities.count,
               default="10k"),
    ] = 10_000,
    max_clips: Annotated[
        int,
        option("Maximum number of clips along time of a video, with `every`.",
               metavar="COUNT", panel=LIMITS, read=integer(1)),
    ] = 600,
    queue: Annotated[
        int,
        option("Maximum number of images or videos in the queue; further requests get status 503.",
               metavar="COUNT", panel=LIMITS, read=integer(1)),
    ] = 1024,
    max_memory: Annotated[
        int | None,
        option("Maximum size of all requests together, unfinished uploads included; further requests get status 503.",
               metavar="SIZE", panel=LIMITS, read=quantities.size, default="16 x --max-bytes"),
    ] = None,
    max_connections: Annotated[
        int,
        option("Maximum number of connections; further ones get status 503.",
               metavar="COUNT", panel=LIMITS, read=integer(1)),
    ] = 512,
    timeout: Annotated[
        float,
        option("Maximum time to receive a request; slower ones get status 408.",
               metavar="TIME", panel=LIMITS, read=quantities.seconds, default="60s"),
    ] = 60.0,
) -> None:  # fmt: skip
    """Serve a model over HTTP: POST /predict for programs, a page for browsers, and /docs, /health and /metrics."""
    from convatlas.system.extras import import_optional

    for library in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        import_optional(library, "convatlas[serve]")
    from convatlas.inference.options import BATCH, default_batch
    from convatlas.inference.serve.limits import Limits
    from convatlas.inference.serve.server import bind, run_server
    from convatlas.inference.serve.token import read_token

    if token is None:  # an empty variable is an error, not the same as none
        token = read_token(os.environ.get("CONVATLAS_TOKEN"), "CONVATLAS_TOKEN")
    else:
        token = read_token(token, "--token")
    limits = Limits(
        batch=batch or BATCH, wait_s=wait, request_bytes=max_bytes, request_images=max_images, image_pixels=max_pixels,
        video_seconds=max_seconds, video_frames=max_frames, video_clips=max_clips, queue=queue, body_bytes=max_memory,
        connections=max_connections, request_s=timeout,
    )  # fmt: skip
    socket = bind(host, port)
    opened = load_on_engine(model, engine, device, batch=limits.batch)
    if batch is None:
        limits = dataclasses.replace(limits, batch=default_batch(opened.header.preprocessing))
    run_server(opened, limits, socket, token=token, log=lambda text: console.errors.print(text))
