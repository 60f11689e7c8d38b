"""Splits: pictures set aside, class by class, decided by a seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from convatlas.data.images import Listing
from convatlas.errors import DataError

VAL_SHARE, VAL_LIMIT = 0.2, 5_000
"""The share of the training pictures, and their largest number, set aside to choose the best epoch."""


def split_off(labels: Tensor, share: float, *, seed: int, where: object) -> tuple[Tensor, Tensor]:
    """Return the indices (rest, part): a stratified random `share` of the pictures, sorted, decided by `seed`.

    labels: (n,), or (n, classes) where pictures may be of several classes. Raises DataError if a class has fewer than 2
        pictures or there are too few to have every class on both sides.
    """
    from sklearn.model_selection import train_test_split

    if labels.ndim == 2:
        return _split_tags(labels, share, seed=seed, where=where)
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


def _split_tags(labels: Tensor, share: float, *, seed: int, where: object) -> tuple[Tensor, Tensor]:
    """Share out the pictures class by class, the rarest first, as `split_off` does (Sechidis et al. 2011)."""
    count = len(labels)
    there = torch.cat([labels.bool(), ~labels.bool().any(1, keepdim=True)], 1)  # no class is one of its own
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    chosen = torch.zeros(count, dtype=torch.bool)
    waiting = torch.ones(count, dtype=torch.bool)
    for label in there.sum(0).argsort(stable=True).tolist():
        members = order[there[order, label]]
        open_ = members[waiting[members]]
        want = max(1, round(len(members) * share)) - int(chosen[members].sum()) if len(members) else 0
        chosen[open_[: max(0, want)]] = True
        waiting[open_] = False
        if label < labels.shape[1] and (chosen[members].all() or not chosen[members].any()):
            raise DataError(
                f"{where}: every class needs at least 2 pictures that can be told apart; add pictures or a val split"
            )
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def split_groups(labels: Tensor, groups: Tensor, share: float, *, seed: int, where: object) -> tuple[Tensor, Tensor]:
    """Return the indices (rest, part) of whole groups: about a `share` of the pictures, class by class, by `seed`.

    Raises DataError if the groups cannot be shared out so that every class is on both sides.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = max(2, round(1 / share))
    if labels.ndim == 2:
        raise DataError(f"{where}: groups of pictures of several classes cannot be split; add a split column")
    try:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        pairs = [*splitter.split(np.zeros(len(labels)), labels.numpy(), groups.numpy())]
    except ValueError as error:
        raise DataError(f"{where}: the groups cannot be split ({error}); add a split column") from error
    classes = set(labels.tolist())
    for rest, part in pairs:
        if set(labels[rest].tolist()) == set(labels[part].tolist()) == classes:
            return torch.from_numpy(rest), torch.from_numpy(part)
    raise DataError(f"{where}: a class lies in too few groups to be on both sides; add a split column")


def with_val(listings: Mapping[str, Listing], *, seed: int, share: float, where: object) -> dict[str, Listing]:
    """Return the splits with a val split: their own, or a `share` of the training pictures, at most 5,000.

    With a share of 0 nothing is set aside.
    """
    if "val" in listings or share == 0:
        return dict(listings)
    train = listings["train"]
    size = min(share, VAL_LIMIT / len(train))
    if train.groups is not None:
        rest, part = split_groups(train.labels, train.groups, size, seed=seed, where=where)
    else:
        rest, part = split_off(train.labels, size, seed=seed, where=where)
    return {**listings, "train": train.subset(rest), "val": train.subset(part)}
