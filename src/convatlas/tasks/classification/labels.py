"""Class names: the same in all splits, matched by name between data sets."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from convatlas.errors import DataError


def check_same_classes(classes: Sequence[str], present: Collection[str], *, split: str, where: object) -> None:
    """Raise DataError that names the classes which `split` lacks or has in addition to the training classes."""
    _check(f"{where}: the {split} split", classes, present, "train")


def class_indices(classes: Sequence[str], others: Sequence[str], where: object) -> Tensor:
    """Return for each class of other data its number among a model's classes.

    Raises DataError unless they are the same in any order.
    """
    _check(f"{where}: the data", classes, others, "the model")
    return torch.tensor([classes.index(name) for name in others])


def _check(subject: str, classes: Sequence[str], present: Collection[str], reference: str) -> None:
    missing = [name for name in classes if name not in present]
    unknown = sorted(name for name in present if name not in classes)
    if missing or unknown:
        problems = [f"lacks {', '.join(missing)}"] if missing else []
        problems += [f"has classes that are not in {reference}: {', '.join(unknown)}"] if unknown else []
        raise DataError(f"{subject} {' and '.join(problems)}; classes are matched by name")
