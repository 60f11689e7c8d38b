"""The store of a search: an Optuna study, in a journal file or a database, that any number of workers share.

A trial of Optuna is one evaluation: a contestant at a fidelity. It waits until a worker claims it, and then carries the
lease of this worker. A worker that died leaves a lease that does not change any more: another worker then fails the
trial and adds it again, to be continued from the checkpoint in its run directory. Nothing is lost, and of each
evaluation one trial counts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from convatlas.errors import SearchError, brief
from convatlas.system.extras import import_optional
from convatlas.system.locks import FileLock

JOURNAL = "study.journal"
"""File of the study in the directory of a search."""

LEASE_S = 60.0
"""Seconds after which a lease that does not change belongs to a dead worker."""

ACTIVE = ("running", "complete")
"""States of an evaluation that is not done again."""

SAME_AS = "the same as trial"
"""How the error of an evaluation begins that another worker has added, too."""

MAX_PAUSE_S = 60.0
"""Longest time between two evaluations in which a worker is choosing the next one; in a longer one nothing runs."""

MAX_ATTEMPTS = 3
"""Number of workers that may die at the start of an evaluation before it counts as failed."""

CHUNK = 1 << 16
"""Bytes of a journal that are read at once, to find its last line."""

MAX_OUTAGE_S, RETRY_S = 300.0, 2.0
"""Seconds for which a worker waits for a store that cannot be reached, and between two attempts."""


@dataclass(frozen=True)
class Evaluation:
    """One trial of the store.

    plain: the contestant as plain data. choices: of a candidate, name -> index of the option. state: "waiting",
    "running", "complete" or "failed". begin, end: seconds since 1970, of the worker's clock. attempt: from 1 on.
    metrics: of a complete one. error: of a failed one. is_continued: a failed one that was added again. latency_s: of
    one that failed because it is above a limit, if it was measured.
    """

    number: int
    plain: Mapping[str, Any]
    choices: Mapping[str, int]
    fidelity: float
    state: str = "waiting"
    begin: float = 0.0
    end: float = 0.0
    attempt: int = 1
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    is_continued: bool = False
    lease: str = ""
    rowid: int = -1
    latency_s: float | None = None

    @property
    def key(self) -> tuple[str, float]:
        """What is evaluated: two evaluations of one key are the same."""
        return str(self.plain["name"]), self.fidelity


@contextmanager
def quiet(optuna: Any) -> Iterator[None]:
    """Let Optuna log errors only; its level is restored at the end."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class TrialStore:
    """A study by name.

    location: a journal file; the URL of a database, such as postgresql://user@host/name; or that of a gRPC proxy of
    Optuna, grpc://host:13000.
    """

    def __init__(self, location: str, name: str, *, options: Mapping[str, Sequence[Any]] | None = None) -> None:
        """options: of every choice of the space, or none; with them, the study is a new one.

        Raises SearchError if there is no such study, or one already, or the store cannot be opened.
        """
        self._optuna = _optuna()
        self.location, self.name = location, name
        self._seen: dict[int, tuple[str, float]] = {}
        self._finished: dict[int, Evaluation] = {}
        try:
            self._storage = _open(location)
            with quiet(self._optuna):
                if options is None:
                    self._study = self._optuna.load_study(study_name=name, storage=self._storage)
                else:
                    self._study = self._optuna.create_study(
                        study_name=name, storage=self._storage, directions=["maximize", "minimize"]
                    )
                    counts = {name: len(values) for name, values in options.items()}
                    self._study.set_user_attr("options", counts)
        except KeyError as error:
            raise SearchError(
                f"{location}: there is no study {name!r}; start it with `convatlas search DATA`"
            ) from error
        except Exception as error:
            raise SearchError(f"{location}: the store cannot be opened ({brief(error)})") from error

    def _reached(self, call: Any, *arguments: Any, **named: Any) -> Any:
        """Call the store, and again while it cannot be reached; raises SearchError after `MAX_OUTAGE_S`."""
        wrong = (self._optuna.exceptions.UpdateFinishedTrialError, KeyError, ValueError)
        start = time.monotonic()
        while True:
            try:
                return call(*arguments, **named)
            except wrong:
                raise
            except Exception as error:
                if time.monotonic() - start > MAX_OUTAGE_S:
                    raise SearchError(
                        f"{self.location}: the store cannot be reached for {MAX_OUTAGE_S:.0f} s ({brief(error)})"
                    ) from error
                time.sleep(RETRY_S)
                self._seen.clear()  # meanwhile, living workers could not renew their leases either

    def is_over(self) -> bool:
        """Return whether no evaluation will be added any more."""
        return bool(self._reached(lambda: self._study.user_attrs).get("over"))

    def end(self, *, over: bool = True) -> None:
        """State that no evaluation will be added any more; over=False: that the search goes on."""
        self._reached(self._study.set_user_attr, "over", over)

    # trials

    def evaluations(self) -> list[Evaluation]:
        """Return all trials, in order. Those that have ended are read once."""
        trials = self._reached(self._study.get_trials, deepcopy=False)
        found = []
        for trial in trials:
            known = self._finished.get(trial.number)
            if known is None:
                known = _evaluation(trial)
                if known.state in ("complete", "failed"):
                    self._finished[trial.number] = known
            found.append(known)
        return found

    def add(
        self, plain: Mapping[str, Any], choices: Mapping[str, int], fidelity: float, *, attempt: int = 1
    ) -> None:  # fmt: skip
        """Add an evaluation that waits for a worker. choices: of a candidate, name -> index of the option."""
        distribution = self._optuna.distributions.CategoricalDistribution
        counts = self._reached(lambda: self._study.user_attrs)["options"] if choices else {}
        trial = self._optuna.trial.create_trial(
            state=self._optuna.trial.TrialState.WAITING, params=dict(choices),
            distributions={name: distribution(tuple(range(counts[name]))) for name in choices},
            user_attrs={"contestant": json.dumps(plain), "fidelity": fidelity, "attempt": attempt},
        )  # fmt: skip
        self._reached(self._study.add_trial, trial)

    def claim_next(self, is_wanted: Callable[[Evaluation], bool] = lambda evaluation: True) -> Evaluation | None:
        """Begin the first evaluation that waits, or return None. One that runs or is complete is not done again.

        Of a contestant, one evaluation runs at a time. is_wanted: returns whether this worker does an evaluation.
        """
        found = self.evaluations()
        trained = {other.plain["name"] for other in found if other.state == "running"}  # in one run directory
        for each in found:
            name = str(each.plain["name"])
            if each.state != "waiting" or name in trained or not is_wanted(each) or not self.claim(each):
                continue
            active = [other for other in self.evaluations() if other.plain["name"] == name and other.state in ACTIVE]
            same = [other for other in active if other.key == each.key]
            first = min(same, key=lambda other: (other.state != "complete", other.number), default=each)
            if first.number != each.number:
                self.fail(each, f"{SAME_AS} {first.number}")
            elif any(other.state == "running" and other.number != each.number for other in active):
                self.fail(each, "another worker trains the network", again=True)
            else:
                return each
        return None

    def claim(self, evaluation: Evaluation) -> bool:
        """Begin a waiting evaluation; False if another worker has."""
        running = self._optuna.trial.TrialState.RUNNING
        try:
            if not self._reached(self._storage.set_trial_state_values, evaluation.rowid, state=running):
                return False
        except (self._optuna.exceptions.UpdateFinishedTrialError, RuntimeError):
            return False
        self._set(evaluation, begin=time.time())
        self.renew(evaluation)
        return True

    def renew(self, evaluation: Evaluation) -> None:
        """Show that the worker of a running evaluation is alive."""
        self._set(evaluation, lease=f"{own_name()} {time.time():.6f}", end=time.time())

    def complete(self, evaluation: Evaluation, metrics: Mapping[str, float]) -> bool:
        """End an evaluation with its metrics; False if it was taken over by another worker."""
        self._set(evaluation, metrics=json.dumps(dict(metrics)), end=time.time())
        values = [metrics["accuracy"], metrics["latency"]]
        return self._end(evaluation, self._optuna.trial.TrialState.COMPLETE, values)

    def fail(
        self, evaluation: Evaluation, error: str, *, again: bool = False, is_attempt: bool = False, died: bool = False,
        latency_s: float | None = None,
    ) -> bool:  # fmt: skip
        """End an evaluation without metrics; False if it has ended already.

        again: add the evaluation again, to be continued. is_attempt: it was one of `MAX_ATTEMPTS`. died: its worker
        did. latency_s: that was measured.
        """
        ended = {"end": evaluation.end} if died else {"end": time.time()}  # a dead worker's is that of its last lease
        measured = {} if latency_s is None else {"latency_s": latency_s}
        self._set(evaluation, error=error, continued=again, **ended, **measured)
        if not self._end(evaluation, self._optuna.trial.TrialState.FAIL, None):
            return False
        if again:
            self.add(
                evaluation.plain,
                evaluation.choices,
                evaluation.fidelity,
                attempt=evaluation.attempt + is_attempt,
            )
        return True

    def fail_waiting(self, name: str, error: str) -> None:
        """End all evaluations of a contestant that wait, without metrics."""
        for each in self.evaluations():
            if each.state == "waiting" and each.plain["name"] == name and self.claim(each):
                self.fail(each, error)

    def _end(self, evaluation: Evaluation, state: Any, values: Sequence[float] | None) -> bool:
        try:
            return bool(
                self._reached(self._storage.set_trial_state_values, evaluation.rowid, state=state, values=values)
            )
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _set(self, evaluation: Evaluation, **values: Any) -> None:
        for name, value in values.items():
            try:
                self._reached(self._storage.set_trial_user_attr, evaluation.rowid, name, value)
            except self._optuna.exceptions.UpdateFinishedTrialError:
                return

    def take_over(self) -> int:
        """Fail the evaluations whose worker is dead, add them again, and return their number."""
        for each in not_added_again(self.evaluations()):  # whoever failed it died before
            self.add(each.plain, each.choices, each.fidelity, attempt=each.attempt)
        dead = [each for each in self.evaluations() if each.state == "running" and self._is_dead(each)]
        taken = 0
        for each in dead:
            is_attempt = each.end - each.begin < LEASE_S  # a later one continues what was learned
            if is_attempt and each.attempt >= MAX_ATTEMPTS:
                self.fail(each, f"{MAX_ATTEMPTS} workers died during this evaluation; out of memory?")
            else:
                taken += self.fail(each, "the worker died", again=True, is_attempt=is_attempt, died=True)
        return taken

    def _is_dead(self, evaluation: Evaluation) -> bool:
        """Return whether the worker of a running evaluation has ended, as far as this process can know."""
        owner, _, _ = evaluation.lease.partition(" ")
        machine, _, rest = owner.partition(":")
        _, _, process = rest.partition(":")
        if owner == own_name():
            return False
        if machine == machine_id() and process.isdecimal() and not _is_alive(int(process)):
            return True
        lease, since = self._seen.get(evaluation.number, ("", 0.0))
        if lease != evaluation.lease or not since:
            self._seen[evaluation.number] = evaluation.lease, time.monotonic()
            return False
        return time.monotonic() - since > LEASE_S


