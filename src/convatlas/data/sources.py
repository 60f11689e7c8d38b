"""Where pictures come from: the embedded digits, IDX files (MNIST and kin), folders of picture files."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convatlas.data.batches import epoch_order
from convatlas.data.images import (
    EXTENSIONS,
    Broken,
    Dataset,
    Images,
    check_same_classes,
    is_colour,
    pictures_in,
    read_picture,
)
from convatlas.data.splits import split_off
from convatlas.download import Progress
from convatlas.errors import DataError, nearest
from convatlas.files import cache_folder
from convatlas.preprocessing import Preprocessing

MEMORY_LIMIT = 8 * 2**30
"""Bytes of pictures that may be held in memory."""


class Source(ABC):
    """Data before a network is chosen: its name, classes and channels are known, no picture is prepared yet."""

    name: str
    location: str
    """What `find` takes to find it again, from any working directory."""
    classes: tuple[str, ...]
    channels: int

    @abstractmethod
    def load(
        self, preprocessing: Preprocessing, *, max_broken: float = 0.01, progress: Progress | None = None
    ) -> Dataset:
        """Read and prepare the splits that the data has.

        max_broken: the share of unreadable pictures that is left out and listed; more is a DataError.
        """


def find(data: str | Path, *, download: bool = False, progress: Progress | None = None) -> Source:
    """Return the source that `data` names: "digits", "mnist", "fashion_mnist", a folder of IDX files or of pictures.

    MNIST and Fashion-MNIST by name are taken from the cache; `download` allows to fetch them there.
    Raises DataError for a missing or empty folder and unknown names.
    """
    from convatlas.data.idx import IDX_SETS, fetch_idx

    name = data if isinstance(data, str) else ""  # a Path is always a folder
    if name == "digits":
        return Digits()
    if name in IDX_SETS:
        folder = cache_folder() / name
        if not any(_idx_file(folder, part) for part in IDX_PARTS.values()) and not download:
            raise DataError(
                f"{name} is not in {folder}; `fit --download` fetches it, or give a folder of its IDX files"
            )
        if download:
            fetch_idx(name, folder, progress=progress)
        return IdxFolder(folder)
    folder = Path(data)
    if not folder.exists():
        known = ["digits", *IDX_SETS]
        raise DataError(f"{folder}: no such folder{nearest(name, known)}; data by name: {', '.join(known)}")
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of pictures or IDX files, this is a file")
    if any(_idx_file(folder, part) for part in IDX_PARTS.values()):
        return IdxFolder(folder)
    return PictureFolder(folder)


def _one_channel(name: str, preprocessing: Preprocessing) -> None:
    if preprocessing.channels != 1:
        raise DataError(f"{name}: its pictures have 1 channel, not {preprocessing.channels}; see --channels")


class Digits(Source):
    """1,797 handwritten digits of 8x8 pixels that ship with scikit-learn (UCI Optdigits test set); 359 are for test."""

    name = location = "digits"
    classes = tuple("0123456789")
    channels = 1

    def load(
        self, preprocessing: Preprocessing, *, max_broken: float = 0.01, progress: Progress | None = None
    ) -> Dataset:
        from sklearn.datasets import load_digits

        _one_channel(self.name, preprocessing)
        digits = load_digits()
        pixels = torch.from_numpy((digits.images * 255 / 16).round().astype(np.uint8))[:, None]
        images = Images(
            preprocessing.geometry(pixels),
            torch.from_numpy(digits.target).long(),
            [f"digits/{i}" for i in range(len(pixels))],
        )
        # the test pictures are the same whatever the seed, so that runs can be compared
        rest, part = split_off(images.labels, 0.2, seed=0, where=self.name)
        return Dataset(self.name, self.classes, images.subset(rest), None, images.subset(part))


IDX_PARTS = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}

# the sha256 of the unpacked training labels tells which data set a folder holds
_KNOWN_LABELS = {
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5": ("mnist", tuple("0123456789")),
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9": (
        "fashion_mnist",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


def _idx_file(folder: Path, part: str) -> Path | None:
    """Return the file of one part, packed or not; some copies write a dot instead of the last dash."""
    names = [part, part.replace("-idx", ".idx")]
    return next((folder / (n + end) for n in names for end in ("", ".gz") if (folder / (n + end)).is_file()), None)


def read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Read an IDX file of bytes (packed or not); raises DataError if it is damaged, truncated or something else."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; fetch it again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= 4 or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path}: not an IDX file of bytes (wrong magic number)")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if body.size != math.prod(shape):
        raise DataError(f"{path}: holds {body.size} bytes where its header {shape} asks for another number; truncated?")
    return body.reshape(shape)


class IdxFolder(Source):
    """A folder with the four original IDX files of MNIST, Fashion-MNIST or a data set in their format."""

    channels = 1

    def __init__(self, folder: Path) -> None:
        self.folder, self.location = folder, str(folder.resolve())
        files = {part: _idx_file(folder, name) for part, name in IDX_PARTS.items()}
        missing = [name for part, name in IDX_PARTS.items() if files[part] is None]
        if missing:
            raise DataError(f"{folder}: IDX files are missing: {', '.join(missing)} (packed with .gz or not)")
        self.files = {part: file for part, file in files.items() if file is not None}
        labels = {split: read_idx(self.files[split, "labels"]) for split in ("train", "test")}
        digest = hashlib.sha256(struct.pack(">II", 2049, len(labels["train"])) + labels["train"].tobytes()).hexdigest()
        count = int(max(split.max(initial=0) for split in labels.values())) + 1
        self.name, self.classes = _KNOWN_LABELS.get(digest, (folder.name, tuple(map(str, range(count)))))
        self.labels = {split: torch.from_numpy(array.astype(np.int64)) for split, array in labels.items()}
        for split, values in self.labels.items():
            found = [self.classes[i] for i in values.unique().tolist()]
            check_same_classes(self.classes, found, split=split, where=folder)

    def load(
        self, preprocessing: Preprocessing, *, max_broken: float = 0.01, progress: Progress | None = None
    ) -> Dataset:
        _one_channel(self.name, preprocessing)
        splits = {}
        for split in ("train", "test"):
            file = self.files[split, "images"]
            pixels, labels = read_idx(file), self.labels[split]
            if pixels.ndim != 3 or len(pixels) != len(labels):
                raise DataError(f"{file}: {pixels.shape} pixels do not go with {len(labels)} labels")
            prepared = preprocessing.geometry(torch.from_numpy(pixels.copy())[:, None])
            splits[split] = Images(prepared, labels, [f"{split}/{i}" for i in range(len(labels))])
        return Dataset(self.name, self.classes, splits["train"], None, splits["test"])


SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


@dataclass
class _Listing:
    """The picture files of one split, with the index of the class of each."""

    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


class PictureFolder(Source):
    """`train/<class>/...`, `val/<class>/...` and perhaps `test/<class>/...`, or `<class>/...` to be split by seed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name, self.location = folder, folder.resolve().name, str(folder.resolve())
        folders = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
        # a class may be called "train" or "test", too; a split holds folders
        folders = {name: path for name, path in folders.items() if any(inside.is_dir() for inside in path.iterdir())}
        parts: dict[str, Path | None] = {}
        for split, known in SPLIT_FOLDERS.items():
            found = [folders[name] for name in known if name in folders]
            if len(found) > 1:
                raise DataError(f"{folder}: {' and '.join(p.name for p in found)} are both the {split} split; keep one")
            parts[split] = found[0] if found else None
        train = parts["train"]
        if train is None and any(parts.values()):
            present = next(path for path in parts.values() if path)
            raise DataError(
                f"{folder}: there is {present.name}/ but no train/; put the training pictures into train/<class>/"
            )
        roots = {split: path for split, path in parts.items() if path} if train else {"train": folder}
        self.classes = _class_folders(roots["train"])
        self.listings: dict[str, _Listing] = {}
        for split, root in roots.items():
            check_same_classes(self.classes, _class_folders(root), split=split, where=folder)
            self.listings[split] = _list_pictures(root, self.classes)
        # mixed once and for all: a recipe that keeps the order of the data must not see class after class
        listed = self.listings["train"]
        order = epoch_order(0, 0, len(listed.paths)).tolist()
        self.listings["train"] = _Listing([listed.paths[i] for i in order], [listed.labels[i] for i in order])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            colours = set(pool.map(is_colour, self.listings["train"].paths))
        self.channels = 1 if False in colours and True not in colours else 3

    def load(
        self, preprocessing: Preprocessing, *, max_broken: float = 0.01, progress: Progress | None = None
    ) -> Dataset:
        if preprocessing.channels not in (1, 3):
            raise DataError(
                f"{self.folder}: pictures have 1 or 3 channels, not {preprocessing.channels}; see --channels"
            )
        total = sum(len(listing.paths) for listing in self.listings.values())
        need = total * preprocessing.channels * preprocessing.size**2
        if need > MEMORY_LIMIT:
            raise DataError(
                f"{self.folder}: {total:,} pictures of {preprocessing.size} px need {need / 2**30:.0f} GiB of memory, "
                f"the limit is {MEMORY_LIMIT / 2**30:.0f}; use a smaller --size or fewer pictures"
            )
        splits: dict[str, Images] = {}
        broken: list[Broken] = []
        for split, listing in self.listings.items():
            splits[split] = _read_split(listing, split, preprocessing, broken, progress)
        if len(broken) > max_broken * total:
            raise DataError(
                f"{broken[0].reason}; {len(broken)} of {total} pictures cannot be read, "
                f"more than the {max_broken:.1%} allowed; mend or remove them, or raise --max-broken"
            )
        for split, images in splits.items():
            found = [self.classes[i] for i in images.labels.unique().tolist()]
            check_same_classes(self.classes, found, split=split, where=self.folder)
        return Dataset(self.name, self.classes, splits["train"], splits.get("val"), splits.get("test"), tuple(broken))


