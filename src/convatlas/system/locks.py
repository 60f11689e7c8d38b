"""Locks by files. That of this machine: latencies are measured while no training of convatlas runs.

Trainings of searches work inside `working`, step by step, and any number of them at a time. `measuring` waits for the
steps that have begun, and no other step begins until it ends. A killed process leaves no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from convatlas.system.cache import cache_folder

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None
"""Whether this system has them: several workers on one machine need them."""


class FileLock:
    """A lock of processes and threads by a file, which the system releases when its holder dies."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._threads = threading.Lock()
        self._file: BinaryIO | None = None

    def acquire(self) -> bool:
        """Wait for the lock. Raises OSError, without having it, if the file cannot be opened or locked."""
        self._threads.acquire()
        try:
            self._file = self._path.open("ab")
            _lock(self._file, exclusive=True)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Let the next one have it."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._threads.release()


class MachineLock:
    """Opened once by a process. folder: of the two lock files, the cache directory by default."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # whoever wants to measure takes the gate first, so that no step begins while it waits for the others
        self._gate, self._room = ((folder / f"machine-{name}.lock").open("ab") for name in ("gate", "room"))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work beside others; no measurement begins before it ends."""
        with _locked(self._gate, exclusive=False):
            _lock(self._room, exclusive=False)
        try:
            yield
        finally:
            _unlock(self._room)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure alone."""
        with _locked(self._gate, exclusive=True), _locked(self._room, exclusive=True):
            yield

    def close(self) -> None:
        self._gate.close()
        self._room.close()


@contextmanager
def _locked(file: BinaryIO, *, exclusive: bool) -> Iterator[None]:
    _lock(file, exclusive=exclusive)
    try:
        yield
    finally:
        _unlock(file)


def _lock(file: BinaryIO, *, exclusive: bool) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)


def _unlock(file: BinaryIO) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
