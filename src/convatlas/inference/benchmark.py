"""What models cost on this machine: latency, throughput, memory and load time, each in a process of its own."""

from __future__ import annotations

import csv
import io
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from convatlas.core.cost import cost
from convatlas.engines.onnx_graph import example
from convatlas.engines.select import ENGINES, installed
from convatlas.errors import ConvatlasError, EngineError, SpecError
from convatlas.inference.model import Model, load
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.system.files import write_text
from convatlas.system.progress import Progress
from convatlas.weights.modelfile import Header


@dataclass(frozen=True)
class Row:
    """One model on one engine. p50, p95, least: milliseconds of a batch. rate: images in a second, at the median.

    memory: MiB that loading and running took at most. load: seconds until it could answer.
    """

    model: str
    engine: str
    batch: int
    p50: float
    p95: float
    least: float
    rate: float
    memory: float
    load: float
    parameters: int
    accuracy: float | None = None


def benchmark(
    models: Sequence[str], *, engines: Sequence[str] = (), batches: Sequence[int] = (1, 16), seconds: float = 3.0,
    data: str | None = None, progress: Progress | None = None,
) -> list[Row]:  # fmt: skip
    """Measure models: files, exported files, published weights, or networks by name, which get random weights.

    engines: all that are installed but "compile", if empty. seconds: for each row.
    data: where given, accuracy on it, of models with weights that were trained.
    Raises EngineError for an engine that is not there, and what `load` raises.
    """
    for name in engines:
        if not installed(name):
            raise EngineError(f"engine {name}: is not installed")
    chosen = list(engines) or [name for name in ENGINES if name != "compile" and installed(name)]
    tasks = [(model, engine) for model in models for engine in (["own"] if _exported(model) else chosen)]
    rows: list[Row] = []
    for done, (model, engine) in enumerate(tasks):
        if progress:
            progress(f"{model} on {engine}", done, len(tasks))
        # a fresh process for each, so that memory is its own
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            try:
                rows += process.submit(_measured, model, engine, tuple(batches), seconds, data).result()
            except BrokenProcessPool:
                raise EngineError(f"{model} on {engine}: the process died, perhaps for lack of memory") from None
    return rows


def _exported(model: str) -> bool:
    return Path(model).suffix.lower() in (".onnx", ".xml", ".pt2")


def untrained(name: str) -> Model:
    """Return a network of the catalog with random weights, to measure its speed."""
    row = CATALOG[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_fresh(row.spec, classes=row.classes, channels=row.preprocessing.channels).eval()
    classes = tuple(map(str, range(row.classes)))
    header = Header(name, row.spec, classes, row.preprocessing, criterion="cross_entropy")
    return Model(network, header)


def _measured(name: str, engine: str, batches: tuple[int, ...], seconds: float, data: str | None) -> list[Row]:
    held = peak()
    begun = time.perf_counter()
    trained = name not in CATALOG
    model = load(name) if trained else untrained(name)
    rows: list[Row] = []
    for batch in batches:
        running = model if engine == "own" else model.using(engine, batch=batch)
        running.engine.outputs(example(model.header, 1 if engine == "own" else batch))
        loaded = time.perf_counter() - begun
        taken = timed(running, batch, seconds)
        median = statistics.median(taken)
        rows.append(
            Row(
                name, running.engine.name, batch, 1000 * median, 1000 * sorted(taken)[int(0.95 * len(taken))],
                1000 * min(taken), batch / median, peak() - held, loaded,
                0 if model.network is None else cost(model.network).parameters,
            )
        )  # fmt: skip
        begun = time.perf_counter()
    if data and trained:  # at the end, because images take memory, too
        accuracy = running.evaluate(data).result.score
        rows = [replace(row, accuracy=accuracy) for row in rows]
    return rows


def timed(model: Model, batch: int, seconds: float) -> list[float]:
    """Return the seconds of runs of a batch, at least three, for so long."""
    pixels = example(model.header, batch)
    taken: list[float] = []
    until = time.perf_counter() + seconds
    model.engine.outputs(pixels)
    while len(taken) < 3 or time.perf_counter() < until:
        begun = time.perf_counter()
        model.engine.outputs(pixels)
        taken.append(time.perf_counter() - begun)
    return taken


def peak() -> float:
    """Return the most memory that this process has had, in MiB."""
    with suppress(OSError):  # Linux; what getrusage says there begins with the peak of the parent
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    if sys.platform == "win32":
        return 0.0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def numbers(option: str, text: str) -> list[int]:
    """Read whole numbers from 1 on, separated by commas; raises SpecError that names the option."""
    found = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in found):
        raise SpecError(f"{option} {text}: expected whole numbers from 1 on, separated by commas")
    return [int(part) for part in found]


def write(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def draw(rows: Sequence[Row], path: Path) -> None:
    """Save accuracy, or parameters where it was not measured, against the latency of one image."""
    from convatlas.draw.charts import draw_latencies

    least = min(row.batch for row in rows)
    best: dict[str, Row] = {}
    for row in rows:
        if row.batch == least and (row.model not in best or row.p50 < best[row.model].p50):
            best[row.model] = row
    scored = all(row.accuracy is not None for row in best.values())
    if not best:
        raise ConvatlasError("nothing was measured")
    points = [
        (Path(row.model).name, row.engine, row.p50, 100 * (row.accuracy or 0) if scored else row.parameters / 1e6)
        for row in best.values()
    ]
    draw_latencies(points, "accuracy, %" if scored else "parameters, millions", least, path)