def _class_folders(root: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        if not name.isprintable():
            raise DataError(f"{root}: the class folder {name!r} has a name that is no text; rename it")
    if len(names) < 2:
        raise DataError(f"{root}: expected at least two folders, one for each class, found {len(names)}")
    return tuple(names)


def _list_pictures(root: Path, classes: Sequence[str]) -> _Listing:
    listing = _Listing()
    for label, name in enumerate(classes):
        paths = pictures_in(root / name)
        if not paths:
            raise DataError(
                f"{root / name}: the class {name} is empty; picture files are {', '.join(sorted(EXTENSIONS))}"
            )
        listing.paths += paths
        listing.labels += [label] * len(paths)
    return listing


def _read_split(
    listing: _Listing, split: str, preprocessing: Preprocessing, broken: list[Broken], progress: Progress | None
) -> Images:
    """Decode and prepare the pictures of one split, in the order of the listing; unreadable ones go to `broken`."""

    def read(path: Path) -> Tensor | DataError:
        try:
            return preprocessing.geometry(read_picture(path, preprocessing.channels))
        except DataError as error:
            return error

    count, size = len(listing.paths), preprocessing.size
    pixels = torch.empty((count, preprocessing.channels, size, size), dtype=torch.uint8)
    kept: list[int] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, picture in enumerate(pool.map(read, listing.paths)):
            if isinstance(picture, DataError):
                broken.append(Broken(str(listing.paths[i]), str(picture)))
            else:
                pixels[len(kept)] = picture
                kept.append(i)
            if progress:
                progress(f"reading {split}", i + 1, count)
    labels = torch.tensor([listing.labels[i] for i in kept], dtype=torch.int64)
    return Images(pixels[: len(kept)], labels, [str(listing.paths[i]) for i in kept])
