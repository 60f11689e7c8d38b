"""Compare runs and model files: metrics, size, cost, latency and training side by side; a table, CSV and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from convatlas.core.table import Table
from convatlas.draw.latency import Measured, trade_off
from convatlas.errors import ConvatlasError, InputError, shorten
from convatlas.inference.benchmark import BenchmarkRow, benchmark, label_of
from convatlas.overview.describe import ModelDescription, describe
from convatlas.system.files import write_text
from convatlas.system.load import MAX_QUIET_SHARE, describe_load
from convatlas.system.progress import Progress, progress_callback
from convatlas.tasks.table import pluralize
from convatlas.weights.describe import headline
from convatlas.weights.run_files import MODEL, is_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BENCH_S = 1.0
"""Seconds of the measurement of each model."""

MAX_NAME = 40
"""Maximum length of a name in the printed table; of a longer one the middle is left out."""

NOT_COMPARABLE = "metrics of different data sets or splits cannot be compared"


@dataclass(frozen=True)
class ComparedModel:
    """A run or a model file in one row; None for what is unknown.

    name: as given. status: of a run: finished, interrupted, started or training. split: of the metrics: test, or else
    val. metric, score: the headline metric, with the bounds of its 95 % interval. accuracy: a share.
    latency_ms: median for one image. epochs: that are complete. elapsed_s: of training.
    """

    name: str
    network: str
    status: str | None
    split: str | None
    accuracy: float | None
    metric: str | None
    score: float | None
    score_low: float | None
    score_high: float | None
    parameters: int | None
    macs: int | None
    size_mib: float | None
    latency_ms: float | None
    input_px: int
    epochs: int | None
    planned_epochs: int | None
    elapsed_s: float | None
    seed: int | None
    data: str | None


@dataclass(frozen=True, repr=False)
class RunComparison:
    """Runs and model files side by side; prints as a table.

    skipped: what is no run and no model file, with the reason. failed: damaged ones, with the error.
    latency_note: how the latency was measured; empty if it was not. comparable: whether all metrics are of the same
    images.
    """

    rows: tuple[ComparedModel, ...]
    skipped: dict[str, str]
    failed: dict[str, str]
    latency_note: str = ""
    comparable: bool = True

    def to_plain(self) -> list[dict[str, Any]]:
        """Return the rows as plain data."""
        return [asdict(row) for row in self.rows]

    def table(self) -> Table:
        """Return the table for people."""
        with_latency = any(row.latency_ms is not None for row in self.rows)
        metric = "/".join(dict.fromkeys(row.metric for row in self.rows if row.metric)) or "accuracy"
        latency = ("ms",) if with_latency else ()
        columns = ("run", "network", "data", "split", metric, "95 % interval", "parameters", "MACs", "MiB", *latency,
                   "epochs", "elapsed", "seed", "status")  # fmt: skip
        rows = []
        for row in self.rows:
            milliseconds = (_number(row.latency_ms, ".2f"),) if with_latency else ()
            epochs = "" if row.epochs is None else f"{row.epochs} of {row.planned_epochs}"
            interval = f"{row.score_low:.1%} to {row.score_high:.1%}" if row.score_low is not None else ""
            rows.append((
                _short(row.name), row.network, shorten(row.data or "", MAX_NAME), row.split or "",
                _number(row.score, ".2%"), interval,
                _number(row.parameters, ","), _number(row.macs, ","), _number(row.size_mib, ".2f"), *milliseconds,
                epochs, "" if row.elapsed_s is None else f"{row.elapsed_s:,.0f} s", _number(row.seed, ""),
                row.status or "",
            ))  # fmt: skip
        left = {0, 1, 2, 3, len(columns) - 1}
        return Table(columns, tuple(rows), right=frozenset(set(range(len(columns))) - left))

    def write_csv(self, path: str | Path) -> None:
        """Write the rows as CSV; cells of what is unknown are empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(ComparedModel)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.to_plain())
        write_text(Path(path), text.getvalue())

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the headline metric against the latency, or the number of parameters where it was not measured.

        path: .png, .svg or .pdf. Raises InputError if nothing can be drawn.
        """
        with_latency = any(row.latency_ms is not None for row in self.rows)
        points = []
        for row in self.rows:
            x = row.latency_ms if with_latency else row.parameters
            if x is None or row.score is None:
                continue
            low, high = (None if bound is None else 100 * bound for bound in (row.score_low, row.score_high))
            name = label_of(row.name, row.network)
            points.append(Measured(name, "", x, 100 * row.score, None, low, high))
        if not points:
            raise InputError("compare: there is nothing to plot; no run has a model with a metric yet")
        metric = "/".join(dict.fromkeys(row.metric for row in self.rows if row.metric))
        split = "/".join(dict.fromkeys(row.split for row in self.rows if row.split))
        x_title = "milliseconds per image" if with_latency else "parameters"
        return trade_off(
            points, x_title=x_title, y_title=f"{metric} on {split} (95 % interval), %", with_front=self.comparable,
            path=path,
        )  # fmt: skip

    @property
    def notes(self) -> list[str]:
        """What a reader of the table must know, one line each."""
        return list(filter(None, ["" if self.comparable else NOT_COMPARABLE, self.latency_note]))

    def __str__(self) -> str:
        lines = [f"skipped: {reason}" for reason in (*self.skipped.values(), *self.failed.values())]
        return "\n".join([str(self.table()), *self.notes, *lines])

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _short(name: str) -> str:
    path = Path(name)
    short = str(path.parent) if path.name == MODEL and path.parent.name else name
    return shorten(short, MAX_NAME)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def compare_runs(
    *sources: str | Path, bench: bool = False, progress: Progress | bool = False
) -> RunComparison:  # fmt: skip
    """Compare run directories and model files, in the order given.

    bench: measure the latency of each, one image on engine torch, in a separate process.
    Folders and files that are neither a run nor a model file are skipped, so that all of a folder can be given.
    Raises InputError if nothing is left, and ModelFileError if something does not exist.
    """
    found: list[ModelDescription] = []
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    for source in sources:
        path = Path(source).expanduser()
        try:
            found.append(describe(source))
        except ConvatlasError as error:
            if not path.exists():
                raise
            is_candidate = is_run(path) or (path.is_file() and path.suffix == ".safetensors")
            (failed if is_candidate else skipped)[str(source)] = str(error)
    if not found:
        reasons = [*failed.values(), *skipped.values()]
        raise InputError(reasons[0] if len(reasons) == 1 else f"compare: none of {len(reasons)} is a run: {reasons[0]}")
    measured = _measure([each for each in found if each.file], progress) if bench else []
    latencies = {row.name: row.p50_ms for row in measured}
    rows = tuple(_row(each, latencies.get(each.name)) for each in found)
    return RunComparison(rows, skipped, failed, _latency_note(measured), _are_comparable(found, rows))


def _are_comparable(models: Sequence[ModelDescription], rows: Sequence[ComparedModel]) -> bool:
    """Return whether the metrics of all rows are of the same images, by data set and split.

    A val split may have been drawn from the training images, so that its fingerprint counts, too.
    """
    measured = {
        (row.metric, row.data, row.split, model.header.training.fingerprint if row.split == "val" else "")
        for model, row in zip(models, rows, strict=True)
        if row.score is not None
    }
    return len(measured) <= 1


def _measure(models: Sequence[ModelDescription], progress: Progress | bool) -> list[BenchmarkRow]:
    names = [model.name for model in models]
    with progress_callback(progress) as report:
        return benchmark(names, engines=["torch"], batches=[1], seconds=BENCH_S, progress=report)


def _latency_note(rows: Sequence[BenchmarkRow]) -> str:
    """Return how the latency was measured; empty if it was not."""
    if not rows:
        return ""
    threads, load = torch.get_num_threads(), max(row.other_load for row in rows)
    note = f"ms: median for one image, engine torch, {pluralize(threads, 'thread')}"
    return note if load <= MAX_QUIET_SHARE else f"{note}; {describe_load(load)}: times on a quiet machine are shorter"


def _row(model: ModelDescription, latency_ms: float | None) -> ComparedModel:
    header, run = model.header, model.run
    split = next((name for name in ("test", "val") if name in header.metrics), None)
    numbers = header.metrics[split] if split else {}
    metric = headline(header.task) if numbers else None
    trained = bool(header.training.recipe)
    seconds = run.state.seconds if run else header.training.elapsed_s
    return ComparedModel(
        name=model.name, network=header.name, status=run.status if run else None, split=split,
        accuracy=numbers.get("accuracy"), metric=metric, score=numbers.get(metric or ""),
        score_low=numbers.get(f"{metric}_low"), score_high=numbers.get(f"{metric}_high"),
        parameters=model.parameters, macs=model.macs,
        size_mib=None if model.size_mib is None else round(model.size_mib, 3),
        latency_ms=None if latency_ms is None else round(latency_ms, 3), input_px=header.spec.resolution,
        epochs=run.epochs if run else None, planned_epochs=run.config.recipe.epochs if run else None,
        elapsed_s=round(seconds, 2) if trained else None, seed=header.training.seed if trained else None,
        data=header.training.data or None,
    )  # fmt: skip
