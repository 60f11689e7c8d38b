"""The cache of decoded pixels."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from convatlas.errors import MachineError, foreign_errors
from convatlas.system.cache import LruFolder, cache_folder
from convatlas.system.files import write_text

MEMORY_LIMIT = 8 * 2**30
"""Maximum bytes of pixels in memory, if the cache has no room for them."""

FREE_BYTES = 2**30
"""Bytes that stay free on the disk of the cache."""

CACHE_LIMIT = 40 * 2**30
"""Maximum bytes of pixels in the cache; the least recently used ones are deleted."""


CHUNK = 2**26
"""Bytes for which room is made at once, if the size of an entry is not known beforehand."""


class Notes(TypedDict):
    """The notes of preparation: {index: why the image is unreadable}, and the aspect ratios of the others.

    frames: of videos that are stored with all their frames, the number of frames of each readable one; else empty.
    """

    unreadable: dict[str, str]
    aspects: list[float]
    frames: list[int]


Shape = Callable[[Notes], tuple[int, ...]]
"""From the notes of an entry to the shape of its pixels."""


@dataclass(frozen=True)
class PixelCache:
    """Prepared images in the cache: pixels in `<name>.raw`, notes in `<name>.json`, which is written last.

    Two runs may build the same entry at once: each writes a file of its own, and the later one replaces the other.
    """

    name: str
    dtype: torch.dtype = torch.uint8

    @property
    def folder(self) -> LruFolder:
        return LruFolder(cache_folder() / "images", ".raw", CACHE_LIMIT, FREE_BYTES)

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self.dtype.itemsize

    @property
    def _files(self) -> tuple[Path, Path]:
        return self.folder.path / f"{self.name}.raw", self.folder.path / f"{self.name}.json"

    @property
    def _part(self) -> Path:
        return self.folder.partial_file(self.name)

    def open(self, shape_of: Shape, count: int) -> tuple[Tensor | None, Notes | None]:
        """Return the pixels, mapped into memory, and the notes of `count` images; None for what is missing.

        shape_of: gives the shape of all pixels; whole images and videos are stored one after another, (values,).
        Notes without pixels belong to images that are streamed, as long as there is no room for their pixels.
        """
        raw, notes_file = self._files
        try:
            notes = _read_notes(notes_file, count)
            if notes is None:
                return None, None
            shape = shape_of(notes)
            if not raw.exists():
                return None, None if self._has_room(shape) else notes
            if raw.stat().st_size != self.num_bytes(shape):
                return None, None
            self.folder.mark_used(raw)
            return _map(raw, shape, self.dtype), notes
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # damaged: it is built again
            return None, None

    def _has_room(self, shape: tuple[int, ...]) -> bool:
        size = self.num_bytes(shape)
        return size <= MEMORY_LIMIT or self.folder.fits(size)

    def allocate(self, shape: tuple[int, ...] | None) -> PixelWriter | None:
        """Return room for the pixels: in a file, or in memory if the disk has no room; else None.

        shape: None if it is not known: the file grows as long as there is room, and then goes on in memory.
        """
        size = 0 if shape is None else self.num_bytes(shape)
        try:
            self.folder.make_room(size)
            with self._part.open("wb") as file:
                if size:
                    _reserve(file.fileno(), 0, size)
            return PixelWriter(size, self.dtype, self._part, self._grow if shape is None else None)
        except (OSError, RuntimeError):
            self.discard()
            return PixelWriter(size, self.dtype) if size <= MEMORY_LIMIT else None

    def _grow(self, size: int) -> None:
        """Add a chunk to the unfinished file, which has `size` bytes; raises OSError if there is no room."""
        replace(self.folder, limit=self.folder.limit - size).make_room(CHUNK)
        with self._part.open("r+b") as file:
            _reserve(file.fileno(), size, CHUNK)

    def discard(self) -> None:
        """Delete an unfinished entry."""
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def commit(self, pixels: Tensor | None, notes: Notes) -> None:
        """Rename the finished file and write its notes; without pixels (streamed images) the notes alone."""
        raw, notes_file = self._files
        with suppress(OSError, MachineError):
            if self._part.exists():
                self._part.replace(raw)
            if pixels is None or raw.exists():
                write_text(notes_file, json.dumps(notes))


class PixelWriter:
    """Writes the pixels of an entry, one image after another, into a file, or memory if there is no room for a file.

    The file is not mapped: the first access to each page of a mapped file takes longer than writing it.
    """

    def __init__(
        self, size: int, dtype: torch.dtype, path: Path | None = None, grow: Callable[[int], None] | None = None
    ) -> None:
        """size: bytes that are reserved. grow: makes the file larger by `CHUNK` bytes; it is called with its size."""
        self.dtype, self.path, self.grow = dtype, path, grow
        self._file = path.open("r+b") if path else None
        self._memory = bytearray()
        self._room = size
        self.written = 0
        """Number of bytes."""

    def write(self, pixels: Tensor) -> bool:
        """Write the next image, or the next frames of a video; return whether there was room."""
        values = pixels.contiguous().numpy().reshape(-1).view(np.uint8).data
        self._make_room(self.written + len(values))
        if self._file is not None:
            with foreign_errors(self.path, MachineError, "cannot be written"):
                self._file.write(values)
        elif self.written + len(values) <= MEMORY_LIMIT:
            self._memory += values
        else:
            self._memory.clear()
            return False
        self.written += len(values)
        return True

    def rewind(self, written: int) -> None:
        """Drop what was written after so many bytes: the first frames of a video that turned out to be damaged."""
        self.written = written
        if self._file is not None:
            self._file.seek(written)
        else:
            del self._memory[written:]

    def _make_room(self, size: int) -> None:
        """Let the file have `size` bytes; without room on the disk, go on in memory."""
        if self._file is None or self.grow is None:
            return
        try:
            while size > self._room:
                self.grow(self._room)
                self._room += CHUNK
        except OSError:
            assert self.path is not None
            with foreign_errors(self.path, MachineError, "cannot be read"):
                self._file.flush()
                self._file.seek(0)
                if size <= MEMORY_LIMIT:
                    self._memory += self._file.read(self.written)
                self._file.close()
                self.path.unlink()
            self._file = None

    def finish(self, shape: tuple[int, ...]) -> Tensor:
        """Return all pixels in this shape; those of a file are mapped into memory."""
        size = math.prod(shape) * self.dtype.itemsize
        if self._file is None:
            self._memory += bytes(size - len(self._memory))  # places of unreadable images, which are not used
            values = torch.frombuffer(self._memory, dtype=self.dtype) if size else torch.empty(0, dtype=self.dtype)
            return values.view(shape)
        assert self.path is not None
        with foreign_errors(self.path, MachineError, "cannot be written"):
            self._file.truncate(size)
            self._file.close()
            return _map(self.path, shape, self.dtype)


def _map(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=dtype).view(shape)


def _read_notes(file: Path, count: int) -> Notes | None:
    """Return the notes of `count` images; None if they are damaged."""
    plain: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    unreadable, aspects, frames = plain["unreadable"], plain["aspects"], plain["frames"]
    numbers = {str(number) for number in range(count)} if unreadable else set()
    intact = (
        len(aspects) + len(unreadable) == count
        and numbers.issuperset(unreadable)
        and all(type(reason) is str for reason in unreadable.values())
        and all(type(aspect) is float and 0 < aspect < math.inf for aspect in aspects)
        and len(frames) in (0, len(aspects))
        and all(type(number) is int and number > 0 for number in frames)
    )
    return {"unreadable": unreadable, "aspects": aspects, "frames": frames} if intact else None


def _reserve(file: int, start: int, size: int) -> None:
    """Give a file `size` more bytes and their disk blocks: it must not run out of disk later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, start, size)
    else:  # macOS, Windows: zeros are written, in pieces
        os.lseek(file, start, os.SEEK_SET)
        zeros = bytes(2**20)
        for done in range(0, size, len(zeros)):
            os.write(file, zeros[: size - done])
