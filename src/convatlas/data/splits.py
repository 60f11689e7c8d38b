"""Splits: pictures set aside, class by class, decided by a seed."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from convatlas.data.images import Dataset
from convatlas.errors import DataError

VAL_SHARE, VAL_LIMIT = 0.2, 5_000
"""The share of the training pictures, and their largest number, set aside to choose the best epoch."""


def split_off(labels: Tensor, share: float, *, seed: int, where: object) -> tuple[Tensor, Tensor]:
    """Return the indices (rest, part): a stratified random `share` of the pictures, sorted, decided by `seed`.

    Raises DataError if a class has fewer than 2 pictures or there are too few to have every class on both sides.
    """
    from sklearn.model_selection import train_test_split

    counts = torch.bincount(labels)
    present = counts[counts > 0]
    size = max(round(len(labels) * share), len(present))
    if int(present.min()) < 2 or len(labels) - size < len(present):
        raise DataError(
            f"{where}: every class needs at least 2 pictures to set some aside; add pictures or a val folder"
        )
    _, part = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels.numpy(), random_state=seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.from_numpy(part)] = True
    for label in labels.unique().tolist():  # rounding can leave a rare class on one side only
        members = (labels == label).nonzero().flatten()
        if not chosen[members].any():
            chosen[members[0]] = True
        elif chosen[members].all():
            chosen[members[0]] = False
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def with_val(dataset: Dataset, *, seed: int, share: float) -> Dataset:
    """Return the data set with a val split: its own, or a `share` of its training pictures, at most 5,000.

    With a share of 0 nothing is set aside.
    """
    if dataset.val is not None or share == 0:
        return dataset
    train = dataset.train
    share = min(share, VAL_LIMIT / len(train))
    rest, part = split_off(train.labels, share, seed=seed, where=dataset.name)
    return dataclasses.replace(dataset, train=train.subset(rest), val=train.subset(part))
