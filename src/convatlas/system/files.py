"""Files that are whole or not there: written beside the target, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from convatlas.errors import RunError

PART = ".part"
"""How the names of unfinished files end."""


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; it appears complete at the end of the block, or is left as it was.

    Raises RunError that names the file where it cannot be written (no permission, full disk).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic(path) as file:
        file.write(text.encode())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
