"""Pictures prepared for a network once: decoded, resized, and kept in a file of the cache, or in memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import PIL
import torch
from torch import Tensor

from convatlas.data.decode import UnavailableError, in_channels, shares
from convatlas.data.images import Broken, Images, Listing
from convatlas.data.stream import Pixels, Streamed, readied
from convatlas.download import Progress, sha256
from convatlas.errors import DataError, RunError
from convatlas.files import PART, cache_folder, write_text
from convatlas.preprocessing import Preprocessing

MEMORY_LIMIT = 8 * 2**30
"""Bytes of pictures that may be held in memory, where the cache cannot hold them."""

SPARE = 2**30
"""Bytes that are left free on the disk of the cache."""

CACHE_LIMIT = 40 * 2**30
"""Bytes that prepared pictures may take in the cache; what was not used for longest makes room."""


VERSIONS = (2, torch.__version__, PIL.__version__)
"""What the pixels depend on besides files and preprocessing: this file, and who decodes and resizes."""


class Notes(TypedDict):
    """What is known of prepared pictures: {number in the listing: why it cannot be read}, and the others' aspects."""

    broken: dict[str, str]
    aspects: list[float]


def prepared(
    listing: Listing, split: str, steps: Preprocessing, roomy: bool, broken: list[Broken], progress: Progress | None
) -> Images:
    """Return the pictures of one split as the network reads them, in the order of the listing.

    roomy: whole pictures in squares, for random crops. Pictures that cannot be read are added to `broken`. Where
    neither the cache nor the memory has place for the pixels, they are looked at once, and decoded again when they are
    used.
    """
    if listing.pixels is not None:
        return _of_array(listing, listing.pixels, steps, roomy)
    digests: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for digest in pool.map(_digest, listing.names):
            digests.append(digest)
            if progress:
                progress(f"looking for {split}", len(digests), len(listing))
    told = json.dumps([VERSIONS, steps.to_plain(), roomy, digests], sort_keys=True)
    store = Store(cache_folder() / "pictures" / hashlib.sha256(told.encode()).hexdigest()[:32], steps.dtype)
    side = steps.resize if roomy else steps.size
    shape = (len(listing), steps.channels, side, side)
    pixels, notes = store.opened(shape)
    if notes is None:
        pixels = store.room(shape)
        try:
            notes = _read(listing, split, steps, roomy, digests, pixels, progress)
        except DataError:
            store.clear()
            raise
        store.close(pixels, notes)
    reasons = {int(i): reason for i, reason in notes["broken"].items()}
    broken += [Broken(listing.names[i], f"{listing.names[i]}: {reason}") for i, reason in reasons.items()]
    kept = torch.tensor([i for i in range(len(listing)) if i not in reasons], dtype=torch.int64)
    whole = hashlib.sha256("".join(digests[i] for i in kept.tolist()).encode()).hexdigest()
    aspects = torch.tensor(notes["aspects"], dtype=torch.float32) if roomy else None
    names = [listing.names[i] for i in kept.tolist()]
    # of those that are held, the readable ones come first
    found: Pixels = Streamed(names, steps, roomy=roomy) if pixels is None else pixels[: len(kept)]
    return Images(found, listing.labels[kept], names, whole, aspects)


def _of_array(listing: Listing, pixels: Tensor, steps: Preprocessing, roomy: bool) -> Images:
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()).hexdigest()
    if steps.window is not None or pixels.dtype != torch.uint8 or pixels.shape[1] != steps.channels:
        low, high = steps.window or (0.0, 1.0)
        share = in_channels(shares(pixels), steps.channels, listing.names[0])
        pixels = ((share - low) / (high - low)).clamp(0, 1) * 255
        pixels = pixels.round().byte() if steps.window is None else pixels
    height, width = pixels.shape[-2:]
    aspects = torch.full((len(pixels),), width / height) if roomy else None
    ready = steps.squeezed(pixels) if roomy else steps.geometry(pixels)
    return Images(ready, listing.labels, listing.names, digest, aspects)


def _digest(name: str) -> str:
    try:
        return sha256(Path(name))
    except OSError as error:
        return f"{_UNOPENED}{error.strerror}"


_UNOPENED = "cannot be opened: "
"""How the digest of a file begins that has none."""


def _read(
    listing: Listing, split: str, steps: Preprocessing, roomy: bool, digests: Sequence[str], pixels: Tensor | None,
    progress: Progress | None,
) -> Notes:  # fmt: skip
    """Decode and resize the pictures into `pixels`, the readable ones first, and return what is to be known of them.

    Raises DataError if one cannot be read here and now: that it is broken must not be remembered.
    """

    def read(name: str, digest: str) -> tuple[Tensor, float] | str:
        if digest.startswith(_UNOPENED):
            return digest
        try:
            return readied(Path(name), steps, roomy=roomy)
        except UnavailableError:
            raise
        except DataError as error:
            return str(error).removeprefix(f"{name}: ")

    broken: dict[str, str] = {}
    aspects: list[float] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, picture in enumerate(pool.map(read, listing.names, digests)):
            if isinstance(picture, str):
                broken[str(i)] = picture
            else:
                if pixels is not None:
                    pixels[len(aspects)] = picture[0]
                aspects.append(picture[1])
            if progress:
                progress(f"reading {split}", i + 1, len(listing))
    return {"broken": broken, "aspects": aspects}


@dataclass(frozen=True)
class Store:
    """Prepared pictures in the cache: pixels in `path`.raw, and what is known of them in `path`.json, written last.

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

        Notes without pixels are those of pictures that are streamed, where there is still no place for them.
        """
        raw, told = self._files
        try:
            notes: Notes = json.loads(told.read_text(encoding="utf-8"))
            if len(notes["aspects"]) + len(notes["broken"]) != shape[0]:
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
        """Give a finished file its name, and write the notes, of pictures that are streamed, too."""
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
