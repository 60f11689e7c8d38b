"""The run directory: its states, its files, its lock, and its tables.

A run directory is in one of four states:

    new          it is empty, or has what an interrupted start left (below); `fit` starts here
    started      there is run.json, but no checkpoint; `resume` begins at step 0
    interrupted  there are run.json and checkpoint.pt; `resume` continues at the step of the checkpoint
    finished     checkpoint.pt is marked as finished; both model files are complete

`fit` writes run.json last, after everything that it takes to resume (with pretrained weights that is a first
checkpoint), so a directory without run.json has nothing to keep. Whoever writes has the lock: the file `.lock`, which
is removed at the end. A killed process leaves the file, but no lock. A directory with `.lock` and without run.json is
therefore an interrupted start, and `fit` starts again there.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from convatlas.errors import RunError, printable
from convatlas.system.files import PART, write_text
from convatlas.weights.run_files import CONFIG as CONFIG
from convatlas.weights.run_files import MODEL as MODEL

LAST = "last.safetensors"
CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.csv"
DIAGNOSTICS = "diagnostics.csv"
CURVES = "curves.png"
UNREADABLE = "unreadable.csv"
REPORT = "report.html"
LR_FINDER = "lr_finder.png"
LOCK = ".lock"

START_FILES = frozenset({UNREADABLE, LR_FINDER, CHECKPOINT})
"""Files that are written before run.json."""


class OccupiedError(RunError):
    """A run directory that has another run, or that another process uses."""


def check_out(out: str | Path | None, location: str) -> None:
    """Raise RunError if a run directory cannot be created at `out`: it exists, or is inside the data.

    location: of the data. Without `out`, there is always a free default.
    """
    if out is None:
        return
    folder = Path(out)
    check_outside(folder, location)
    if os.path.lexists(folder):
        _check_new(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise RunError(f"{folder}: the run directory cannot be written: {existing} is read-only")


def check_outside(folder: Path, location: str) -> None:
    """Raise RunError if a directory for runs is inside the data."""
    data = Path(location)
    if location and data.is_dir() and _is_inside(folder, data):
        raise RunError(
            f"{folder}: the run directory must not be inside the data folder {data}; choose another --out, such as "
            f"{runs_folder(location) / folder.name}"
        )


def runs_folder(location: str) -> Path:
    """Return where runs are stored by default: runs/, or beside a data folder that contains the working directory."""
    data = Path(location)
    if location and data.is_dir() and _is_inside(Path(), data):
        return data.resolve().parent / "runs"
    return Path("runs")


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or inside it."""
    return path.resolve().is_relative_to(folder.resolve())


@contextmanager
def start_run(out: str | Path | None, data: str, model: str, location: str) -> Iterator[Path]:
    """Create a run directory and lock it: `out`, which must be new, or the next free runs/<data>-<model>[-n].

    location: of the data, which is never written to.
    If the block fails before run.json is written, everything that it wrote is removed.
    Raises RunError if `out` has another run, or another process uses it.
    """
    check_out(out, location)
    with ExitStack() as stack:
        for folder in [Path(out)] if out is not None else default_folders(data, model, location):
            try:
                stack.enter_context(_start_in(folder))
                break
            except OccupiedError:
                if out is not None:
                    raise
        yield folder


def default_folders(data: str, model: str, location: str) -> Iterator[Path]:
    """Yield runs/<data>-<model>, runs/<data>-<model>-2, and so on."""
    for number in count(1):
        yield runs_folder(location) / printable(f"{data}-{model}" + (f"-{number}" if number > 1 else ""))


def create_default_folder(data: str, model: str, location: str) -> Path:
    """Create the first of `default_folders` that does not exist."""
    return next(folder for folder in default_folders(data, model, location) if _create(folder))


@contextmanager
def _start_in(folder: Path) -> Iterator[None]:
    created = _create(folder)
    try:
        _check_new(folder)  # before the lock marks the directory as an interrupted start
        with lock_run(folder, create=True):
            _check_new(folder)
            try:
                _remove_start_files(folder)
                yield
            except BaseException:
                if not (folder / CONFIG).exists():
                    _remove_start_files(folder)
                raise
    except BaseException:
        for each in created:
            with suppress(OSError):
                each.rmdir()
        raise


def _create(folder: Path) -> list[Path]:
    """Create a directory; return the new ones, from the inside out: it and its parents, or none if it exists."""
    if printable(str(folder)) != str(folder):  # readers of model files need paths in UTF-8
        raise RunError(f"{folder}: the name of a run directory must be printable text in UTF-8; choose another --out")
    parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.parent.is_dir():
            return []
        raise RunError(f"{folder}: the run directory cannot be written: {error.strerror or error}") from error
    return [folder, *parents]


def _check_new(folder: Path) -> None:
    """Raise OccupiedError unless a directory is empty or has what an interrupted start left."""
    with suppress(FileNotFoundError):  # a start that failed at the same time has removed it; the lock creates it again
        names = set(os.listdir(folder)) if folder.is_dir() else {folder.name}
        names = {name for name in names if not name.endswith(PART)}
        if names and not (LOCK in names and names <= {LOCK, *START_FILES}):
            raise OccupiedError(
                f"{folder}: exists already; choose another --out, or resume it: `convatlas resume {folder}`"
            )


def _remove_start_files(folder: Path) -> None:
    for name in START_FILES:
        (folder / name).unlink(missing_ok=True)


@contextmanager
def lock_run(folder: Path, *, create: bool = False) -> Iterator[None]:
    """Lock a run directory against other processes, and remove partial files of interrupted writes.

    create: create the directory if it does not exist.
    Raises RunError if another process uses the directory.
    """
    path = folder / LOCK
    descriptor = _lock(folder, path, create=create)
    try:
        for partial in folder.glob(f".*{PART}"):
            partial.unlink(missing_ok=True)
        yield
    finally:
        try:
            with suppress(OSError):
                path.unlink()
        finally:
            os.close(descriptor)


def _lock(folder: Path, path: Path, *, create: bool) -> int:
    """Return the descriptor of the locked lock file."""
    while True:
        if create:
            _create(folder)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if create and isinstance(error, FileNotFoundError):
                continue  # a start that failed at the same time has removed the directory
            raise RunError(f"{folder}: the run directory cannot be written: {error.strerror or error}") from error
        if not _try_lock(descriptor):
            os.close(descriptor)
            raise OccupiedError(f"{folder}: another process is training this run")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its last owner removed the file after it was opened here


def _try_lock(descriptor: int) -> bool:
    """Lock an open file; return False if another process has the lock."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # file systems without locks
            return True
    return True


def is_locked(path: Path) -> bool:
    """Return whether another process has locked a lock file, such as the one that trains a run."""
    if sys.platform == "win32" or not path.exists():
        return False
    import fcntl

    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # file systems without locks, a file that is removed meanwhile
        return False
    return False


def file_identity(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is written again; None if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, atomically."""
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())
