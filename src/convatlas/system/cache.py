"""The cache directory, and size-limited folders in it whose least recently used entries are deleted."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from convatlas.system.files import PART


def cache_folder() -> Path:
    """Return the directory of downloads and caches: $CONVATLAS_CACHE, or ~/.cache/convatlas."""
    return Path(os.environ.get("CONVATLAS_CACHE") or Path.home() / ".cache" / "convatlas")


@dataclass(frozen=True)
class LruFolder:
    """A folder of the cache that holds at most `limit` bytes.

    An entry is a file with the suffix `suffix`, together with files and folders of the same stem and another suffix.
    Its modification time is the time of its last use.
    free: bytes that stay free on the disk.
    """

    path: Path
    suffix: str
    limit: int
    free: int = 0

    def mark_used(self, entry: Path) -> None:
        """Make an entry the most recently used one."""
        with suppress(OSError):
            os.utime(entry)

    def keep(self, entry: Path) -> None:
        """Keep an entry from being deleted as long as this process runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.partial_file(entry.stem).touch()

    def make_room(self, size: int) -> None:
        """Create the folder and delete the least recently used entries until `size` more bytes fit.

        Raises OSError if they cannot fit.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if size > self.limit:
            raise OSError(f"{self.path}: {size:,} bytes do not fit into a cache of {self.limit:,} bytes")
        delete_abandoned(self.path)
        names = sorted(os.listdir(self.path))  # once: a cache of many small entries is searched for each of them
        entries = []
        for entry in (self.path / name for name in names if name.endswith(self.suffix)):
            paths = [self.path / name for name in _beginning(names, f"{entry.stem}.")]
            with suppress(FileNotFoundError):  # another process deletes, too
                entries.append((entry.stat().st_mtime, _size(entry, paths), entry, paths))
        entries.sort(reverse=True)
        total = sum(bytes_ for _, bytes_, _, _ in entries)
        unused = [
            each for each in entries
            if not any(name.endswith(PART) for name in _beginning(names, f".{each[2].stem}."))
        ]  # fmt: skip
        while unused and (total + size > self.limit or self._free_bytes() < size + self.free):
            _, bytes_, _, oldest = unused.pop()
            for path in oldest:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            total -= bytes_
        if total + size > self.limit:
            raise OSError(f"{self.path}: {size:,} bytes do not fit beside {total:,} bytes in use")
        if self._free_bytes() < size + self.free:
            raise OSError(f"{self.path}: the disk is full")

    def fits(self, size: int) -> bool:
        """Return whether an entry of `size` bytes fits without deleting others from the disk."""
        return size <= self.limit and self._free_bytes() >= size + self.free

    def partial_file(self, name: str) -> Path:
        """Return the path of an unfinished entry; it names this process, so that it is deleted if the process dies."""
        return partial_file(self.path, name)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.path).free


def _size(entry: Path, paths: Sequence[Path]) -> int:
    """Return the bytes of an entry, with those of the files in its folders. paths: those of the same stem."""
    files = [entry, *(file for path in paths if path.is_dir() for file in path.iterdir())]
    return sum(file.stat().st_size for file in files)


def _beginning(names: Sequence[str], prefix: str) -> Sequence[str]:
    """Return the names that begin with a prefix. names: in their order."""
    return names[bisect_left(names, prefix) : bisect_left(names, prefix + chr(sys.maxunicode))]


def partial_file(folder: Path, name: str) -> Path:
    """Return the path of an unfinished file in a folder; it names this process, for `delete_abandoned`."""
    return folder / f".{name}.{platform.node()}.{os.getpid()}{PART}"


def delete_abandoned(folder: Path) -> None:
    """Delete unfinished files of processes of this machine that no longer exist."""
    for part in folder.glob(f".*.{platform.node()}.*{PART}"):
        process = part.name.split(".")[-2]
        if process.isdigit() and not _exists(int(process)):
            part.unlink(missing_ok=True)


def _exists(process: int) -> bool:
    """Return whether a process of this machine exists, possibly another user's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