class _JournalLock(FileLock):
    """A lock of a journal. Whoever gets it removes half a line that a full disk or a killed process has left."""

    def __init__(self, journal: Path) -> None:
        super().__init__(f"{journal}.lock")
        self._journal = journal

    def acquire(self) -> bool:
        super().acquire()
        try:
            self._remove_half_line()
        except BaseException:
            self.release()
            raise
        return True

    def _remove_half_line(self) -> None:
        with self._journal.open("rb+") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                begin = max(0, end - CHUNK)
                file.seek(begin)
                newline = file.read(end - begin).rfind(b"\n")
                if newline >= 0:
                    end = begin + newline + 1
                    break
                end = begin
            if end < size:
                file.truncate(end)


def check_store(location: str) -> None:
    """Raise SearchError if Optuna is missing, or a database cannot be used."""
    optuna = _optuna()
    if "://" in location:
        try:
            with quiet(optuna):
                optuna.get_all_study_names(_open(location))
        except Exception as error:
            raise SearchError(f"{location}: the store cannot be opened ({brief(error)})") from error


def _optuna() -> Any:
    return import_optional("optuna", "convatlas[search]", where="search", error=SearchError)


def _open(location: str) -> Any:
    """Return the storage of Optuna at a location."""
    optuna, url = _optuna(), urlsplit(location)
    if url.scheme == "grpc":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.GrpcStorageProxy(host=url.hostname or "localhost", port=url.port or 13000)
    if "://" in location:
        return optuna.storages.RDBStorage(location)
    journal = optuna.storages.journal
    lock = _JournalLock(Path(location))  # that of Optuna outlives a killed holder
    return optuna.storages.JournalStorage(journal.JournalFileBackend(location, lock_obj=lock))


