"""A whole search: set up, workers, the training of the finalists, and the winner."""

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

from convatlas.core.record import Record
from convatlas.errors import SearchError
from convatlas.search.contestant import Contestant
from convatlas.search.evaluation import OWN_FIELDS, TRIALS
from convatlas.search.finals import add_finalists, continue_best
from convatlas.search.limits import Limits
from convatlas.search.report import verdict, write_report
from convatlas.search.settings import SETTINGS, SearchSettings
from convatlas.search.setup import SearchOptions, set_up
from convatlas.search.standings import Standing, standings
from convatlas.search.store import JOURNAL, TrialStore, check_store, location_of
from convatlas.search.worker import OnEvaluation, Worker
from convatlas.system.files import write_text
from convatlas.system.progress import Progress, progress_callback
from convatlas.train.resume import open_run
from convatlas.train.run import Run
from convatlas.train.run_folder import CONFIG, check_outside, create_default_folder

BEST, WINNER = "best", "winner.json"
"""Run directory of the winner, with the model file; and what it is called."""

TIME_S, MIN_TIME_S = 3600.0, 60.0
"""Time of a search that is given none, and the shortest one."""


@dataclass(frozen=True)
class SearchResult:
    """A finished search. standings, finalists: the best first. run: that of the winner."""

    folder: Path
    settings: SearchSettings
    standings: tuple[Standing, ...]
    finalists: tuple[Standing, ...]
    run: Run

    @property
    def winner(self) -> Standing:
        return self.finalists[0]

    @property
    def model_file(self) -> Path:
        return self.run.model_file

    @property
    def verdict(self) -> str:
        """Which network won, and against which, in one sentence."""
        return verdict(self.finalists, self.standings)


@dataclass(frozen=True)
class Winner(Record):
    """The network that won a search. results: of its run, by split, in words."""

    version = 1
    error = SearchError

    name: str
    results: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Winner | None:
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
    on_phase: Callable[[str], None] = lambda text: None,
    progress: Progress | bool = True,
) -> SearchResult:
    """Search the network with the best accuracy within limits of a device, and train it.

    limits: of one image. time_s: of everything, an hour by default: 40 % for the search, the rest for the finalists,
    the best candidates and the best other network, of which the best one is trained to its end. out: the directory;
    that of a stopped search continues it, with a longer `time_s` if it is given; its other settings stay as they were.
    Raises SearchError if no network is within the limits, or none could be trained.
    """
    if time_s is not None and not time_s >= MIN_TIME_S:
        raise SearchError(f"search: the time must be at least {MIN_TIME_S:.0f} s, got {time_s:g}")
    options = options or SearchOptions()
    own = OWN_FIELDS & options.fields.keys()
    if own and "supernet" not in options.methods:
        name = min(own)
        raise SearchError(f"search: {name} follows from the time of a search, got {options.fields[name]}; leave it out")
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
    return finish(folder, settings, store, on_evaluation=on_evaluation, on_phase=on_phase)


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
    on_phase: Callable[[str], None] = lambda text: None,
) -> SearchResult:  # fmt: skip
    """Run a search to its end: this process is one of its workers, and starts the others."""
    worker = Worker(folder, settings, store, on_evaluation=on_evaluation)
    store.end(over=False)
    others = [_start_worker(folder) for _ in range(settings.workers - 1)]
    try:
        worker.search()
        _wait_for_others(store, others)
        add_finalists(settings, store, on_phase)
        worker.train_finalists(waits=False)
        while continue_best(settings, store, on_phase):
            worker.train_finalists(waits=False)
    finally:
        store.end()
        for process in others:
            process.terminate()
        for process in others:
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
    store.take_over()
    evaluations = store.evaluations()
    found, finals = standings(evaluations), standings(evaluations, time_s=settings.time_s)
    if not any(each.contestant.to_end for each in finals):
        errors = [each.error for each in evaluations if each.error]
        raise SearchError(
            f"{folder}: no network could be trained: {errors[-1] if errors else 'the time was too short'}"
        )
    run = _keep_winner(folder, finals[0])
    _report(folder, settings, store)
    return SearchResult(folder, settings, tuple(found), tuple(finals), run)


def _start_worker(folder: Path) -> subprocess.Popen[bytes]:
    """Start another worker, which stops when this process ends, however it ends."""
    command = [sys.executable, "-m", "convatlas", "search", "worker", str(folder), "--stop-at-eof"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def _wait_for_others(store: TrialStore, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until the other workers have ended their last evaluations."""
    while any(each.state == "running" for each in store.evaluations()):
        for process in processes:
            process.poll()  # a killed one no longer counts as alive
        store.take_over()
        time.sleep(0.5)


def _keep_winner(folder: Path, best: Standing) -> Run:
    """Move the run directory of the winner to `best`, and return its run, with results."""
    trained = folder / TRIALS / best.contestant.name
    if trained.exists():
        if (folder / BEST).exists():
            (folder / BEST).rename(next(path for i in count(1) if not (path := folder / f"{BEST}-before-{i}").exists()))
        trained.rename(folder / BEST)
    run = open_run(folder / BEST)
    run.finish()
    Winner(best.name, {split: result.text() for split, result in run.results.items()}).write(folder)
    return run


def work(folder: Path, *, storage: str | None = None, on_evaluation: OnEvaluation | None = None) -> None:
    """Be another worker of a search, on this or another machine that shares the directory, until it is over."""
    settings = SearchSettings.read(folder)
    if storage is not None:
        settings = replace(settings, storage=storage)
    store = open_store(folder, settings)
    worker = Worker(folder, settings, store, on_evaluation=on_evaluation)
    worker.search()
    worker.train_finalists()


def report(folder: Path, *, storage: str | None = None) -> Path:
    """Write the report of a search, running or finished, and return the page."""
    settings = SearchSettings.read(folder)
    store = open_store(folder, settings if storage is None else replace(settings, storage=storage))
    return _report(folder, settings, store)


def _report(folder: Path, settings: SearchSettings, store: TrialStore) -> Path:
    best, winner = folder / BEST, Winner.read(folder)
    return write_report(
        folder, settings, store.evaluations(), best=best if (best / CONFIG).is_file() else None,
        results={} if winner is None else winner.results,
    )  # fmt: skip
