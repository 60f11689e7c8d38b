"""Atomic writes: complete or not at all, with an error that names the file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from convatlas.errors import MachineError
from convatlas.system.files import atomic, sha256, write_text


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with atomic(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    assert sha256(path) == hashlib.sha256(b"new").hexdigest()


def test_after_an_error_the_file_is_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def interrupted() -> None:
        with atomic(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_machine_error(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    with full_disk(100), pytest.raises(MachineError, match="file: cannot be written: "):
        write_text(tmp_path / "file", "x" * 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"missing.file: cannot be written: No such file"):
        write_text(tmp_path / "missing" / "file", "x")
