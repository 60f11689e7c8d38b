"""The store of a search: claims, leases, workers that die, and a database that does not answer."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from convatlas.errors import SearchError
from convatlas.search import store as stores
from convatlas.search.store import TrialStore, elapsed

OPTIONS = {"depth": (1, 2), "width": (8, 16, 32)}

WORKER = """
import sys, time
from convatlas.search.store import TrialStore
store = TrialStore(sys.argv[1], "search")
while True:
    waiting = [each for each in store.evaluations() if each.state == "waiting"]
    if not waiting:
        break
    if store.claim(waiting[0]):
        print(waiting[0].plain["name"], flush=True)
        time.sleep(float(sys.argv[2]))
        store.complete(waiting[0], {"accuracy": 0.5, "latency": 0.001})
"""


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    return TrialStore(str(tmp_path / "study.journal"), "search", options=OPTIONS)


def add(store: TrialStore, *names: str, fidelity: float = 0.25) -> None:
    for name in names:
        store.add({"name": name, "kind": "candidate"}, {"depth": 0, "width": 1}, fidelity)


def worker(location: str, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, location, str(seconds)], stdout=subprocess.PIPE, text=True
    )  # fmt: skip


def test_an_evaluation_is_claimed_once(store: TrialStore) -> None:
    add(store, "a")
    other = TrialStore(store.location, "search")
    (evaluation,) = store.evaluations()
    assert (evaluation.state, evaluation.choices, evaluation.fidelity) == ("waiting", {"depth": 0, "width": 1}, 0.25)
    assert [store.claim(evaluation), other.claim(evaluation)] == [True, False]
    assert store.complete(evaluation, {"accuracy": 0.5, "latency": 0.001})
    assert not other.complete(evaluation, {"accuracy": 0.9, "latency": 0.001})
    assert not other.fail(evaluation, "late")
    (after,) = other.evaluations()
    assert (after.state, after.metrics["accuracy"]) == ("complete", 0.5)


def test_the_time_of_a_failed_evaluation_counts(store: TrialStore) -> None:
    add(store, "a")
    evaluation = store.claim_next()
    assert evaluation is not None
    time.sleep(0.3)
    store.fail(evaluation, "the time is over", again=True)
    assert 0.3 <= elapsed(store.evaluations()) < 3
    assert elapsed(store.evaluations(), now=time.time() + 1000) < 3


def test_the_same_evaluation_is_not_done_twice(store: TrialStore) -> None:
    add(store, "a", "a", "b")
    first, second = store.claim_next(), TrialStore(store.location, "search").claim_next()
    assert first is not None
    assert second is not None
    assert [first.plain["name"], second.plain["name"]] == ["a", "b"]


def test_the_end(store: TrialStore) -> None:
    other = TrialStore(store.location, "search")
    assert not other.is_over()
    store.end()
    assert other.is_over()
    with pytest.raises(SearchError, match="there is no study 'other'"):
        TrialStore(store.location, "other")


def test_one_worker_trains_a_network_at_a_time(store: TrialStore) -> None:
    other = TrialStore(store.location, "search")
    add(store, "a")
    add(store, "a", "b", fidelity=1.0)
    first, second = store.claim_next(), other.claim_next()
    assert first is not None
    assert second is not None
    assert [first.key, second.key] == [("a", 0.25), ("b", 1.0)]
    assert other.claim_next() is None
    store.complete(first, {"accuracy": 0.5, "latency": 0.001})
    third = other.claim_next()
    assert third is not None
    assert third.key == ("a", 1.0)


def test_half_a_line_that_a_full_disk_left_is_removed(store: TrialStore) -> None:
    add(store, "a")
    with open(store.location, "ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    add(store, "b")
    add(TrialStore(store.location, "search"), "c")
    names = [each.plain["name"] for each in TrialStore(store.location, "search").evaluations()]
    assert names == ["a", "b", "c"]


def test_a_directory_that_goes_away_for_a_moment_is_waited_for(
    store: TrialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, away = Path(store.location).parent, Path(f"{Path(store.location).parent}-away")
    add(store, "a")
    folder.rename(away)
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 2:
            away.rename(folder)

    monkeypatch.setattr(stores.time, "sleep", sleep)
    add(store, "b")
    assert len(sleeps) == 2
    assert len(store.evaluations()) == 2


def test_after_an_outage_living_workers_are_not_taken_for_dead(
    store: TrialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "own_name", lambda: "elsewhere:1:2")
    add(store, "a")
    assert store.claim_next() is not None
    monkeypatch.undo()
    monkeypatch.setattr(stores, "LEASE_S", 0.0)
    assert store.take_over() == 0  # seen for the first time
    get_trials, calls = store._study.get_trials, iter(range(100))

    def unreachable(**options: object) -> object:
        if next(calls) == 0:
            raise OSError("away")
        return get_trials(**options)

    monkeypatch.setattr(stores, "RETRY_S", 0.01)
    monkeypatch.setattr(store._study, "get_trials", unreachable)
    assert store.take_over() == 0
    assert store.take_over() == 1


def test_a_study_is_created_once(store: TrialStore) -> None:
    with pytest.raises(SearchError, match="already exists"):
        TrialStore(store.location, "search", options=OPTIONS)


@pytest.mark.parametrize("workers", [2, 4])
def test_every_evaluation_is_done_once_by_some_worker(store: TrialStore, workers: int) -> None:
    names = [f"n{i}" for i in range(12)]
    add(store, *names)
    processes = [worker(store.location, 0.05) for _ in range(workers)]
    done = [name for process in processes for name in process.communicate(timeout=60)[0].split()]
    assert sorted(done) == sorted(names)
    assert {each.state for each in store.evaluations()} == {"complete"}


def test_what_a_killed_worker_did_is_done_again(store: TrialStore) -> None:
    add(store, "a", "b")
    process = worker(store.location, 60)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "a"
    assert store.take_over() == 0  # it is alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.take_over() == 1
    assert store.take_over() == 0
    states = [(each.plain["name"], each.state, each.attempt, each.is_continued) for each in store.evaluations()]
    assert states == [("a", "failed", 1, True), ("b", "waiting", 1, False), ("a", "waiting", 2, False)]


def test_a_worker_of_another_machine_is_dead_when_its_lease_does_not_change(
    store: TrialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "a")
    (evaluation,) = store.evaluations()
    monkeypatch.setattr(stores, "LEASE_S", 1.0)
    with monkeypatch.context() as there:
        there.setattr(stores, "own_name", lambda: "elsewhere:1")
        store.claim(evaluation)
    assert store.take_over() == 0  # seen for the first time
    with monkeypatch.context() as there:
        there.setattr(stores, "own_name", lambda: "elsewhere:1")
        store.renew(evaluation)
    time.sleep(1.2)
    assert store.take_over() == 0  # it has changed
    time.sleep(1.2)
    assert store.take_over() == 1


@pytest.mark.parametrize("is_at_start", [True, False])
def test_an_evaluation_that_kills_its_workers_at_its_start_fails(
    store: TrialStore, monkeypatch: pytest.MonkeyPatch, is_at_start: bool
) -> None:
    if not is_at_start:
        monkeypatch.setattr(stores, "LEASE_S", 0.0)
    add(store, "a")
    for attempt in range(stores.MAX_ATTEMPTS):
        waiting = next(each for each in store.evaluations() if each.state == "waiting")
        assert waiting.attempt == (attempt + 1 if is_at_start else 1)
        child = os.fork()
        if not child:
            TrialStore(store.location, "search").claim(waiting)
            os._exit(0)
        os.waitpid(child, 0)
        store.take_over()
    last = store.evaluations()[-1]
    if not is_at_start:  # such as a machine that is taken away from time to time
        assert last.state == "waiting"
        return
    assert (last.state, last.is_continued) == ("failed", False)
    assert "3 workers died during this evaluation" in last.error


def test_elapsed_is_the_time_in_which_anything_ran(store: TrialStore) -> None:
    from dataclasses import replace

    add(store, "a", "b", "c")
    a, b, c = store.evaluations()
    spans = [replace(a, begin=10, end=20), replace(b, begin=15, end=25), replace(c, begin=140, end=145)]
    assert elapsed(spans) == 20
    assert elapsed([*spans[:2], replace(c, begin=140, end=141, state="running")], now=150) == 25
    assert elapsed([*spans[:2], replace(c, begin=40, end=45)]) == 35  # a worker was choosing meanwhile


def test_a_store_that_does_not_answer_is_waited_for(store: TrialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "RETRY_S", 0.01)
    failures = iter([ConnectionError("refused")] * 5)
    real = store._study.get_trials

    def sometimes(**named: object) -> object:
        if (error := next(failures, None)) is not None:
            raise error
        return real(**named)

    monkeypatch.setattr(store._study, "get_trials", sometimes)
    add(store, "a")
    assert len(store.evaluations()) == 1
    monkeypatch.setattr(stores, "MAX_OUTAGE_S", 0.02)
    failures = iter([ConnectionError("refused")] * 1000)
    with pytest.raises(SearchError, match="cannot be reached"):
        store.evaluations()


def _postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


class Server:
    """A PostgreSQL server in a folder of its own; as root it runs as the user nobody, which it insists on."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.url = f"postgresql+psycopg2://search@/postgres?host={folder}"
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self._run("initdb", "-U", "search", "-A", "trust")

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-o", f"-k {self.folder} -h ''", "-l", self.folder / "log", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=self._user, cwd="/")


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed: pip install psycopg2-binary")
    programs = _postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="convatlas-pg-"))  # pytest's own folder is not open to other users
    try:
        server = Server(programs, folder)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_database_that_goes_away_for_a_while(server: Server) -> None:
    store = TrialStore(server.url, "search", options=OPTIONS)
    add(store, *[f"n{i}" for i in range(6)])
    processes = [worker(server.url, 0.3) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    server.stop()
    time.sleep(1)
    server.start()
    for process in processes:
        process.communicate(timeout=120)
    assert [each.state for each in store.evaluations()] == ["complete"] * 6


PROXY = """
import sys, optuna
backend = optuna.storages.journal.JournalFileBackend(sys.argv[1])
optuna.storages.run_grpc_proxy_server(optuna.storages.JournalStorage(backend), port=int(sys.argv[2]))
"""


def test_workers_behind_a_grpc_proxy(tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="grpcio is not installed")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    proxy = subprocess.Popen(
        [sys.executable, "-c", PROXY, str(tmp_path / "journal"), str(port)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(SearchError):
                store = TrialStore(f"grpc://localhost:{port}", "search", options=OPTIONS)
                break
            assert time.monotonic() < deadline
            time.sleep(0.3)
        add(store, *[f"n{i}" for i in range(4)])
        for process in [worker(store.location, 0.1) for _ in range(2)]:
            process.communicate(timeout=60)
        evaluations = store.evaluations()
        assert [each.state for each in evaluations] == ["complete"] * 4
    finally:
        proxy.kill()
        proxy.wait()


def work_in_a_child(location: str, seconds: float) -> int:
    """Start a worker by a fork, which needs no imports, and return its process."""
    child = os.fork()
    if child:
        return child
    store = TrialStore(location, "search")
    while any(each.state in ("waiting", "running") for each in store.evaluations()):
        store.take_over()
        if (evaluation := store.claim_next()) is not None:
            time.sleep(seconds)
            store.complete(evaluation, {"accuracy": 0.5, "latency": 0.001})
        time.sleep(0.005)
    os._exit(0)


@pytest.mark.parametrize("seed", range(20))
def test_workers_that_are_killed_at_random(store: TrialStore, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LEASE_S", 1.0)  # one may die before it has written its first lease
    random = Random(seed)
    names = [f"n{i}" for i in range(6)]
    add(store, *names)
    doomed = [work_in_a_child(store.location, 0.05) for _ in range(2)]
    for child in doomed:
        time.sleep(random.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.waitpid(work_in_a_child(store.location, 0.0), 0)
    complete = [each.plain["name"] for each in store.evaluations() if each.state == "complete"]
    assert sorted(complete) == names
    others = [each for each in store.evaluations() if each.state != "complete"]
    assert all(each.is_continued or each.error.startswith("the same as") for each in others)
