"""The cache of decoded pixels."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from convatlas.errors import RunError
from convatlas.system.files import PART, write_text

MEMORY_LIMIT = 8 * 2**30
"""Bytes of images that may be held in memory, where the cache cannot hold them."""

SPARE = 2**30
"""Bytes that are left free on the disk of the cache."""

CACHE_LIMIT = 40 * 2**30
"""Bytes that prepared images may take in the cache; what was not used for longest makes room."""


class Notes(TypedDict):
    """What is known of prepared images: {number in the listing: why it cannot be read}, and the others' aspects."""

    unreadable: dict[str, str]
    aspects: list[float]


@dataclass(frozen=True)
class PixelCache:
    """Prepared images in the cache: pixels in `path`.raw, and what is known of them in `path`.json, written last.

    Two runs may build the same one: each writes a file of its own, and the later one takes the name.
    """

    path: Path
    dtype: torch.dtype = torch.uint8

    def size(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of pixels of a shape."""
        return math.prod(shape) * self.dtype.itemsize

    @property
    def _files(self) -> tuple[Path, Path]:
        return self.path.with_suffix(".raw"), self.path.with_suffix(".json")

    def opened(self, shape: tuple[int, ...]) -> tuple[Tensor | None, Notes | None]:
        """Return the pixels, mapped into memory, and the notes; None for what is not there, or not whole.

        Notes without pixels are those of images that are streamed, where there is still no place for them.
        """
        raw, told = self._files
        try:
            notes: Notes = json.loads(told.read_text(encoding="utf-8"))
            if len(notes["aspects"]) + len(notes["unreadable"]) != shape[0]:
                return None, None
            if not raw.exists():
                return None, None if self._holds(shape) else notes
            if raw.stat().st_size != self.size(shape):
                return None, None
            with suppress(OSError):
                os.utime(raw)  # was used
            return self._mapped(raw, shape, shared=False), notes
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None, None

    def _holds(self, shape: tuple[int, ...]) -> bool:
        """Return whether there is place for the pixels, in the cache or in memory."""
        size = self.size(shape)
        free = shutil.disk_usage(self.path.parent).free
        return size <= MEMORY_LIMIT or (size <= CACHE_LIMIT and free >= size + SPARE)

    def room(self, shape: tuple[int, ...]) -> Tensor | None:
        """Return an empty tensor for the pixels: in a file, in memory where that has no place; None if neither has."""
        size = self.size(shape)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _make_room(self.path.parent, size)
            with self._part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a mapped file must not run out of disk later
            return self._mapped(self._part, shape, shared=True)
        except (OSError, RuntimeError, AttributeError):
            self.clear()
            return torch.empty(shape, dtype=self.dtype) if size <= MEMORY_LIMIT else None

    @property
    def _part(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{platform.node()}.{os.getpid()}{PART}")

    def clear(self) -> None:
        """Remove what was begun."""
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def close(self, pixels: Tensor | None, notes: Notes) -> None:
        """Give a finished file its name, and write the notes, of images that are streamed, too."""
        raw, told = self._files
        with suppress(OSError, RunError):
            if self._part.exists():
                self._part.replace(raw)
            if pixels is None or raw.exists():
                write_text(told, json.dumps(notes))

    def _mapped(self, path: Path, shape: tuple[int, ...], *, shared: bool) -> Tensor:
        return torch.from_file(str(path), shared=shared, size=math.prod(shape), dtype=self.dtype).view(shape)


def _lives(process: int) -> bool:
    """Return whether a process of this machine is there, perhaps another user's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _make_room(folder: Path, size: int) -> None:
    """Remove what was not used for longest until `size` more bytes fit; raises OSError if they cannot."""
    if size > CACHE_LIMIT:
        raise OSError(f"the cache holds at most {CACHE_LIMIT / 2**30:.0f} GiB")
    for part in folder.glob(f".*.{platform.node()}.*{PART}"):
        if not _lives(int(part.name.split(".")[-2])):
            part.unlink(missing_ok=True)
    held = sorted(((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.raw")), reverse=True)
    total = sum(bytes_ for _, bytes_, _ in held)
    while held and (total + size > CACHE_LIMIT or shutil.disk_usage(folder).free < size + SPARE):
        _, bytes_, path = held.pop()
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        total -= bytes_
    if shutil.disk_usage(folder).free < size + SPARE:
        raise OSError("the disk is full")
