"""IDX files: MNIST, Fashion-MNIST and data sets in their format."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.errors import DataError, foreign_errors, printable
from convatlas.system.download import fetch
from convatlas.system.progress import Progress
from convatlas.tasks.classification.labels import check_known_classes
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Targets

PIECE_BYTES = 2**24

IDX_PARTS = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}

# sha256 of the uncompressed training labels, by which a data set is recognized
_KNOWN_LABELS = {
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5": ("mnist", tuple("0123456789")),
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9": (
        "fashion_mnist",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


def _idx_file(folder: Path, part: str) -> Path | None:
    """Return the file of one part, compressed or not; some copies have a dot instead of the last dash."""
    names = [part, part.replace("-idx", ".idx")]
    return next((folder / (n + end) for n in names for end in ("", ".gz") if (folder / (n + end)).is_file()), None)


def read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Read an IDX file of bytes (compressed or not); raises DataError if it is damaged, truncated or another file."""
    with (
        foreign_errors(path, DataError, "cannot be read; download it again"),
        gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file,
    ):
        magic = file.read(4)
        if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
            raise DataError(f"{path}: not an IDX file of bytes (wrong magic number)")
        sizes = file.read(4 * magic[3])
        if len(sizes) < 4 * magic[3]:
            raise DataError(f"{path}: not an IDX file of bytes (truncated header)")
        shape = struct.unpack(f">{magic[3]}I", sizes)
        expected = math.prod(shape)
        # one byte more, to notice a file that is too long; at most the bytes that the header specifies are in memory
        body = np.frombuffer(b"".join(_pieces(file, expected + 1)), np.uint8)
    if body.size != expected:
        size = f"{body.size}" if body.size < expected else "more"
        raise DataError(f"{path}: must contain {expected} bytes for the shape {shape}, got {size}; download it again")
    return body.reshape(shape)


def _pieces(file: io.BufferedIOBase, size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes of a file, or those that are left; a single read would allocate all of them."""
    while size and (piece := file.read(min(size, PIECE_BYTES))):
        yield piece
        size -= len(piece)


def has_idx_files(folder: Path) -> bool:
    """Return whether a folder contains any of the four IDX files."""
    return any(_idx_file(folder, part) for part in IDX_PARTS.values())


def read_idx_folder(folder: Path) -> Source:
    """Read a folder with the four IDX files of MNIST, Fashion-MNIST or a data set in their format."""
    paths = {part: _idx_file(folder, name) for part, name in IDX_PARTS.items()}
    missing = [name for part, name in IDX_PARTS.items() if paths[part] is None]
    if missing:
        raise DataError(f"{folder}: IDX files are missing: {', '.join(missing)} (with or without .gz)")
    files = {part: file for part, file in paths.items() if file is not None}
    labels = {split: read_idx(files[split, "labels"]) for split in ("train", "test")}
    for split, numbers in labels.items():
        if numbers.ndim != 1:
            raise DataError(f"{files[split, 'labels']}: must hold one label for each image, got shape {numbers.shape}")
    digest = hashlib.sha256(struct.pack(">II", 2049, len(labels["train"])) + labels["train"].tobytes()).hexdigest()
    count = int(max(split.max(initial=0) for split in labels.values())) + 1
    name, classes = _KNOWN_LABELS.get(digest, (folder.name, tuple(map(str, range(count)))))
    if len(classes) < 2:
        raise DataError(f"{files['train', 'labels']}: must hold at least two classes, got {len(classes)}")
    splits = {}
    for split, numbers in labels.items():
        present = {classes[i] for i in np.unique(numbers).tolist()}
        check_known_classes(classes, present, split=split, where=folder)
        file = files[split, "images"]
        pixels = read_idx(file)
        if pixels.ndim != 3 or len(pixels) != len(numbers):
            raise DataError(f"{file}: must hold {len(numbers)} images, one for each label, got shape {pixels.shape}")
        if 0 in pixels.shape:
            raise DataError(f"{file}: the images must have at least one pixel, got shape {pixels.shape}")
        names = [f"{split}/{i}" for i in range(len(numbers))]
        targets = Targets(label=torch.from_numpy(numbers.astype(np.int64)))
        splits[split] = Samples(names, targets, torch.from_numpy(pixels.copy())[:, None])
    return Source(printable(name), str(folder.resolve()), Classification(classes), splits, channels=1)


@dataclass(frozen=True)
class IdxSet:
    """The mirrors of a data set of IDX files, and the sha256 of each compressed file."""

    mirrors: tuple[str, ...]
    digests: dict[str, str]


IDX_SETS = {
    "mnist": IdxSet(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": IdxSet(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def fetch_idx(name: str, folder: Path, *, progress: Progress | None = None) -> None:
    """Download the files of MNIST or Fashion-MNIST that are missing in `folder`."""
    files = IDX_SETS[name]
    for file, digest in files.digests.items():
        fetch([mirror + file for mirror in files.mirrors], folder / file, digest, progress=progress)
