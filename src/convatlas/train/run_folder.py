"""The run directory."""

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
from convatlas.train.distributed import Distributed

MODEL, LAST, CHECKPOINT, CONFIG, METRICS, CURVES, UNREADABLE, REPORT, RATES = (
    "model.safetensors", "last.safetensors", "checkpoint.pt", "run.json", "metrics.csv", "curves.png", "unreadable.csv",
    "report.html", "rates.png",
)  # fmt: skip


def new_folder(out: str | Path | None, data: str, model: str) -> Path:
    """Create the run's folder: `out`, which must be new or empty, or the next free runs/<data>-<model>[-n]."""
    if out is not None:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder}: exists already; choose another --out, or go on with `convatlas resume {folder}`")
    else:
        folder, number = Path("runs") / f"{data}-{model}", 1
        while folder.exists():
            number += 1
            folder = folder.with_name(f"{data}-{model}-{number}")
    try:
        folder.mkdir(parents=True, exist_ok=out is not None)
    except OSError as error:
        raise RunError(f"{folder}: the run's folder cannot be written: {error.strerror or error}") from error
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the run's folder against other processes, and clear what a killed write left there."""
    with (folder / CONFIG).open() as held:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{folder}: another process is training this run") from None
        for leftover in folder.glob(f".*{PART}"):
            leftover.unlink()
        yield


@contextmanager
def _cleared_if_refused(folder: Path, distributed: Distributed) -> Iterator[None]:
    """Leave no folder behind that is no run."""
    try:
        yield
    except ConvatlasError:
        if distributed.is_main:
            (folder / RATES).unlink(missing_ok=True)
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
