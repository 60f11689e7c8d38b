"""Benchmark models on this machine: latency, throughput, memory and load time, each model in its own process."""

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
from typing import Any

import torch
from torch import Tensor

from convatlas.core.cost import totals_of
from convatlas.core.ragged import Inputs, Outputs
from convatlas.engines.deploy import example_inputs
from convatlas.engines.engine import Engine
from convatlas.engines.network_engine import check_engine
from convatlas.engines.select import installed_engines
from convatlas.errors import EngineError, InputError
from convatlas.inference.load import EXPORTED, load
from convatlas.inference.model import Model
from convatlas.models.catalog import CATALOG, build_fresh, resolve
from convatlas.models.index import find_name
from convatlas.models.own_module import OwnModule
from convatlas.system.autotune import time_repeatedly
from convatlas.system.files import write_text
from convatlas.system.load import LoadMeter
from convatlas.system.progress import Progress
from convatlas.tasks.known import task_for
from convatlas.weights.modelfile import Header
from convatlas.weights.run_files import MODEL


@dataclass(frozen=True)
class BenchmarkRow:
    """One model on one engine with one batch size; None for what is unknown.

    name: as given. network: its name in the catalog, or that of the own module.
    p50_ms, p95_ms, min_ms: latency of a batch in milliseconds: median, 95th percentile, minimum.
    reads: "images" or "clips". per_second: how many of them, at the median.
    memory_mib: peak memory for loading and running, in MiB. load_s: seconds until the first prediction.
    accuracy: a share; metric, score: the headline metric, with the bounds of its 95 % interval.
    evaluation: the result in words. other_load: share of the cores that other processes used meanwhile.
    image_px: width x height of the images, of detectors; objects: their number in an image, on which the time depends.
    """

    name: str
    network: str
    engine: str
    batch: int
    p50_ms: float
    p95_ms: float
    min_ms: float
    reads: str
    per_second: float
    memory_mib: float | None
    load_s: float
    parameters: int | None
    accuracy: float | None = None
    metric: str | None = None
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    evaluation: str | None = None
    other_load: float = 0.0
    image_px: str | None = None
    objects: float | None = None

    @property
    def label(self) -> str:
        """The name for tables and plots; see `label_of`."""
        return label_of(self.name, self.network)

    def to_plain(self) -> dict[str, Any]:
        """Return the row as plain data; the keys are the columns of `write_csv`."""
        return asdict(self)


def label_of(name: str, network: str) -> str:
    """Return the name of a model for tables and plots, such as "runs/b1 (mobilenet_v2)".

    Model files of runs are all called the same, so that their directory is what tells them apart.
    """
    path = Path(name)
    short = str(path.parent) if path.name == MODEL and path.parent.name else name
    return short if short == network else f"{short} ({network})"


def nouns_of(rows: Sequence[BenchmarkRow]) -> str:
    """Return what a batch contains: "images", "clips" or "images/clips"."""
    return "/".join(dict.fromkeys(row.reads for row in rows))


def benchmark(
    models: Sequence[str],
    *,
    engines: Sequence[str] = (),
    batches: Sequence[int] = (),
    seconds: float = 3.0,
    size: tuple[int, int] | None = None,
    data: str | None = None,
    progress: Progress | None = None,
) -> list[BenchmarkRow]:
    """Measure model files, exported files, pretrained weights, or networks by name (with random weights).

    engines: all installed ones but "compile" by default; exported files run on their own, and detectors on torch.
    batches: by default 1 and 16, or 1 and 4 for clips and detectors. seconds: duration of the measurement of each row.
    size: (width, height) of the images of detectors; by default they are a third wider than the network's resolution.
    data: labeled data for the accuracy of trained models.
    Raises EngineError for an engine that is not installed, and the errors of `load`.
    """
    for name in engines:
        check_engine(name)
    names = list(engines) or installed_engines()
    jobs = [(model, engine) for model in models for engine in ([None] if _is_exported(model) else names)]
    rows: list[BenchmarkRow] = []
    for done, (model, engine) in enumerate(jobs):
        if progress:
            progress(f"{model} on {engine or 'its engine'}", done, len(jobs))
        # in a new process, whose peak memory is that of this model
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            try:
                how = (tuple(batches), seconds, size, data)
                rows += process.submit(_measure, model, engine, *how, optional=not engines).result()
            except BrokenProcessPool:
                raise EngineError(
                    f"{model}: the process died on engine {engine or 'of the file'}; is it out of memory?"
                ) from None
    return rows


def _is_exported(model: str) -> bool:
    return Path(model).suffix.lower() in EXPORTED


