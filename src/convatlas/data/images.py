"""Pictures in memory: one uint8 tensor and one label tensor for each split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from convatlas.errors import DataError

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


@dataclass(frozen=True)
class Listing:
    """The pictures of one split before they are prepared: files, which are their names, or one array of `pixels`.

    labels: (n,) int64. pixels: (n, channels, h, w) uint8. groups: (n,) int64, of pictures that belong together.
    """

    labels: Tensor
    names: Sequence[str]
    pixels: Tensor | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Listing:
        """Return the pictures with these numbers."""
        names = [self.names[i] for i in indices.tolist()]
        pixels, groups = (None if held is None else held[indices] for held in (self.pixels, self.groups))
        return Listing(self.labels[indices], names, pixels, groups)


@dataclass(frozen=True)
class Images:
    """One split, prepared: pixels (n, channels, size, size) uint8, labels (n,) int64, and a name for each picture.

    digest: of the pictures as they were found, before they were prepared.
    aspects: width over height of each picture, where `pixels` are whole pictures squeezed into squares, of which random
        crops are to be taken; None where they are as the network evaluates them.
    """

    pixels: Tensor
    labels: Tensor
    names: Sequence[str]
    digest: str = ""
    aspects: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Images:
        """Return the pictures with these numbers."""
        names = [self.names[i] for i in indices.tolist()]
        aspects = None if self.aspects is None else self.aspects[indices]
        return Images(self.pixels[indices], self.labels[indices], names, self.digest, aspects)

    def fingerprint(self) -> str:
        """Return the sha256 of pictures and labels, so that a run can tell whether its data changed."""
        return hashlib.sha256(self.digest.encode() + self.labels.numpy().tobytes()).hexdigest()


def joined(parts: Sequence[Images]) -> Images:
    """Return the pictures of several splits as one."""
    names = [name for part in parts for name in part.names]
    digest = " ".join(part.digest for part in parts)
    return Images(torch.cat([p.pixels for p in parts]), torch.cat([p.labels for p in parts]), names, digest)


@dataclass(frozen=True)
class Broken:
    """A picture that could not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The splits of one data set, prepared for one network.

    train is learned from; val chooses the best epoch; test is looked at once, at the end. Either may be None.
    broken lists the pictures that were left out because they could not be read.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    val: Images | None
    test: Images | None
    broken: tuple[Broken, ...] = ()

    @property
    def splits(self) -> dict[str, Images]:
        """The splits that are there, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}

    @property
    def whole(self) -> Images:
        """All pictures of all splits."""
        return joined(list(self.splits.values()))

    def without_val(self) -> Dataset:
        """Return the data set with its val split back in train."""
        return self if self.val is None else replace(self, train=joined([self.train, self.val]), val=None)

    def fingerprint(self) -> str:
        """Return a sha256 of classes and splits; the name of the folder does not count."""
        parts = [*self.classes, *(images.fingerprint() for images in self.splits.values())]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def decode(picture: Image.Image, channels: int, name: object) -> Tensor:
    """Return a PIL picture as uint8 (channels, height, width), upright, in grey (1) or RGB (3).

    Raises DataError that begins with `name` if it is truncated, too deep for 8 bits, or if `channels` is neither 1
    nor 3.
    """
    if channels not in (1, 3):
        raise DataError(f"{name}: pictures have 1 or 3 channels, the network reads {channels}")
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        raise DataError(f"{name}: {picture.mode} pixels are deeper than 8 bits; convert the picture to 8 bits")
    try:
        upright = ImageOps.exif_transpose(picture)
        if upright.has_transparency_data:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        pixels = np.array(upright.convert("L" if channels == 1 else "RGB"))
    except _UNREADABLE as error:
        raise DataError(f"{name}: cannot be read: {error}") from error
    return torch.from_numpy(pixels if channels == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()


def read_picture(path: Path, channels: int) -> Tensor:
    """Return a picture file as `decode` does; raises DataError that names the file if it is missing or no picture."""
    try:
        with Image.open(path) as picture:
            return decode(picture, channels, path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not a picture") from error
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def picture_header(path: Path) -> tuple[tuple[int, int], str, bool]:
    """Return (width, height) as stored, the mode, and whether the EXIF tag asks for a rotation; raises DataError."""
    try:
        with Image.open(path) as picture:
            return picture.size, picture.mode, picture.getexif().get(ORIENTATION, 1) != 1
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


ORIENTATION = 0x0112
"""The EXIF tag of the orientation."""


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files in a folder and the folders below it, in order of their names, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def is_colour(path: Path) -> bool | None:
    """Return whether a picture file has colour, from its header; None if it cannot be opened."""
    try:
        with Image.open(path) as picture:
            return picture.mode not in ("1", "L", "LA", "La", "I", "F", "I;16")
    except _UNREADABLE:
        return None


def are_grey(names: Sequence[str]) -> bool:
    """Return whether all picture files that can be opened are grey."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        colours = set(pool.map(is_colour, map(Path, names)))
    return False in colours and True not in colours


def check_same_classes(classes: Sequence[str], found: Sequence[str], *, split: str, where: object) -> None:
    """Raise DataError that names the classes which `split` misses or has on top of the training classes."""
    missing = [name for name in classes if name not in found]
    unknown = [name for name in found if name not in classes]
    if missing or unknown:
        told = [f"misses {', '.join(missing)}"] if missing else []
        told += [f"has classes that train does not know: {', '.join(unknown)}"] if unknown else []
        raise DataError(f"{where}: the {split} split {' and '.join(told)}; classes are matched by name")
