"""Cached properties of image files: content digest, channels, bit depth and size, known without opening the files.

A row belongs to an absolute path and is valid as long as the file's size, modification time and status-change time are
unchanged. A file changed within 2 s before it was read gets no row, because a second change within the resolution
of the clock would go unnoticed (as git does for its index).
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.data.decode.files import UnavailableError, read_bytes
from convatlas.data.decode.headers import read_header
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError, MachineError, foreign_errors, printable
from convatlas.system.cache import LruFolder, cache_folder
from convatlas.system.files import atomic
from convatlas.system.progress import Progress

VERSION = 3

RACY_NS = 2 * 10**9
"""A file that changed less than this many nanoseconds before it was read is read again next time."""

NO_FILE = "no such file"
"""Why an image that does not exist cannot be opened."""

MAX_SIDE = 2**31 - 1
"""Maximum side in pixels; no image whose header states a larger one is readable."""

CONTENTS_LIMIT = 2**30
"""Maximum bytes of files that stay in memory from probing to decoding; what does not fit is read twice, at first."""

MANIFESTS_LIMIT = 2**30
"""Maximum bytes of manifests in the cache."""

Stamp = tuple[int, int, int]
"""Size in bytes, modification time and status-change time in ns."""


@dataclass(frozen=True)
class FileInfo:
    """What is known of n files.

    digests: (n, 32) uint8, the sha256 of their contents. channels: (n,), 0 if the header is unreadable.
    high_bit_depth: (n,) bool. unopened: {index: why a file cannot be opened}; its digest is zero.
    sizes: (n, 2) height and width with the orientation applied, 0 if the header is unreadable. orientations: (n,), 1 to
    8, see EXIF.
    """

    digests: NDArray[np.uint8]
    channels: NDArray[np.int32]
    high_bit_depth: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    orientations: NDArray[np.uint8]
    unopened: dict[int, str]


@dataclass
class Manifest:
    """The rows of all files of one data set; `location` names the data set and the manifest's file."""

    location: str
    _numbers: dict[str, int] = field(default_factory=dict, repr=False)  # path -> row
    _rows: _Rows | None = field(default=None, repr=False)
    _contents: dict[str, bytes] = field(default_factory=dict, repr=False)
    _contents_size: int = 0

    @property
    def folder(self) -> LruFolder:
        return LruFolder(cache_folder() / "manifests", ".npz", MANIFESTS_LIMIT)

    def look_up(self, names: Sequence[str], *, progress: Progress | None = None, task: str = "reading") -> FileInfo:
        """Return what is known of files; new and changed ones are read, once, and the manifest is saved."""
        if self._rows is None:
            self._numbers, self._rows = self._load()
        started = time.time_ns()
        names = [_absolute(name) for name in names]
        stamps, unopened = _stamps(names, self.stamp)
        numbers = self._numbers_of(names)
        known = numbers >= 0
        known[known] = (self._rows.stamps[numbers[known]] == stamps[known]).all(1)
        known[list(unopened)] = True  # there is nothing to read
        unknown = np.flatnonzero(~known).tolist()
        if unknown:
            probed: list[tuple[int, Probe]] = []
            results = map_in_threads(self.probe, [names[i] for i in unknown])
            for done, (i, result) in enumerate(zip(unknown, results, strict=True), 1):
                if isinstance(result, str):
                    unopened[i] = result
                else:
                    probed.append((i, result))
                if progress:
                    progress(task, done, len(unknown))
            self._add(names, stamps, started, probed)
            self._save()
            numbers = self._numbers_of(names)
        opened = np.ones(len(names), dtype=bool)
        opened[list(unopened)] = False
        rows = self._rows.take(numbers[opened])
        count = len(names)
        info = FileInfo(
            np.zeros((count, 32), np.uint8), np.zeros(count, np.int32), np.zeros(count, bool),
            np.zeros((count, 2), np.int32), np.ones(count, np.uint8), unopened,
        )  # fmt: skip
        for column in ("digests", "channels", "high_bit_depth", "sizes", "orientations"):
            getattr(info, column)[opened] = getattr(rows, column)
        return info

    def contents(self, name: str, *, remove: bool = False) -> bytes | None:
        """Return the contents of a file that was just read, if they are still in memory."""
        path = _absolute(name)
        if not remove:
            return self._contents.get(path)
        data = self._contents.pop(path, None)
        self._contents_size -= len(data or b"")
        return data

    def release(self) -> None:
        """Forget the contents of files."""
        self._contents.clear()
        self._contents_size = 0

    def _numbers_of(self, names: Sequence[str]) -> NDArray[np.int64]:
        return np.fromiter((self._numbers.get(name, -1) for name in names), np.int64, len(names))

    def stamp(self, name: str) -> Stamp:
        """Return what changes with the contents of a file; raises OSError if it is not there."""
        return stamp_of(os.stat(name))

    def probe(self, name: str) -> Probe | str:
        """Read a file, once, and return what is known of it, or why it cannot be opened."""
        try:
            data = read_bytes(name)
        except DataError as error:
            return str(error).removeprefix(printable(f"{name}: "))
        if self._contents_size + len(data) <= CONTENTS_LIMIT:
            self._contents_size += len(data)
            self._contents[name] = data
        digest = hashlib.sha256(data).digest()
        try:
            header = read_header(name, data=data)
        except UnavailableError:  # a library is missing, which may be installed later
            return Probe(digest, is_final=False)
        except DataError:
            return Probe(digest)
        width, height = (min(side, MAX_SIDE) for side in header.upright_size)
        return Probe(digest, header.channels, header.high_bit_depth, (height, width), header.orientation)

    def _add(
        self, names: Sequence[str], stamps: NDArray[np.int64], started: int, probed: Sequence[tuple[int, Probe]]
    ) -> None:
        assert self._rows is not None
        indices, probes = [i for i, _ in probed], [probe for _, probe in probed]
        unchanged_for = started - stamps[indices, 1:].max(1, initial=0)
        start = len(self._rows.stamps)
        self._numbers |= {names[i]: start + row for row, i in enumerate(indices)}
        self._rows = self._rows.concatenate(
            _Rows(
                stamps[indices],
                np.frombuffer(b"".join(probe.digest for probe in probes), np.uint8).reshape(-1, 32),
                np.array([probe.channels for probe in probes], np.int32),
                np.array([probe.high_bit_depth for probe in probes], np.bool_),
                np.array([probe.size for probe in probes], np.int32).reshape(-1, 2),
                np.array([probe.orientation for probe in probes], np.uint8),
                np.array([probe.is_final for probe in probes], np.bool_) & (unchanged_for > RACY_NS),
            )
        )

    @property
    def key(self) -> str:
        """What names the manifest's file."""
        return self.location

    @property
    def _path(self) -> Path:
        digest = hashlib.sha256(os.fsencode(self.key)).hexdigest()[:32]
        return self.folder.path / f"{digest}.npz"

    def _load(self) -> tuple[dict[str, int], _Rows]:
        """Return the rows of the manifest's file; none if it is missing, damaged or of another version."""
        with suppress(OSError, ValueError, TypeError, KeyError, DataError):
            with foreign_errors(self._path, DataError), np.load(self._path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            rows = _Rows(*(arrays[field.name] for field in fields(_Rows)))
            names = os.fsdecode(arrays["names"].tobytes()).split("\0") if len(rows.stamps) else []
            if int(arrays["version"]) == VERSION and rows.is_valid(len(names)):
                self.folder.mark_used(self._path)
                return dict(zip(names, range(len(names)), strict=True)), rows
        return {}, _Rows.empty()

    def _save(self) -> None:
        """Write the rows that stay valid; of concurrent runs the last one wins, and the other reads its files again."""
        assert self._rows is not None
        stored = [(name, row) for name, row in self._numbers.items() if self._rows.is_final[row]]
        rows = self._rows.take(np.array([row for _, row in stored], dtype=np.int64))
        names = os.fsencode("\0".join(name for name, _ in stored))
        buffer = io.BytesIO()
        columns = {field.name: getattr(rows, field.name) for field in fields(_Rows)}
        np.savez(buffer, version=VERSION, names=np.frombuffer(names, np.uint8), **columns)
        with suppress(OSError, MachineError):  # without a cache the files are read again next time
            self.folder.make_room(buffer.getbuffer().nbytes)
            with atomic(self._path) as file:
                file.write(buffer.getbuffer())


@dataclass(frozen=True)
class Probe:
    """What was read from one file. is_final: whether that holds as long as the file does not change."""

    digest: bytes
    channels: int = 0
    high_bit_depth: bool = False
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    is_final: bool = True


@dataclass(frozen=True)
class _Rows:
    """The columns of a manifest. stamps: (n, 3), see `Stamp`."""

    stamps: NDArray[np.int64]
    digests: NDArray[np.uint8]
    channels: NDArray[np.int32]
    high_bit_depth: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    orientations: NDArray[np.uint8]
    is_final: NDArray[np.bool_]

    @staticmethod
    def empty() -> _Rows:
        flags = np.zeros(0, np.bool_)
        return _Rows(
            np.zeros((0, 3), np.int64), np.zeros((0, 32), np.uint8), np.zeros(0, np.int32), flags,
            np.zeros((0, 2), np.int32), np.zeros(0, np.uint8), flags,
        )  # fmt: skip

    @property
    def columns(self) -> tuple[NDArray[Any], ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def take(self, numbers: NDArray[np.int64]) -> _Rows:
        return _Rows(*(column[numbers] for column in self.columns))

    def concatenate(self, other: _Rows) -> _Rows:
        return _Rows(*(np.concatenate(pair) for pair in zip(self.columns, other.columns, strict=True)))

    def is_valid(self, count: int) -> bool:
        """Return whether the columns have `count` rows, and their types."""
        return all(
            column.ndim > 0
            and len(column) == count
            and column.dtype == empty.dtype
            and column.shape[1:] == empty.shape[1:]
            for column, empty in zip(self.columns, _Rows.empty().columns, strict=True)
        )


def _absolute(name: str) -> str:
    return name if name.startswith(os.sep) else os.path.abspath(name)


def stamp_of(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _stamps(names: Sequence[str], stamp: Callable[[str], Stamp]) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return the stamps (n, 3), and {index: why a file is not there}."""
    stamps: list[Stamp] = []
    missing: dict[int, str] = {}
    for i, name in enumerate(names):
        try:
            stamps.append(stamp(name))
        except FileNotFoundError:
            stamps.append((0, 0, 0))
            missing[i] = f"dangling link to {os.readlink(name)}" if os.path.islink(name) else NO_FILE
        except OSError as error:
            stamps.append((0, 0, 0))
            missing[i] = f"cannot be opened: {error.strerror}"
        except ValueError:  # a zero byte in the name, or a lone surrogate
            stamps.append((0, 0, 0))
            missing[i] = "not the name of a file"
    return np.array(stamps, dtype=np.int64).reshape(-1, 3), missing
