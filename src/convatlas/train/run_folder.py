"""The run directory: its files, its lock, and its tables."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from convatlas.errors import ConvatlasError, RunError
from convatlas.system.files import PART, write_text

MODEL = "model.safetensors"
LAST = "last.safetensors"
CHECKPOINT = "checkpoint.pt"
CONFIG = "run.json"
METRICS = "metrics.csv"
CURVES = "curves.png"
UNREADABLE = "unreadable.csv"
REPORT = "report.html"
LR_FINDER = "lr_finder.png"


def new_folder(out: str | Path | None, data: str, model: str) -> Path:
    """Create the run directory: `out`, which must be new or empty, or the next free runs/<data>-<model>[-n]."""
    if out is not None:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder}: exists already; choose another --out, or resume it: `convatlas resume {folder}`")
    else:
        folder, number = Path("runs") / f"{data}-{model}", 1
        while folder.exists():
            number += 1
            folder = folder.with_name(f"{data}-{model}-{number}")
    try:
        folder.mkdir(parents=True, exist_ok=out is not None)
    except OSError as error:
        raise RunError(f"{folder}: the run directory cannot be written: {error.strerror or error}") from error
    return folder


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock the run directory against other processes, and remove partial files of interrupted writes."""
    with (folder / CONFIG).open() as config:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(config, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{folder}: another process is training this run") from None
        for partial in folder.glob(f".*{PART}"):
            partial.unlink()
        yield


@contextmanager
def remove_on_error(folder: Path, *, is_main: bool) -> Iterator[None]:
    """Remove a new run directory if the run cannot start."""
    try:
        yield
    except ConvatlasError:
        if is_main:
            (folder / LR_FINDER).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        raise


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, atomically."""
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())
