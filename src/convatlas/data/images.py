"""Pictures in memory: one uint8 tensor and one label tensor for each split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from convatlas.errors import DataError

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


@dataclass(frozen=True)
class Images:
    """One split: pixels (n, channels, size, size) uint8, labels (n,) int64, and a name for each picture."""

    pixels: Tensor
    labels: Tensor
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Images:
        """Return the pictures with these numbers."""
        return Images(self.pixels[indices], self.labels[indices], [self.names[i] for i in indices.tolist()])

    def fingerprint(self) -> str:
        """Return the sha256 of pixels and labels, so that a run can tell whether its data changed."""
        digest = hashlib.sha256()
        for tensor in (self.pixels, self.labels):
            digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


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
        parts = list(self.splits.values())
        names = [name for part in parts for name in part.names]
        return Images(torch.cat([p.pixels for p in parts]), torch.cat([p.labels for p in parts]), names)

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


def check_same_classes(classes: Sequence[str], found: Sequence[str], *, split: str, where: object) -> None:
    """Raise DataError that names the classes which `split` misses or has on top of the training classes."""
    missing = [name for name in classes if name not in found]
    unknown = [name for name in found if name not in classes]
    if missing or unknown:
        told = [f"misses {', '.join(missing)}"] if missing else []
        told += [f"has classes that train does not know: {', '.join(unknown)}"] if unknown else []
        raise DataError(f"{where}: the {split} split {' and '.join(told)}; classes are matched by name")
