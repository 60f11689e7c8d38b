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


def split_name(text: str) -> str:
    """Return the split that a name stands for, in any case; "" for other names."""
    return next((split for split, names in SPLIT_FOLDERS.items() if text.lower() in names), "")


VAL_SHARE = 0.2
"""Share of the training images that is split off to choose the best epoch."""

MAX_UNREADABLE = 0.01
"""Maximum share of unreadable images."""

VAL_LIMIT = 5_000
"""Maximum number of images that are split off."""


def split_off(
    labels: Tensor, share: float, *, seed: int, where: object, every_class: bool = True, noun: str = "image"
) -> tuple[Tensor, Tensor]:
    """Return the indices (rest, part): a stratified random `share` of the images, sorted, drawn with `seed`.

    labels: (n,), or (n, classes) of 0 and 1 for multi-label images. every_class: raise DataError if a class has fewer
        than 2 images or there are too few to have every class on both sides; otherwise the only image of a class
        belongs to the rest. Only for (n, classes). noun: what is split, in messages.
    """
    from sklearn.model_selection import train_test_split

    if labels.ndim == 2:
        return _split_multilabel(labels, share, seed=seed, where=where, every_class=every_class, noun=noun)
    counts = torch.bincount(labels)
    present = counts[counts > 0]
    size = max(round(len(labels) * share), len(present))
    if int(present.min()) < 2 or len(labels) - size < len(present):
        raise DataError(f"{where}: every class needs at least 2 {noun}s to split off val; add {noun}s or a val split")
    _, part = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels.numpy(), random_state=seed)
    in_part = torch.zeros(len(labels), dtype=torch.bool)
    in_part[torch.from_numpy(part)] = True
    inside = torch.bincount(labels[in_part], minlength=len(counts))
    one_sided = (counts > 0) & ((inside == 0) | (inside == counts))
    for label in one_sided.nonzero().flatten().tolist():  # rounding can leave a rare class on one side only
        first = (labels == label).nonzero()[0]
        in_part[first] = ~in_part[first]
    return (~in_part).nonzero().flatten(), in_part.nonzero().flatten()


def _split_multilabel(
    labels: Tensor, share: float, *, seed: int, where: object, every_class: bool, noun: str
) -> tuple[Tensor, Tensor]:
    """Split multi-label images class by class, the rarest first, as `split_off` does (Sechidis et al. 2011)."""
    count = len(labels)
    present = _with_no_class(labels)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    in_part = torch.zeros(count, dtype=torch.bool)
    undecided = torch.ones(count, dtype=torch.bool)
    for label in present.sum(0).argsort(stable=True).tolist():
        members = order[present[order, label]]
        free = members[undecided[members]]
        wanted = max(1, round(len(members) * share))
        if not every_class:
            wanted = min(wanted, len(members) - 1)
        in_part[free[: max(0, wanted - int(in_part[members].sum()))]] = True
        undecided[free] = False
        if every_class and label < labels.shape[1] and (in_part[members].all() or not in_part[members].any()):
            raise DataError(
                f"{where}: every class needs at least 2 {noun}s with different labels to split off val; add {noun}s or "
                "a val split"
            )
    if not every_class and count > 1 and not in_part.any():
        in_part[order[0]] = True
    return (~in_part).nonzero().flatten(), in_part.nonzero().flatten()


