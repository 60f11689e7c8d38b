"""A whole search: set up, workers, finalists with a second seed, and the training of the winner."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Annotated

from convatlas.core.record import Record, at_least
from convatlas.errors import SearchError
from convatlas.search.contestant import Contestant
from convatlas.search.evaluation import Evaluator
from convatlas.search.limits import Limits
from convatlas.search.report import verdict, write_report
from convatlas.search.settings import SETTINGS, SearchSettings
from convatlas.search.setup import SearchOptions, set_up
from convatlas.search.standings import SEED_MARK, Standing, leaders, standings, winner
from convatlas.search.store import JOURNAL, Evaluation, TrialStore, check_store, elapsed, location_of
from convatlas.search.worker import OnEvaluation, Worker
from convatlas.system.files import write_text
from convatlas.system.locks import MachineLock
from convatlas.system.progress import Progress, progress_callback
from convatlas.system.quantities import TIME
from convatlas.train.resume import read_progress
from convatlas.train.run import Event, Run
from convatlas.train.run_folder import CONFIG, check_outside, create_default_folder

BEST, WINNER = "best", "winner.json"
"""Run directory of the winner, with the model file, and the file of its `FinalTraining`."""

TIME_S, MIN_TIME_S = 3600.0, 60.0
"""Time of a search that is given none, and the shortest one."""

FINAL_MARGIN, FINAL_S = 0.97, 15.0
"""Share of the time that is left in which the winner is trained, after seconds for its evaluation and the report."""

LEAST_FINAL = 0.05
"""Share of the whole time that the training of the winner gets at least."""


@dataclass(frozen=True)
class SearchResult:
    """A finished search. standings: all contestants, the best first. run: the training of the winner."""

    folder: Path
    settings: SearchSettings
    standings: tuple[Standing, ...]
    winner: Standing
    run: Run

    @property
    def model_file(self) -> Path:
        return self.run.model_file

    @property
    def verdict(self) -> str:
        """Which network won, and against which, in one sentence."""
        return verdict(self.standings)


@dataclass(frozen=True)
class FinalTraining(Record):
    """The training of a winner.

    name: of the winner. time_s: of the search for which it is trained. earlier_s: of former ones, when the search had
    less time. results: in words, by split, once it has ended.
    """

    version = 1
    error = SearchError

    name: str
    time_s: float
    earlier_s: Annotated[float, at_least(0)] = 0.0
    results: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> FinalTraining | None:
        """Return that in the directory of a search, or None."""
        try:
            return cls.from_plain(json.loads((folder / WINNER).read_text(encoding="utf-8")), where=str(folder / WINNER))
        except (OSError, ValueError):  # none yet
            return None

    def write(self, folder: Path) -> None:
        write_text(folder / WINNER, json.dumps(self.to_plain(), ensure_ascii=False) + "\n")


def search(
    data: str,
    *,
    limits: Limits | None = None,
    time_s: float | None = None,
    out: str | Path | None = None,
    options: SearchOptions | None = None,
    on_evaluation: OnEvaluation | None = None,
    on_event: Callable[[Event], None] | None = None,
    on_phase: Callable[[str], None] = lambda text: None,
    progress: Progress | bool = True,
) -> SearchResult:
    """Search the network with the best accuracy within limits of a device, and train it.

    limits: of one image. time_s: of everything, an hour by default: half for the search, then the finalists with a
    second seed, the rest to train the winner. out: the directory; that of a stopped search continues it, with a longer
    `time_s` if it is given; its other settings stay as they were.
    Raises SearchError if no network is within the limits, or none could be trained.
    """
    if time_s is not None and not time_s >= MIN_TIME_S:
        raise SearchError(f"search: the time must be at least {MIN_TIME_S:.0f} s, got {time_s:g}")
    options = options or SearchOptions()
    with progress_callback(progress) as report:
        data = str(Path(data).resolve()) if Path(data).exists() else str(data)  # workers may start elsewhere
        check_store(options.storage or JOURNAL)  # before minutes of measuring
        if out is not None:
            _check_folder(Path(out), data)
        folder = Path(out) if out is not None else create_default_folder("search", Path(data).name, data)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SETTINGS).is_file():
            settings = _continued(folder, data, time_s)
            store = open_store(folder, settings)
        else:
            try:
                settings, others = set_up(data, limits or Limits(), time_s or TIME_S, options, progress=report)
            except BaseException:
                with suppress(OSError):
                    folder.rmdir()  # if it is empty
                raise
            store = start(folder, settings, others)
    quoted = shlex.quote(str(folder))
    on_phase(f"directory: {folder}; the same command with --out {quoted} continues the search if it is stopped")
    on_phase(describe(settings))
    return finish(folder, settings, store, on_evaluation=on_evaluation, on_event=on_event, on_phase=on_phase)


def describe(settings: SearchSettings) -> str:
    """Return what is searched, and how latencies are known, in a few lines."""
    space, lines = settings.spec_space, [f"limits: {settings.limits}"]
    if space is not None:
        note = f" ({settings.note})" if settings.note else ""
        lines.append(f"space: {settings.space_name}, {space.size:.3g} networks with {len(space.names)} choices{note}")
    where = "measured here" if settings.measures else "predicted"
    model = settings.latency
    screened = "" if model is None else f"; candidates are screened by a model: {model.describe()}"
    return "\n".join([*lines, f"latency: {where}{screened}"])


def start(folder: Path, settings: SearchSettings, others: Sequence[Contestant]) -> TrialStore:
    """Create the store of a search with what competes with the candidates, and write its settings."""
    store = TrialStore(location_of(folder, settings.storage), settings.study, options=settings.choices)
    for each in others:
        store.add(each.to_plain(), {}, settings.fidelities[0])
    settings.write(folder)  # last: with it, the search can be continued
    return store


def open_store(folder: Path, settings: SearchSettings) -> TrialStore:
    """Open the store of a search that was started."""
    return TrialStore(location_of(folder, settings.storage), settings.study)


def _check_folder(folder: Path, data: str) -> None:
    """Raise an error if a directory is inside the data, or has something else than a search."""
    check_outside(folder, data)
    if folder.is_dir() and not (folder / SETTINGS).is_file():
        others = sorted({path.name for path in folder.iterdir()} - {JOURNAL, f"{JOURNAL}.lock"})
        if others:
            raise SearchError(
                f"{folder}: has no search ({SETTINGS}), but other files, such as {others[0]}; choose another --out"
            )


def _continued(folder: Path, data: str, time_s: float | None) -> SearchSettings:
    """Return the settings of a search that was started, with more time if it is given.

    Given networks that are compared already stay compared; then the winner alone is trained longer.
    """
    settings = SearchSettings.read(folder)
    if settings.data != data:
        raise SearchError(f"{folder}: is a search on {settings.data}, not on {data}; choose another --out")
    if time_s is not None and time_s > settings.time_s:
        settings = replace(settings, time_s=time_s)
        settings.write(folder)
    return settings


def finish(
    folder: Path, settings: SearchSettings, store: TrialStore, *, on_evaluation: OnEvaluation | None = None,
    on_event: Callable[[Event], None] | None = None, on_phase: Callable[[str], None] = lambda text: None,
) -> SearchResult:  # fmt: skip
    """Run a search to its end: this process is one of its workers, and starts the others."""
    worker = Worker(folder, settings, store, on_evaluation=on_evaluation)
    store.end(over=False)
    others = [_start_worker(folder) for _ in range(settings.workers - 1)]
    try:
        worker.search()
        _wait_for_others(store, others)
        _add_repeats(settings, store)
        store.end()
        worker.repeat()
    finally:
        store.end()
        for process in others:
            process.terminate()
        for process in others:
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
    store.take_over()
    evaluations = store.evaluations()
    found = standings(evaluations)
    best = winner(found)
    if best is None:
        errors = [each.error for each in evaluations if each.error]
        raise SearchError(
            f"{folder}: no network could be trained: {errors[-1] if errors else 'the time was too short'}"
        )
    write_report(folder, settings, evaluations)
    on_phase(f"training {best.contestant.name} in the rest of the time")
    run = _train_winner(folder, settings, best, evaluations, on_event, on_phase)
    result = SearchResult(folder, settings, tuple(found), best, run)
    report(folder, store=store)
    return result


def _start_worker(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "convatlas", "search", "worker", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _wait_for_others(store: TrialStore, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until the other workers have ended their last evaluations, which stop when the time is over."""
    while any(each.state == "running" for each in store.evaluations()):
        for process in processes:
            process.poll()  # a killed one no longer counts as alive
        store.take_over()
        time.sleep(0.5)


