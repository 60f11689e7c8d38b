"""The digits that ship with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.splits import split_off
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Targets


def read_digits() -> Source:
    """Return 1,797 handwritten digits of 8x8 pixels (UCI Optdigits test set), of which 359 are the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy((digits.images * 255 / 16).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target).long()
    samples = Samples([f"digits/{i}" for i in range(len(pixels))], Targets(label=labels), pixels)
    # the test images are the same for every seed, so that runs can be compared
    train, test = split_off(labels, 0.2, seed=0, where="digits")
    splits = {"train": samples.subset(train), "test": samples.subset(test)}
    return Source("digits", "digits", Classification(tuple("0123456789")), splits, channels=1)