def split_groups(
    labels: Tensor, groups: Tensor, share: float, *, seed: int, where: object, every_class: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the indices (rest, part) of whole groups: about a `share` of the images, stratified, drawn with `seed`.

    Of multi-label images it is a share of the groups; a group has the classes of all its images. every_class: see
    `split_off`. Raises DataError if no split into whole groups has every class on both sides.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = max(2, round(1 / share))
    if labels.ndim == 2:
        merged, numbers = _merge_groups(labels, groups)
        _, chosen = _split_multilabel(merged, share, seed=seed, where=where, every_class=every_class, noun="group")
        inside = torch.isin(numbers, chosen)
        return (~inside).nonzero().flatten(), inside.nonzero().flatten()
    count = len(groups.unique())
    if count < folds:
        raise DataError(
            f"{where}: a val split of 1/{folds} of the groups needs at least {folds}, found {count:,}; raise the share "
            "of val, choose other groups, or give a val split"
        )
    try:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        pairs = [*splitter.split(np.zeros(len(labels)), labels.numpy(), groups.numpy())]
    except ValueError as error:
        raise DataError(f"{where}: the groups cannot be split ({error}); give a val split") from error
    classes = set(labels.tolist())
    for rest, part in pairs:
        if set(labels[rest].tolist()) == set(labels[part].tolist()) == classes:
            return torch.from_numpy(rest), torch.from_numpy(part)
    raise DataError(
        f"{where}: a class is in too few groups to be on both sides; choose other groups, or give a val split"
    )


def _merge_groups(labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels of groups (groups, classes): those of any of their images; and the group of each image (n,)."""
    unique, numbers = groups.unique(return_inverse=True)
    merged = labels.new_zeros(len(unique), labels.shape[1]).index_add_(0, numbers, labels)
    return merged.clamp_(max=1), numbers


def fold_numbers(
    labels: Tensor, groups: Tensor | None, count: int, *, seed: int, where: object, noun: str = "image"
) -> Tensor:  # fmt: skip
    """Return the fold, from 1 to `count`, of each image: stratified, with groups kept together, drawn with `seed`.

    Raises DataError if a class cannot be in every fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if labels.ndim == 2:
        if groups is None:
            return _multilabel_folds(labels, count, seed)
        merged, numbers = _merge_groups(labels, groups)
        return _multilabel_folds(merged, count, seed)[numbers]
    folds = torch.zeros(len(labels), dtype=torch.int64)
    least = int(torch.bincount(labels).min())
    if least < count:
        raise DataError(f"{where}: every class needs at least {count} {noun}s for {count} folds, one has {least}")
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
            raise DataError(f"{where}: a class is in too few groups to be in each of {count} folds")
    return folds


def _multilabel_folds(labels: Tensor, count: int, seed: int) -> Tensor:
    """Assign images to folds, rarest class first, each to the fold with the fewest images of its class."""
    present = _with_no_class(labels).numpy()
    folds = np.zeros(len(labels), dtype=np.int64)
    of_class, sizes = np.zeros((present.shape[1], count), dtype=np.int64), np.zeros(count, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    for label in present.sum(0).argsort(kind="stable").tolist():
        for image in order[present[order, label]].tolist():
            if not folds[image]:
                fold = np.lexsort((sizes, of_class[label]))[0]  # ties: the smaller fold
                folds[image] = 1 + fold
                of_class[present[image], fold] += 1
                sizes[fold] += 1
    return torch.from_numpy(folds)


def _with_no_class(labels: Tensor) -> Tensor:
    """Return (n, classes + 1) bool: which classes an image has, and whether it has none."""
    return torch.cat([labels.bool(), ~labels.bool().any(1, keepdim=True)], 1)


Fold = tuple[int, int]
"""(number from 1, number of folds)."""


def with_val(
    splits: Mapping[str, Samples],
    strata: Callable[[Targets], Tensor],
    *,
    seed: int,
    share: float,
    where: object,
    fold: Fold | None = None,
    every_class: bool = True,
    noun: str = "image",
) -> dict[str, Samples]:
    """Return the splits with a val split: their own, or a `share` of the training images, at most 5,000, or a fold.

    strata: returns the strata of the images, (n,) or (n, k); see `Task.strata`. A share of 0: no val split.
    every_class: whether both splits must have every class. noun: what is split, in messages.
    """
    if "val" in splits:
        return dict(splits)
    train = splits["train"]
    labels = strata(train.targets)
    if fold is not None:
        number, count = fold
        inside = fold_numbers(labels, train.groups, count, seed=seed, where=where, noun=noun) == number
        parts = {"train": (~inside).nonzero().flatten(), "val": inside.nonzero().flatten()}
        return {**splits, **{split: train.subset(part) for split, part in parts.items()}}
    if share == 0:
        return dict(splits)
    size = min(share, VAL_LIMIT / len(train))
    if train.groups is not None:
        rest, part = split_groups(labels, train.groups, size, seed=seed, where=where, every_class=every_class)
    else:
        rest, part = split_off(labels, size, seed=seed, where=where, every_class=every_class, noun=noun)
    return {**splits, "train": train.subset(rest), "val": train.subset(part)}
