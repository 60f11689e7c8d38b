"""Class names: the same in all splits, matched by name between data sets."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from convatlas.errors import DataError, listed


def check_same_classes(classes: Sequence[str], present: Collection[str], *, split: str, where: object) -> None:
    """Raise DataError that names the classes which `split` lacks or has in addition to the training classes."""
    _check(f"{where}: the {split} split", classes, present, "train")


def check_known_classes(classes: Sequence[str], present: Collection[str], *, split: str, where: object) -> None:
    """Raise DataError that names the classes which `split` has in addition to the training classes."""
    if not set(present) <= set(classes):
        check_same_classes(classes, present, split=split, where=where)


def class_indices(classes: Sequence[str], others: Sequence[str], where: object, *, complete: bool = True) -> Tensor:
    """Return the number of each class of other data among a model's classes: (others,) int64.

    Raises DataError unless they are the same in any order; if not `complete`, the data may have some of them.
    """
    if complete or not set(others) <= set(classes):
        _check(f"{where}: the data", classes, others, "the model")
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[name] for name in others])


def _check(subject: str, classes: Sequence[str], present: Collection[str], reference: str) -> None:
    have, known = set(present), set(classes)
    missing = [name for name in classes if name not in have]
    unknown = sorted(have - known)
    if missing or unknown:
        problems = [f"lacks {listed(missing)}"] if missing else []
        problems += [f"has classes that are not in {reference}: {listed(unknown)}"] if unknown else []
        raise DataError(
            f"{subject} {' and '.join(problems)}; classes are matched by name{_differences(missing, unknown)}"
        )


def _differences(names: Sequence[str], others: Sequence[str]) -> str:
    """Return the code points of the first pair of names that look the same or differ only in case; "" if none do."""
    alike = {_appearance(name): name for name in names}
    pair = next(((alike[_appearance(name)], name) for name in others if _appearance(name) in alike), None)
    return f"; {pair[0]!a} is not {pair[1]!a}" if pair else ""


def _appearance(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
