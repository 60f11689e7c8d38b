"""Where pictures come from: the embedded digits, IDX files (MNIST and kin), folders of picture files."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convatlas.data.decode import (
    EXTENSIONS,
    Statistics,
    in_channels,
    kind_of,
    pictures_in,
    read_shares,
    shares,
    statistics,
)
from convatlas.data.images import Broken, Dataset, Listing, check_same_classes
from convatlas.data.prepare import prepared
from convatlas.data.randomness import epoch_order
from convatlas.data.splits import Fold, split_off, with_val
from convatlas.download import Progress
from convatlas.errors import DataError, nearest
from convatlas.files import cache_folder
from convatlas.preprocessing import Preprocessing


class Source:
    """Data before a network is chosen: its name, classes and channels are known, no picture is prepared yet."""

    name: str
    location: str
    """What `find` takes to find it again, from any working directory."""
    classes: tuple[str, ...]
    channels: int
    deep: bool = False
    """Whether most of the training pictures have more than 8 bits."""

    @cached_property
    def listings(self) -> dict[str, Listing]:
        """The splits that the data has: train, and perhaps val and test; read once."""
        raise NotImplementedError

    @property
    def several(self) -> bool:
        """Whether a picture may be of several classes, or of none."""
        return self.listings["train"].labels.ndim == 2

    def split(self, *, seed: int = 0, val_share: float = 0.0, fold: Fold | None = None) -> dict[str, Listing]:
        """Return the splits, with a val split where the data has none; see `load`."""
        return with_val(self.listings, seed=seed, share=val_share, where=self.name, fold=fold)

    def statistics(
        self, channels: int, *, seed: int = 0, val_share: float = 0.0, fold: Fold | None = None
    ) -> Statistics | None:
        """Return what the training pictures hold; None for 8-bit pictures in grey or RGB, which every network knows."""
        if not self.deep and channels in (1, 3):
            return None
        train = self.split(seed=seed, val_share=val_share, fold=fold)["train"]
        pixels = train.pixels
        if pixels is not None:
            reads = [partial(_shares, pixels, i, channels, self.location) for i in range(len(pixels))]
        else:
            reads = [partial(read_shares, Path(name), channels) for name in train.names]
        return statistics(reads, deep=self.deep, where=self.location)

    def load(
        self,
        preprocessing: Preprocessing,
        *,
        seed: int = 0,
        val_share: float = 0.0,
        fold: Fold | None = None,
        roomy: bool = False,
        max_broken: float = 0.01,
        progress: Progress | None = None,
    ) -> Dataset:
        """Read and prepare all splits.

        val_share: the share of the training pictures that becomes val, decided by `seed`, where the data has no val.
        fold: the one of so many that becomes val instead.
        roomy: the training pictures are kept whole, as squares, for random crops.
        max_broken: the share of unreadable pictures that is left out and listed; more is a DataError.
        """
        listings = self.split(seed=seed, val_share=val_share, fold=fold)
        broken: list[Broken] = []
        images = {
            split: prepared(listing, split, preprocessing, roomy and split == "train", broken, progress)
            for split, listing in listings.items()
        }
        total = sum(map(len, listings.values()))
        if len(broken) > max_broken * total:
            raise DataError(
                f"{broken[0].reason}; {len(broken)} of {total} pictures cannot be read, "
                f"more than the {max_broken:.1%} allowed; mend or remove them, or raise --max-broken"
            )
        if broken:
            for split, part in images.items():
                if self.several and split != "train":
                    continue  # a rare class may be missing there
                held = part.labels.any(0).nonzero().flatten() if self.several else part.labels.unique()
                found = [self.classes[i] for i in held.tolist()]
                check_same_classes(self.classes, found, split=split, where=self.location)
        bare = next((split for split, part in images.items() if self.several and not part.labels.any()), None)
        if bare:
            raise DataError(f"{self.location}: no picture of the {bare} split is of any class; nothing can be measured")
        return Dataset(self.name, self.classes, images["train"], images.get("val"), images.get("test"), tuple(broken))


def _shares(pixels: Tensor, number: int, channels: int, name: str) -> Tensor:
    return in_channels(shares(pixels[number]), channels, name)


def find(data: str | Path, *, download: bool = False, progress: Progress | None = None) -> Source:
    """Return the source that `data` names.

    A data set by its name, a folder of pictures or of the files of a data set, a table that lists pictures (.csv, .tsv,
    .parquet), or a NumPy file (.npz).

    Data sets by name are taken from the cache; `download` allows to fetch them there.
    Raises DataError for a missing or empty folder and unknown names.
    """
    from convatlas.data.arrays import npz
    from convatlas.data.idx import IDX_SETS, fetch_idx
    from convatlas.data.lists import PictureList
    from convatlas.data.torchvision_sets import FOLDERS, SETS, torchvision_set

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
    if name in SETS:
        return torchvision_set(name, download=download)
    folder = Path(data)
    if not folder.exists():
        known = ["digits", *IDX_SETS, *SETS]
        raise DataError(f"{folder}: no such folder{nearest(name, known)}; data by name: {', '.join(known)}")
    if not folder.is_dir():
        if folder.suffix.lower() in (".csv", ".tsv", ".parquet"):
            return PictureList(folder)
        if folder.suffix.lower() == ".npz":
            return npz(folder)
        raise DataError(f"{folder}: expected a folder, a table (.csv, .tsv, .parquet) or a NumPy file (.npz)")
    for inside, held in FOLDERS.items():
        if (folder / inside).is_dir():
            return torchvision_set(held, folder)
    if any(_idx_file(folder, part) for part in IDX_PARTS.values()):
        return IdxFolder(folder)
    return PictureFolder(folder)


class Digits(Source):
    """1,797 handwritten digits of 8x8 pixels that ship with scikit-learn (UCI Optdigits test set); 359 are for test."""

    name = location = "digits"
    classes = tuple("0123456789")
    channels = 1

    @cached_property
    def listings(self) -> dict[str, Listing]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = torch.from_numpy((digits.images * 255 / 16).round().astype(np.uint8))[:, None]
        labels = torch.from_numpy(digits.target).long()
        every = Listing(labels, [f"digits/{i}" for i in range(len(pixels))], pixels)
        # the test pictures are the same whatever the seed, so that runs can be compared
        rest, part = split_off(labels, 0.2, seed=0, where=self.name)
        return {"train": every.subset(rest), "test": every.subset(part)}


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

    @cached_property
    def listings(self) -> dict[str, Listing]:
        listings = {}
        for split, labels in self.labels.items():
            file = self.files[split, "images"]
            pixels = read_idx(file)
            if pixels.ndim != 3 or len(pixels) != len(labels):
                raise DataError(f"{file}: {pixels.shape} pixels do not go with {len(labels)} labels")
            names = [f"{split}/{i}" for i in range(len(labels))]
            listings[split] = Listing(labels, names, torch.from_numpy(pixels.copy())[:, None])
        return listings


SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


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
        self.listings = {}
        for split, root in roots.items():
            check_same_classes(self.classes, _class_folders(root), split=split, where=folder)
            self.listings[split] = _list_pictures(root, self.classes)
        self.listings["train"] = mixed_once(self.listings["train"])
        self.channels, self.deep = kind_of(self.listings["train"].names)


def mixed_once(listing: Listing) -> Listing:
    """Return the pictures in another order, always the same: a recipe that keeps it must not see class after class."""
    return listing.subset(epoch_order(0, 0, len(listing)))


def _class_folders(root: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        if not name.isprintable():
            raise DataError(f"{root}: the class folder {name!r} has a name that is no text; rename it")
    if len(names) < 2:
        raise DataError(f"{root}: expected at least two folders, one for each class, found {len(names)}")
    return tuple(names)


def _list_pictures(root: Path, classes: Sequence[str]) -> Listing:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        paths = pictures_in(root / name)
        if not paths:
            raise DataError(
                f"{root / name}: the class {name} is empty; picture files are {', '.join(sorted(EXTENSIONS))}"
            )
        names += map(str, paths)
        labels += [label] * len(paths)
    return Listing(torch.tensor(labels, dtype=torch.int64), names)
