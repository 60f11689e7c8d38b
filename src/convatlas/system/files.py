"""Atomic writes: a file is written beside its target, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from convatlas.errors import ConvatlasError, MachineError, brief, shorten

PART = ".part"
"""Suffix of unfinished files."""

MAX_PROBLEM = 300
"""Most characters of what is wrong in a YAML file; it may quote the file."""


@contextmanager
def atomic(path: Path, *, flush: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` at the end of the block; after an error `path` is unchanged.

    flush: wait until it is on the disk, as files must be that survive a loss of power.
    Raises MachineError that names the file if it cannot be written (no permission, full disk).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                if flush:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, flush: bool = True) -> None:
    """Write a small text file atomically, as UTF-8; bytes of file names that are not UTF-8 become escapes."""
    with atomic(path, flush=flush) as file:
        file.write(text.encode(errors="backslashreplace"))


def read_yaml(path: Path, error: type[ConvatlasError]) -> Any:
    """Read a YAML file; raises `error` if it is unreadable, not YAML, or nested too deeply."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path}: unreadable: {brief(problem)}") from problem
    except yaml.YAMLError as problem:
        raise error(f"{path}: not a YAML file: {shorten(' '.join(str(problem).split()), MAX_PROBLEM)}") from problem
    except RecursionError as problem:
        raise error(f"{path}: nested too deeply") from problem


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
