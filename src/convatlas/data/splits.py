"""Splits: a val split or folds, stratified by class, with groups kept together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from convatlas.data.samples import Samples
from convatlas.errors import DataError
from convatlas.tasks.targets import Targets

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}

VAL_SHARE, VAL_LIMIT = 0.2, 5_000
"""The share of the training images, and their largest number, set aside to choose the best epoch."""


def split_off(labels: Tensor, share: float, *, seed: int, where: object) -> tuple[Tensor, Tensor]:
    """Return the indices (rest, part): a stratified random `share` of the images, sorted, decided by `seed`.

    labels: (n,), or (n, classes) of 0 and 1 for multi-label images. Raises DataError if a class has fewer than 2 images
        or there are too few to have every class on both sides.
    """
    from sklearn.model_selection import train_test_split

    if labels.ndim == 2:
        return _split_multilabel(labels, share, seed=seed, where=where)
    counts = torch.bincount(labels)
    present = counts[counts > 0]
    size = max(round(len(labels) * share), len(present))
    if int(present.min()) < 2 or len(labels) - size < len(present):
        raise DataError(f"{where}: every class needs at least 2 images to set some aside; add images or a val folder")
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


def _split_multilabel(labels: Tensor, share: float, *, seed: int, where: object) -> tuple[Tensor, Tensor]:
    """Share out the images class by class, the rarest first, as `split_off` does (Sechidis et al. 2011)."""
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
                f"{where}: every class needs at least 2 images that can be told apart; add images or a val split"
            )
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def split_groups(labels: Tensor, groups: Tensor, share: float, *, seed: int, where: object) -> tuple[Tensor, Tensor]:
    """Return the indices (rest, part) of whole groups: about a `share` of the images, class by class, by `seed`.

    Raises DataError if the groups cannot be shared out so that every class is on both sides.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = max(2, round(1 / share))
    if labels.ndim == 2:
        raise DataError(f"{where}: groups of multi-label images cannot be split; add a split column")
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


def fold_numbers(labels: Tensor, groups: Tensor | None, count: int, *, seed: int, where: object) -> Tensor:
    """Return the fold, from 1 to `count`, of each image: class by class, groups kept together, decided by `seed`.

    Raises DataError if a class does not reach every fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if labels.ndim == 2:
        if groups is not None:
            raise DataError(f"{where}: groups of multi-label images cannot be split into folds")
        return _multilabel_folds(labels, count, seed)
    folds = torch.zeros(len(labels), dtype=torch.int64)
    least = int(torch.bincount(labels).min())
    if least < count:
        raise DataError(f"{where}: every class needs at least {count} images for {count} folds, one has {least}")
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    try:
        pairs = splitter(count, shuffle=True, random_state=seed).split(
            np.zeros(len(labels)), labels.numpy(), None if groups is None else groups.numpy()
        )
        for number, (_, part) in enumerate(pairs, 1):
            folds[torch.from_numpy(part)] = number
    except ValueError as error:
        raise DataError(f"{where}: cannot be split into {count} folds ({error})") from error
    for number in range(1, count + 1):
        if set(labels[folds == number].tolist()) != set(labels.tolist()):
            raise DataError(f"{where}: a class lies in too few groups to be in each of {count} folds")
    return folds


def _multilabel_folds(labels: Tensor, count: int, seed: int) -> Tensor:
    """Deal the images out to folds, those of the rarest class first, each to the fold that has fewest of it."""
    there = torch.cat([labels.bool(), ~labels.bool().any(1, keepdim=True)], 1)
    folds = torch.zeros(len(labels), dtype=torch.int64)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    for label in there.sum(0).argsort(stable=True).tolist():
        for image in order[there[order, label]].tolist():
            if not folds[image]:
                had = torch.bincount(folds[there[:, label]], minlength=count + 1)[1:]
                sizes = torch.bincount(folds, minlength=count + 1)[1:]
                folds[image] = 1 + min(range(count), key=lambda i: (int(had[i]), int(sizes[i])))
    return folds


Fold = tuple[int, int]
"""(which one, of how many)."""


def with_val(
    splits: Mapping[str, Samples],
    strata: Callable[[Targets], Tensor],
    *,
    seed: int,
    share: float,
    where: object,
    fold: Fold | None = None,
) -> dict[str, Samples]:
    """Return the splits with a val split: their own, or a `share` of the training images, at most 5,000, or a fold.

    strata: returns what the split keeps in proportion, (n,) or (n, k); see `Task.strata`. A share of 0 makes no val.
    """
    if "val" in splits:
        return dict(splits)
    train = splits["train"]
    labels = strata(train.targets)
    if fold is not None:
        number, count = fold
        inside = fold_numbers(labels, train.groups, count, seed=seed, where=where) == number
        parts = {"train": (~inside).nonzero().flatten(), "val": inside.nonzero().flatten()}
        return {**splits, **{split: train.subset(part) for split, part in parts.items()}}
    if share == 0:
        return dict(splits)
    size = min(share, VAL_LIMIT / len(train))
    if train.groups is not None:
        rest, part = split_groups(labels, train.groups, size, seed=seed, where=where)
    else:
        rest, part = split_off(labels, size, seed=seed, where=where)
    return {**splits, "train": train.subset(rest), "val": train.subset(part)}