def _evaluation(trial: Any) -> Evaluation:
    attrs = trial.user_attrs
    state = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "complete"}.get(trial.state.name, "failed")
    return Evaluation(
        trial.number, json.loads(attrs["contestant"]), dict(trial.params), attrs["fidelity"], state,
        attrs.get("begin", 0.0), attrs.get("end", 0.0), attrs["attempt"], json.loads(attrs.get("metrics", "{}")),
        attrs.get("error", ""), attrs.get("continued", False), attrs.get("lease", ""), trial._trial_id,
        attrs.get("latency_s"),
    )  # fmt: skip


TOKEN = secrets.token_hex(4)
"""Of this program and its forks: another one with the same host name and process number is not this one."""


def own_name() -> str:
    """Return the name of this worker in leases: its machine and process."""
    return f"{machine_id()}:{TOKEN}:{os.getpid()}"


@cache
def machine_id() -> str:
    """Return what differs between machines, restarts of a machine, and containers: process numbers are of one."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where signal 0 would end the process; the lease tells
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def location_of(folder: Path, storage: str | None) -> str:
    """Return where the study of a search is: the URL of a database, or the journal in its directory."""
    return storage or str(folder / JOURNAL)


def not_added_again(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the failed evaluations that are to be continued, and were not added again so far."""
    last = {each.key: each for each in evaluations}
    return [each for each in last.values() if each.state == "failed" and each.is_continued]


def elapsed(evaluations: Sequence[Evaluation], *, now: float | None = None) -> float:
    """Return the seconds in which at least one evaluation was running, with pauses of less than a minute between.

    now: one that runs lasts until now, or a little longer than its last lease, if its worker is dead.
    """
    total, last = 0.0, -math.inf
    spans = []
    for each in evaluations:
        lasts = now is not None and each.state == "running"
        end = min(now or 0.0, each.end + LEASE_S / 2) if lasts else each.end
        if each.begin:
            spans.append((each.begin, max(each.begin, end)))
    for begin, end in sorted(spans):
        total += max(0.0, end - (last if begin - last < MAX_PAUSE_S else begin))
        last = max(last, end)
    return total
