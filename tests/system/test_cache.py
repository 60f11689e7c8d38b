"""A size-limited folder of the cache deletes its least recently used entries."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from convatlas.system.cache import LruFolder


def write(folder: LruFolder, name: str, size: int, *, used: float) -> None:
    folder.path.mkdir(exist_ok=True)
    (folder.path / f"{name}{folder.suffix}").write_bytes(bytes(size))
    (folder.path / f"{name}.json").write_text("{}")
    os.utime(folder.path / f"{name}{folder.suffix}", (used, used))


def names(folder: LruFolder) -> set[str]:
    return {file.name for file in folder.path.iterdir()}


def test_the_least_recently_used_entries_are_deleted_with_their_notes(tmp_path: Path) -> None:
    folder = LruFolder(tmp_path / "cache", ".raw", limit=300)
    for number, name in enumerate("abc"):
        write(folder, name, 100, used=number)
    folder.mark_used(folder.path / "a.raw")
    folder.make_room(100)
    assert names(folder) == {"a.raw", "a.json", "c.raw", "c.json"}
    folder.make_room(100)
    assert names(folder) == {"a.raw", "a.json", "c.raw", "c.json"}
    folder.make_room(300)
    assert names(folder) == set()


def test_what_cannot_fit_deletes_nothing(tmp_path: Path) -> None:
    folder = LruFolder(tmp_path / "cache", ".raw", limit=300)
    write(folder, "a", 100, used=0)
    with pytest.raises(OSError, match="do not fit"):
        folder.make_room(301)
    assert not folder.fits(301)
    assert folder.fits(300)
    assert names(folder) == {"a.raw", "a.json"}


def test_bytes_that_stay_free_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LruFolder(tmp_path / "cache", ".raw", limit=10**6, free=500)
    write(folder, "a", 100, used=0)
    monkeypatch.setattr(LruFolder, "_free_bytes", lambda _: 550 + 100 * ("a.raw" not in names(folder)))
    assert not folder.fits(100)
    folder.make_room(100)
    assert names(folder) == set()
    with pytest.raises(OSError, match="the disk is full"):
        folder.make_room(200)


def test_unfinished_entries_of_processes_that_ended_are_deleted(tmp_path: Path) -> None:
    folder = LruFolder(tmp_path / "cache", ".raw", limit=300)
    folder.path.mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = folder.partial_file("x")
    other_machine = folder.path / f".x.not-{platform.node()}.{ended.pid}.part"
    for file in (own, other_machine, folder.path / f".x.{platform.node()}.{ended.pid}.part"):
        file.write_bytes(b"")
    folder.make_room(1)
    assert names(folder) == {own.name, other_machine.name}


def test_the_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each entry: the time for room in a cache of many entries would grow with their square."""
    folder = LruFolder(tmp_path / "cache", ".raw", limit=10**6)
    for i in range(50):
        write(folder, f"entry{i}", 100, used=i)
    listings = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda *path: listings.append(path) or scan(*path))
    names_of = os.listdir
    monkeypatch.setattr(os, "listdir", lambda *path: listings.append(path) or names_of(*path))
    folder.make_room(1)
    assert len(listings) < 10
