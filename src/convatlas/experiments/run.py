"""Run an experiment: its trials in parallel, each on one thread; an interrupted one continues with the same command."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.errors import DivergedError, ExperimentError, brief
from convatlas.experiments.experiment import Experiment, Size, Trial
from convatlas.experiments.materials import Materials
from convatlas.experiments.registry import find
from convatlas.experiments.results import Results, Row
from convatlas.experiments.tuning import TUNING_METRIC
from convatlas.system.cores import count_cores
from convatlas.system.processes import exit_with_parent
from convatlas.system.progress import Progress, ignore


def run_trials(
    experiment: Experiment, size: Size, log: Path, materials: Materials, *, workers: int | None = None,
    progress: Progress = ignore,
) -> Results:  # fmt: skip
    """Measure the trials of an experiment that `log` does not have yet, and return all results.

    log: one line of JSON for each trial, written when it is finished. workers: number of processes; that of the cores
    by default. The numbers do not depend on it.
    Raises ExperimentError if the log was written by another version of the experiment, or if the system ends a process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    finished = _read(log, experiment, size)
    wanted: dict[str, Trial] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or count_cores(), context, _prepare_worker) as pool:
        while True:
            number = len(wanted)
            wanted |= {trial.key: trial for trial in experiment.trials(size, _results(wanted, finished))}
            missing = [trial for key, trial in wanted.items() if key not in finished]
            if not missing and len(wanted) == number:
                return _results(wanted, finished)
            progress(experiment.name, len(wanted) - len(missing), len(wanted))
            futures = {pool.submit(_measure, experiment.name, trial, materials): trial for trial in missing}
            for trial, outcome in _outcomes(futures):
                finished[trial.key] = outcome
                _append(log, experiment, size, trial, outcome)
                progress(experiment.name, sum(key in finished for key in wanted), len(wanted))


@dataclass(frozen=True)
class Outcome:
    """The metrics of a trial and the CPU seconds that it took."""

    metrics: dict[str, float]
    seconds: float


def _outcomes(futures: dict[Future[Outcome], Trial]) -> Iterator[tuple[Trial, Outcome]]:
    """Yield trials and outcomes as they finish; cancel the others if one fails."""
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise ExperimentError(
            "experiment: the system ended a process, most often for lack of memory; the same command continues, with "
            "less memory if --workers is smaller"
        ) from error
    finally:
        for future in futures:
            future.cancel()


def _prepare_worker() -> None:
    import torch

    torch.set_num_threads(1)
    exit_with_parent()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # warnings of libraries, once for each process


def _measure(name: str, trial: Trial, materials: Materials) -> Outcome:
    import torch

    start = time.process_time()
    torch.manual_seed(trial.seed)  # for the weights of modules that the experiment builds
    try:
        measured = find(name).measure(trial, materials)
    except DivergedError:
        if not trial.settings.get("tuning"):
            raise
        measured = {TUNING_METRIC: 0.0}  # a rate with which training diverges is not chosen
    metrics = {key: float(value) for key, value in measured.items()}
    return Outcome(metrics, round(time.process_time() - start, 2))


def _results(wanted: dict[str, Trial], finished: dict[str, Outcome]) -> Results:
    rows = (
        Row(trial.arm, trial.seed, trial.settings, finished[key].metrics, finished[key].seconds)
        for key, trial in wanted.items()
        if key in finished
    )
    return Results(tuple(rows))


def version_of(experiment: Experiment) -> str:
    """Return a hash of the code of an experiment that results depend on: without texts, verdict and figure."""
    module = inspect.getmodule(experiment.measure)
    assert module is not None
    return hash_of(inspect.getsource(module), without=(experiment.judge.__name__, experiment.draw.__name__))


def hash_of(source: str, *, without: Collection[str] = ()) -> str:
    """Return a hash of the code of a file of an experiment without texts, imports, and functions of these names."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [each for each in body if not _is_text(each)] or [ast.Pass()]  # type: ignore[attr-defined]
    code = [ast.unparse(node) for node in tree.body if getattr(node, "name", "") not in without]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:12]


def _is_text(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring, an import, or `EXPERIMENT` itself."""
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets] == ["EXPERIMENT"]
    return isinstance(node, ast.Import | ast.ImportFrom) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _read(log: Path, experiment: Experiment, size: Size) -> dict[str, Outcome]:
    """Return the finished trials of a log; a last line that was cut off by an interruption is left out."""
    if not log.exists():
        return {}
    finished: dict[str, Outcome] = {}
    content = log.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(complete.splitlines(), 1):
        try:
            entry: dict[str, Any] = json.loads(line)
            if number > 1:
                finished[entry["key"]] = Outcome(entry["metrics"], entry["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ExperimentError(f"{log}: line {number} is damaged ({brief(error)}); delete the file") from error
        if number == 1 and entry != _head(experiment, size):
            raise ExperimentError(f"{log}: is of another version of this experiment; delete it, or give another --out")
    if complete != content:
        log.write_bytes(complete)
    return finished


def _head(experiment: Experiment, size: Size) -> dict[str, Any]:
    """Return the first line of a log."""
    return {"experiment": experiment.name, "size": size, "version": version_of(experiment)}


def _append(log: Path, experiment: Experiment, size: Size, trial: Trial, outcome: Outcome) -> None:
    """Append a line to the log; the first one begins it."""
    lines = [{"key": trial.key, "metrics": outcome.metrics, "seconds": outcome.seconds}]
    if not log.exists() or not log.stat().st_size:
        lines.insert(0, _head(experiment, size))
    with log.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