def _add_repeats(settings: SearchSettings, store: TrialStore) -> None:
    """Let the best candidate and the best other network be trained with a second seed.

    Not if the candidate starts from shared weights: a val split of another seed has images that these were trained on.
    """
    evaluations = store.evaluations()
    there = {each.key for each in evaluations}
    first = leaders(standings(evaluations))
    if len(first) < 2 or any(each.is_candidate and each.contestant.weights for each in first):
        return
    for each in first:
        seed = settings.seed + 1
        name = f"{each.contestant.name}{SEED_MARK}{seed}"
        if (name, each.fidelity) not in there:
            again = replace(each.contestant, name=name, seed=seed)
            store.add(again.to_plain(), {}, each.fidelity)


def _train_winner(
    folder: Path, settings: SearchSettings, best: Standing, evaluations: list[Evaluation],
    on_event: Callable[[Event], None] | None, on_phase: Callable[[str], None],
) -> Run:  # fmt: skip
    """Train the winner in the time that is left, with all cores; continue it if it was interrupted."""
    final = FinalTraining(best.contestant.name, settings.time_s)
    previous = FinalTraining.read(folder)
    if previous is not None:
        final = replace(final, earlier_s=previous.earlier_s)
        is_same = (previous.name, previous.time_s) == (final.name, final.time_s)
        if not is_same and (folder / BEST).exists():
            final = replace(final, earlier_s=previous.earlier_s + read_progress(folder / BEST).seconds)
            (folder / BEST).rename(next(path for i in count(1) if not (path := folder / f"{BEST}-before-{i}").exists()))
    final.write(folder)
    spent = settings.setup_s + elapsed(evaluations) + final.earlier_s
    seconds = max(LEAST_FINAL * settings.time_s, FINAL_MARGIN * (settings.time_s - spent - FINAL_S))
    same = [each.metrics for each in evaluations if each.plain["name"] == best.contestant.name and each.metrics]
    steps = max(same, key=lambda metrics: metrics["steps"])
    step_s = steps["seconds"] / max(1, steps["steps"]) / settings.workers
    evaluator = Evaluator(folder, settings, MachineLock())
    run = evaluator.open_final(
        replace(best.contestant, seed=settings.seed), folder / BEST, seconds=seconds,
        threads=None if settings.execution.threads is None else settings.execution.threads * settings.workers,
        least_step_s=step_s,
    )  # fmt: skip
    if (epoch_s := step_s * run.steps_per_epoch) > seconds:
        on_phase(
            f"an epoch takes about {TIME.format(round(epoch_s))}, longer than the {TIME.format(round(seconds))} left"
        )
    if run.state.finished:
        run.finish()
    run = evaluator.finish_timed(run, seconds=seconds, on_event=on_event or (lambda event: None))
    texts = {split: result.text() for split, result in run.results.items()}
    replace(final, results=texts).write(folder)
    return run


def work(folder: Path, *, storage: str | None = None, on_evaluation: OnEvaluation | None = None) -> None:
    """Be another worker of a search, on this or another machine that shares the directory, until it is over."""
    settings = SearchSettings.read(folder)
    if storage is not None:
        settings = replace(settings, storage=storage)
    store = open_store(folder, settings)
    worker = Worker(folder, settings, store, on_evaluation=on_evaluation)
    worker.search()
    worker.repeat()


def report(folder: Path, *, storage: str | None = None, store: TrialStore | None = None) -> Path:
    """Write the report of a search, running or finished, and return the page."""
    settings = SearchSettings.read(folder)
    store = store or open_store(folder, settings if storage is None else replace(settings, storage=storage))
    best, final = folder / BEST, FinalTraining.read(folder)
    return write_report(
        folder, settings, store.evaluations(), best=best if (best / CONFIG).is_file() else None,
        results={} if final is None else final.results,
    )  # fmt: skip
