"""The digits that ship with scikit-learn."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from convatlas.data.samples import Listing
from convatlas.data.source import Source
from convatlas.data.splits import split_off


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
        # the test images are the same whatever the seed, so that runs can be compared
        rest, part = split_off(labels, 0.2, seed=0, where=self.name)
        return {"train": every.subset(rest), "test": every.subset(part)}