def build_untrained(name: str) -> Model:
    """Return a network of the catalog with random weights as a model, to measure its speed."""
    name, row = resolve(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_fresh(row.spec, classes=row.classes, channels=row.preprocessing.channels).eval()
    task = task_for(row.spec, tuple(map(str, range(row.classes))))
    return Model(network, Header(name, task, row.spec, row.preprocessing))


def _measure(
    name: str, engine: str | None, batches: tuple[int, ...], seconds: float, size: tuple[int, int] | None,
    data: str | None, *, optional: bool = False,
) -> list[BenchmarkRow]:  # fmt: skip
    """Measure one model on one engine, in this process; `engine` is None for exported files.

    optional: return no row for an engine that cannot run images of different sizes.
    """
    memory_before = peak_memory_mib()
    start = time.perf_counter()
    trained = find_name(name, CATALOG) is None
    model = load(name) if trained else build_untrained(name)
    preprocessing = model.header.preprocessing
    if size is not None and not preprocessing.is_whole:
        raise InputError(f"bench: the image size must not be given for {name}, which reads images of one size")
    if optional and preprocessing.is_whole and engine not in (None, "torch"):
        return []
    rows: list[BenchmarkRow] = []
    for batch in batches or (1, 4 if preprocessing.is_whole or preprocessing.sampling else 16):
        running = model if engine is None else model.using(engine, batch=batch)
        pixels = example_inputs(model.header, batch, size and size[::-1])
        first = pixels[:1] if engine is None else pixels
        outputs = running.engine.outputs(first)
        load_s = time.perf_counter() - start
        meter = LoadMeter()
        times = time_batches(running.engine, pixels, seconds)
        other_load = meter.share()
        p50 = statistics.median(times)
        p95 = sorted(times)[int(0.95 * len(times))]
        rows.append(BenchmarkRow(
            name, model.header.name, running.engine.name, batch,
            p50_ms=1000 * p50, p95_ms=1000 * p95, min_ms=1000 * min(times),
            reads=preprocessing.reads, per_second=batch / p50, memory_mib=memory_since(memory_before), load_s=load_s,
            parameters=None, other_load=round(other_load, 3),
            image_px=f"{pixels[0].shape[-1]} x {pixels[0].shape[-2]}" if preprocessing.is_whole else None,
            objects=count_objects(model.header.task.collect(outputs, first)),
        ))  # fmt: skip
        start = time.perf_counter()
    # last, because networks and images take memory, too
    rows = [replace(row, parameters=count_parameters(model)) for row in rows]
    if data and trained:
        evaluation = running.evaluate(data)
        result, numbers = evaluation.result, evaluation.result.summary()
        measured: dict[str, Any] = {
            "accuracy": numbers.get("accuracy"), "metric": result.headline, "score": result.value,
            "score_low": numbers.get(f"{result.headline}_low"), "score_high": numbers.get(f"{result.headline}_high"),
            "evaluation": f"{evaluation.split}: {result.text()}",
        }  # fmt: skip
        rows = [replace(row, **measured) for row in rows]
    return rows


def count_parameters(model: Model) -> int | None:
    """Return the number of parameters; that of an exported file follows from its header, but for an own module."""
    spec, channels = model.header.spec, model.header.preprocessing.channels
    if model.network is None and isinstance(spec, OwnModule):
        return None
    network = model.network or build_fresh(spec, classes=model.header.task.outputs, channels=channels)
    return totals_of(network).parameters


def count_objects(outputs: Outputs) -> float | None:
    """Return the mean number of objects in an image; None for classifiers."""
    return None if isinstance(outputs, Tensor) else statistics.fmean(map(len, outputs))


def time_batches(engine: Engine, pixels: Inputs, seconds: float) -> list[float]:
    """Return the seconds of repeated batches after one that warms up, at least three."""
    engine.outputs(pixels)
    return time_repeatedly(lambda: engine.outputs(pixels), seconds=seconds)


def memory_since(before: float | None) -> float | None:
    """Return how much the peak memory of this process has grown, in MiB; None if it is unknown."""
    now = peak_memory_mib()
    return None if before is None or now is None else now - before


def peak_memory_mib() -> float | None:
    """Return the peak memory of this process in MiB; None on Windows."""
    with suppress(OSError):  # Linux, where getrusage would begin with the peak of the parent process
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def parse_batches(text: str) -> list[int]:
    """Return batch sizes from a text such as "1,16". Raises InputError unless they are integers >= 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"bench: batches must be integers >= 1 separated by commas, got {text!r}")
    return [int(part) for part in parts]


def parse_size(text: str) -> tuple[int, int]:
    """Return (width, height) from a text such as "640x480". Raises InputError for other texts."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 0 < int(part) < 10**5 for part in parts):
        raise InputError(f"bench: the image size must be WIDTHxHEIGHT in pixels, such as 640x480, got {text!r}")
    return int(parts[0]), int(parts[1])


def write_csv(rows: Sequence[BenchmarkRow], path: Path) -> None:
    """Write rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(BenchmarkRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_plain() for row in rows)
    write_text(path, text.getvalue())


def plot_latency(rows: Sequence[BenchmarkRow], path: Path) -> None:
    """Plot the headline metric, or if it was not measured the number of parameters, against latency by engine.

    The smallest batch size is drawn; whiskers end at the 95th percentile.
    """
    from convatlas.draw.latency import Measured, trade_off

    if not rows:
        raise InputError("bench: there must be at least one row to plot, got none")
    batch = min(row.batch for row in rows)
    shown = [row for row in rows if row.batch == batch]
    metrics = {row.metric for row in shown}
    metric = metrics.pop() if len(metrics) == 1 else None
    points = []
    for row in shown:
        if metric is not None and row.score is not None:
            low, high = (None if bound is None else 100 * bound for bound in (row.score_low, row.score_high))
            points.append(Measured(row.label, row.engine, row.p50_ms, 100 * row.score, row.p95_ms, low, high))
        elif metric is None and row.parameters is not None:
            points.append(Measured(row.label, row.engine, row.p50_ms, row.parameters / 1e6, row.p95_ms))
    if not points:
        raise InputError("bench: there is nothing to plot, neither a metric nor the number of parameters is known")
    nouns = nouns_of(shown)
    unit = f"milliseconds for {batch} {nouns}" if batch > 1 else f"milliseconds per {nouns.replace('s', '')}"
    trade_off(
        points, x_title=f"{unit} (median; whisker: 95th percentile)",
        y_title="parameters, millions" if metric is None else f"{metric}, %", path=path,
    )  # fmt: skip
