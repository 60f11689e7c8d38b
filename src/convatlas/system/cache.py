"""The cache directory, and size-limited folders in it whose least recently used entries are deleted."""

from __future__ import annotations

import os
import platform
import shutil
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
        entries = []
        for entry in self.path.glob(f"*{self.suffix}"):
            with suppress(FileNotFoundError):  # another process deletes, too
                entries.append((entry.stat().st_mtime, self._size(entry), entry))
        entries.sort(reverse=True)
        total = sum(bytes_ for _, bytes_, _ in entries)
        unused = [entry for entry in entries if not any(self.path.glob(f".{entry[2].stem}.*{PART}"))]
        while unused and (total + size > self.limit or self._free_bytes() < size + self.free):
            _, bytes_, oldest = unused.pop()
            for path in (oldest, *self.path.glob(f"{oldest.stem}.*")):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            total -= bytes_
        if total + size > self.limit:
            raise OSError(f"{self.path}: {size:,} bytes do not fit beside {total:,} bytes in use")
        if self._free_bytes() < size + self.free:
            raise OSError(f"{self.path}: the disk is full")

    def _size(self, entry: Path) -> int:
        """Return the bytes of an entry, with those of the files in its folders."""
        paths = [
            entry,
            *(file for path in self.path.glob(f"{entry.stem}.*") if path.is_dir() for file in path.iterdir()),
        ]
        return sum(path.stat().st_size for path in paths)

    def fits(self, size: int) -> bool:
        """Return whether an entry of `size` bytes fits without deleting others from the disk."""
        return size <= self.limit and self._free_bytes() >= size + self.free

    def partial_file(self, name: str) -> Path:
        """Return the path of an unfinished entry; it names this process, so that it is deleted if the process dies."""
        return partial_file(self.path, name)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.path).free


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
