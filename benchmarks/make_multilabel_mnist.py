"""Write multi-label images made of MNIST digits: a 2x2 grid whose cells are each filled with probability 1/2.

    python benchmarks/make_multilabel_mnist.py MNIST_FOLDER OUT.npz [--train 20000] [--test 4000] [--seed 0]

MNIST_FOLDER has the four IDX files. OUT.npz is data for `convatlas fit`: x (n, 56, 56), y (n, 10) of 0 and 1, x_test,
y_test, classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from convatlas.data.open import open_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random, source = np.random.default_rng(arguments.seed), open_data(arguments.mnist)
    arrays = {"classes": np.array(source.classes)}
    for split, count in (("train", arguments.train), ("test", arguments.test)):
        samples = source.splits[split]
        assert samples.pixels is not None
        images, digits = samples.pixels[:, 0].numpy(), samples.targets.tensor("label").numpy()
        chosen, is_filled = random.integers(len(digits), size=(count, 4)), random.random((count, 4)) < 0.5
        cells = images[chosen] * is_filled[..., None, None]
        rows = [np.concatenate([cells[:, 2 * row], cells[:, 2 * row + 1]], 2) for row in (0, 1)]
        labels = (np.eye(len(source.classes), dtype=np.uint8)[digits[chosen]] * is_filled[..., None]).max(1)
        suffix = "" if split == "train" else f"_{split}"
        arrays |= {f"x{suffix}": np.concatenate(rows, 1), f"y{suffix}": labels.astype(np.uint8)}
    np.savez_compressed(arguments.out, **arrays)
    print(f"{arguments.out}: {arguments.train:,} train, {arguments.test:,} test, {len(source.classes)} classes")


if __name__ == "__main__":
    main()
