"""Images of several classes made of MNIST-like ones: four places, of which each is filled with a chance of a half.

    python benchmarks/mosaics.py FOLDER OUT.npz [--train 20000] [--test 4000] [--seed 0]

FOLDER holds the four IDX files. OUT.npz is for `convatlas fit`: x, y (n, classes) of 0 and 1, x_test, y_test, classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from convatlas.data.open import find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random, source = np.random.default_rng(arguments.seed), find(arguments.folder)
    arrays = {"classes": np.array(source.classes)}
    for split, count in (("train", arguments.train), ("test", arguments.test)):
        listing = source.listings[split]
        assert listing.pixels is not None
        images, labels = listing.pixels[:, 0].numpy(), listing.labels.numpy()
        chosen, filled = random.integers(len(labels), size=(count, 4)), random.random((count, 4)) < 0.5
        tiles = images[chosen] * filled[..., None, None]
        rows = [np.concatenate([tiles[:, 2 * row], tiles[:, 2 * row + 1]], 2) for row in (0, 1)]
        marks = (np.eye(len(source.classes), dtype=np.uint8)[labels[chosen]] * filled[..., None]).max(1)
        end = "" if split == "train" else f"_{split}"
        arrays |= {f"x{end}": np.concatenate(rows, 1), f"y{end}": marks.astype(np.uint8)}
    np.savez_compressed(arguments.out, **arrays)
    print(f"{arguments.out}: {arguments.train:,} and {arguments.test:,} images of {len(source.classes)} classes")


if __name__ == "__main__":
    main()
