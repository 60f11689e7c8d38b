"""A whole search: set up, workers, finalists with a second seed, and the training of the winner."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from convatlas.errors import SearchError
from convatlas.search.contestant import Contestant
from convatlas.search.evaluation import Evaluator
from convatlas.search.limits import Limits
from convatlas.search.report import verdict, write_report
from convatlas.search.settings import SETTINGS, SearchSettings
from convatlas.search.setup import SearchOptions, set_up
from convatlas.search.standings import SEED_MARK, Standing, finalists, standings, winner
from convatlas.search.store import Evaluation, TrialStore, elapsed, location_of
from convatlas.search.worker import OnEvaluation, Worker
from convatlas.system.files import write_text
from convatlas.system.locks import MachineLock
from convatlas.system.progress import Progress, progress_callback
from convatlas.train.run import Event, Run
from convatlas.train.run_folder import CONFIG, create_default_folder

BEST, WINNER = "best", "winner.txt"
"""Run directory of the winner, with the model file; name of the winner, and the time of the search that trained it."""

TIME_S, MIN_TIME_S = 3600.0, 60.0
"""Time of a search that is given none, and the shortest one."""

FINAL_MARGIN, FINAL_S = 0.95, 15.0
"""Share of the time that is left in which the winner is trained, after seconds for its evaluation and the report."""

LEAST_FINAL = 0.05
"""Share of the whole time that the training of the winner gets at least."""

STUDY = "search"
"""Name of the study in a journal file."""


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
    on_phase(f"directory: {folder}; the same command with --out {folder} continues the search if it is stopped")
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
    store = TrialStore(location_of(folder, settings.storage), _study_name(folder, settings), options=settings.choices)
    if store.settings() is not None:
        raise SearchError(f"{folder}: the store has a study of this name already; choose another --out")
    for each in others:
        store.add(each.to_plain(), {}, settings.fidelities[0])
    store.store_settings(settings.to_plain())
    settings.write(folder)  # last: with it, the search can be continued
    return store


def open_store(folder: Path, settings: SearchSettings) -> TrialStore:
    """Open the store of a search that was started."""
    return TrialStore(location_of(folder, settings.storage), _study_name(folder, settings))


def _study_name(folder: Path, settings: SearchSettings) -> str:
    """Return the name of the study: a database may have many."""
    return folder.resolve().name if settings.storage else STUDY


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
        _wait_for_others(store)
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
    run = _train_winner(folder, settings, best, evaluations, on_event)
    result = SearchResult(folder, settings, tuple(found), best, run)
    write_report(folder, settings, evaluations, best=run.folder, results=run.results)
    return result


def _start_worker(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "convatlas", "search", "worker", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _wait_for_others(store: TrialStore) -> None:
    """Wait until the other workers have ended their last evaluations, which stop when the time is over."""
    while any(each.state == "running" for each in store.evaluations()):
        store.take_over()
        time.sleep(0.5)


def _add_repeats(settings: SearchSettings, store: TrialStore) -> None:
    """Let the finalists be trained with a second seed."""
    evaluations = store.evaluations()
    there = {each.key for each in evaluations}
    finals = finalists(standings(evaluations))
    if len(finals) < 2:
        return
    for each in finals:
        seed = settings.seed + 1
        name = f"{each.contestant.name}{SEED_MARK}{seed}"
        if (name, each.fidelity) not in there:
            again = replace(each.contestant, name=name, seed=seed)
            store.add(again.to_plain(), {}, each.fidelity)


def _train_winner(
    folder: Path, settings: SearchSettings, best: Standing, evaluations: list[Evaluation],
    on_event: Callable[[Event], None] | None,
) -> Run:  # fmt: skip
    """Train the winner in the time that is left, with all cores; continue it if it was interrupted."""
    spent = settings.setup_s + elapsed(evaluations)
    seconds = max(LEAST_FINAL * settings.time_s, FINAL_MARGIN * (settings.time_s - spent - FINAL_S))
    previous, training = folder / WINNER, f"{best.contestant.name}, {settings.time_s:g} s"
    if previous.is_file() and previous.read_text().strip() != training and (folder / BEST).exists():
        (folder / BEST).rename(next(path for i in count(1) if not (path := folder / f"{BEST}-before-{i}").exists()))
    write_text(previous, f"{training}\n")
    same = [each.metrics for each in evaluations if each.plain["name"] == best.contestant.name and each.metrics]
    steps = max(same, key=lambda metrics: metrics["steps"])
    lock = MachineLock()
    run = Evaluator(folder, settings, lock).open_final(
        replace(best.contestant, seed=settings.seed), folder / BEST, seconds=seconds,
        threads=None if settings.execution.threads is None else settings.execution.threads * settings.workers,
        least_step_s=steps["seconds"] / max(1, steps["steps"]) / settings.workers,
    )  # fmt: skip
    if run.state.finished:
        run.finish()
    events = run.steps()
    while True:
        with lock.working():
            event = next(events, None)
        if event is None:
            return run
        if on_event:
            on_event(event)


def work(folder: Path, *, storage: str | None = None, on_evaluation: OnEvaluation | None = None) -> None:
    """Be another worker of a search, on this or another machine that shares the directory, until it is over."""
    settings = SearchSettings.read(folder)
    if storage is not None:
        settings = replace(settings, storage=storage)
    store = open_store(folder, settings)
    worker = Worker(folder, settings, store, on_evaluation=on_evaluation)
    worker.search()
    worker.repeat()


def report(folder: Path, *, storage: str | None = None) -> Path:
    """Write the report of a search, running or finished, and return the page."""
    settings = SearchSettings.read(folder)
    store = open_store(folder, settings if storage is None else replace(settings, storage=storage))
    best = folder / BEST if (folder / BEST / CONFIG).is_file() else None
    return write_report(folder, settings, store.evaluations(), best=best)
