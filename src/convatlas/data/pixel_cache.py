"""The cache of decoded pixels."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

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


class Notes(TypedDict):
    """The notes of preparation: {index: why the image is unreadable}, and the aspect ratios of the others."""

    unreadable: dict[str, str]
    aspects: list[float]


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

    def open(self, shape: tuple[int, ...], count: int) -> tuple[Tensor | None, Notes | None]:
        """Return the pixels, mapped into memory, and the notes of `count` images; None for what is missing.

        shape: of the pixels of all images; whole images are stored one after another, (values,).
        Notes without pixels belong to images that are streamed, as long as there is no room for their pixels.
        """
        raw, notes_file = self._files
        try:
            notes = _read_notes(notes_file, count)
            if notes is None:
                return None, None
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

    def allocate(self, shape: tuple[int, ...]) -> PixelWriter | None:
        """Return room for the pixels: in a file, or in memory if the disk has no room; else None."""
        size = self.num_bytes(shape)
        try:
            self.folder.make_room(size)
            with self._part.open("wb") as file:
                _reserve(file.fileno(), size)
            return PixelWriter(shape, self.dtype, self._part)
        except (OSError, RuntimeError):
            self.discard()
            return PixelWriter(shape, self.dtype) if size <= MEMORY_LIMIT else None

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
    """Writes the pixels of an entry, one image after another, into a file or memory.

    The file is not mapped: the first access to each page of a mapped file takes longer than writing it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, path: Path | None = None) -> None:
        self.shape, self.dtype, self.path = shape, dtype, path
        self._file = path.open("r+b") if path else None
        self._memory = None if path else torch.empty(math.prod(shape), dtype=dtype)
        self._written = 0

    def write(self, image: Tensor) -> None:
        """Write the next image."""
        if self._memory is not None:
            self._memory[self._written : self._written + image.numel()] = image.flatten()
        elif self._file is not None:
            with foreign_errors(self.path, MachineError, "cannot be written"):
                self._file.write(image.contiguous().numpy().data)
        self._written += image.numel()

    def finish(self) -> Tensor:
        """Return all pixels; those of a file are mapped into memory."""
        if self._memory is not None:
            return self._memory.view(self.shape)
        assert self._file is not None
        assert self.path is not None
        with foreign_errors(self.path, MachineError, "cannot be written"):
            self._file.close()
            return _map(self.path, self.shape, self.dtype)


def _map(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=dtype).view(shape)


def _read_notes(file: Path, count: int) -> Notes | None:
    """Return the notes of `count` images; None if they are damaged."""
    plain: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    unreadable, aspects = plain["unreadable"], plain["aspects"]
    numbers = {str(number) for number in range(count)} if unreadable else set()
    intact = (
        len(aspects) + len(unreadable) == count
        and numbers.issuperset(unreadable)
        and all(type(reason) is str for reason in unreadable.values())
        and all(type(aspect) is float and 0 < aspect < math.inf for aspect in aspects)
    )
    return {"unreadable": unreadable, "aspects": aspects} if intact else None


def _reserve(file: int, size: int) -> None:
    """Give a file its size and its disk blocks: a mapped file must not run out of disk later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # macOS, Windows: zeros are written, in pieces
        os.lseek(file, 0, os.SEEK_SET)
        zeros = bytes(2**20)
        for start in range(0, size, len(zeros)):
            os.write(file, zeros[: size - start])
