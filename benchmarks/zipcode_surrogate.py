"""Write the MNIST surrogate of the 1989 zip-code data: 7,291 training and 2,007 test digits, drawn at random.

The original 16x16 zip codes were never published. As in Karpathy's study of 2022 the two numbers of images are kept
and the digits are taken from MNIST; the network's own preprocessing makes them 16x16.

    python benchmarks/zipcode_surrogate.py MNIST_FOLDER OUT_FOLDER
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np

from convatlas.data.readers.idx import IDX_PARTS, IdxFolder, read_idx

COUNTS = {"train": 7291, "test": 2007}


def main(source: Path, target: Path) -> None:
    folder = IdxFolder(source)
    target.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1989)
    for split, count in COUNTS.items():
        images, labels = (read_idx(folder.files[split, part]) for part in ("images", "labels"))
        chosen = random.permutation(len(labels))[:count]
        for part, values, magic in (("images", images[chosen], 2051), ("labels", labels[chosen], 2049)):
            header = struct.pack(f">{1 + values.ndim}I", magic, *values.shape)
            (target / IDX_PARTS[split, part]).write_bytes(header + values.tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
