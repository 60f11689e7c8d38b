"""Run an experiment: its trials in parallel, each on one thread; an interrupted one continues with the same command."""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.errors import ExperimentError, brief
from convatlas.experiments.experiment import Experiment, Size, Trial
from convatlas.experiments.materials import Materials
from convatlas.experiments.registry import find
from convatlas.experiments.results import Results, Row
from convatlas.system.cores import count_cores
from convatlas.system.progress import Progress, ignore


def run_trials(
    experiment: Experiment, size: Size, log: Path, materials: Materials, *, workers: int | None = None,
    progress: Progress = ignore,
) -> Results:  # fmt: skip
    """Measure the trials of an experiment that `log` does not have yet, and return all results.

    log: one line of JSON for each trial, written when it is finished. workers: number of processes; that of the cores
    by default. The numbers do not depend on it.
    Raises ExperimentError if the log was written by another version of the experiment.
    """
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
    finally:
        for future in futures:
            future.cancel()


def _prepare_worker() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # warnings of libraries, once for each process


def _exit_with_parent() -> None:
    """Exit when the process that started this one ends, however it ends: an executor's workers would go on."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _measure(name: str, trial: Trial, materials: Materials) -> Outcome:
    import torch

    start = time.process_time()
    torch.manual_seed(trial.seed)  # for the weights of modules that the experiment builds
    metrics = {key: float(value) for key, value in find(name).measure(trial, materials).items()}
    return Outcome(metrics, round(time.process_time() - start, 2))


def _results(wanted: dict[str, Trial], finished: dict[str, Outcome]) -> Results:
    rows = (
        Row(trial.arm, trial.seed, trial.settings, finished[key].metrics, finished[key].seconds)
        for key, trial in wanted.items()
        if key in finished
    )
    return Results(tuple(rows))


def version_of(experiment: Experiment) -> str:
    """Return a hash of the file of an experiment."""
    source = Path(inspect.getfile(experiment.measure)).read_bytes()
    return hashlib.sha256(source).hexdigest()[:12]


def _read(log: Path, experiment: Experiment, size: Size) -> dict[str, Outcome]:
    """Return the finished trials of a log; a last line that was cut off by an interruption is left out."""
    if not log.exists():
        return {}
    finished: dict[str, Outcome] = {}
    expected = {"experiment": experiment.name, "size": size, "version": version_of(experiment)}
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(keepends=True)):
        if not line.endswith("\n"):
            break
        try:
            entry: dict[str, Any] = json.loads(line)
            if number == 0:
                head = entry
                continue
            finished[entry["key"]] = Outcome(entry["metrics"], entry["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ExperimentError(f"{log}: line {number + 1} is damaged ({brief(error)}); delete the file") from error
    if finished and head != expected:
        raise ExperimentError(f"{log}: is of another version of this experiment; delete it, or give another --out")
    _cut_incomplete_line(log)
    return finished


def _cut_incomplete_line(log: Path) -> None:
    content = log.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        log.write_bytes(complete)


def _append(log: Path, experiment: Experiment, size: Size, trial: Trial, outcome: Outcome) -> None:
    """Append a line to the log; the first one begins it."""
    lines: list[dict[str, Any]] = []
    log.parent.mkdir(parents=True, exist_ok=True)
    if not log.exists() or not log.stat().st_size:
        lines.append({"experiment": experiment.name, "size": size, "version": version_of(experiment)})
    lines.append({"key": trial.key, "metrics": outcome.metrics, "seconds": outcome.seconds})
    with log.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
