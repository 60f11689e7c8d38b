"""Write the MNIST surrogate of the 1989 zip-code data: 7,291 training and 2,007 test digits, chosen at random.

The original 16x16 zip codes were never published. As in Karpathy's study of 2022, the numbers of images are kept and
the digits are taken from MNIST; the preprocessing of `convnet1989` resizes them to 16x16.

    python benchmarks/make_zipcode_surrogate.py MNIST_FOLDER OUT_FOLDER
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

import numpy as np

from convatlas.data.readers.idx import IDX_PARTS, read_idx_folder

NUM_IMAGES = {"train": 7291, "test": 2007}
SEED = 1989

IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
"""First four bytes of IDX files of bytes, with three axes and with one."""


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, h, w) and labels (n,) of an IDX folder, both uint8."""
    samples = read_idx_folder(folder).splits[split]
    assert samples.pixels is not None
    return samples.pixels[:, 0].numpy(), samples.targets.tensor("label").numpy().astype(np.uint8)


def write_split(folder: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images and labels as IDX files."""
    for part, values, magic in (("images", images, IMAGES_MAGIC), ("labels", labels, LABELS_MAGIC)):
        header = struct.pack(f">{1 + values.ndim}I", magic, *values.shape)
        (folder / IDX_PARTS[split, part]).write_bytes(header + values.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(SEED)
    for split, count in NUM_IMAGES.items():
        images, labels = read_split(arguments.mnist, split)
        chosen = random.permutation(len(labels))[:count]
        write_split(arguments.out, split, images[chosen], labels[chosen])
        print(f"{arguments.out}: {count:,} images of {split}")


if __name__ == "__main__":
    main()
