"""Class names: the same in all splits, matched by name between data sets."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from convatlas.errors import DataError


def check_same_classes(classes: Sequence[str], present: Collection[str], *, split: str, where: object) -> None:
    """Raise DataError that names the classes which `split` lacks or has in addition to the training classes."""
    missing = [name for name in classes if name not in present]
    unknown = sorted(name for name in present if name not in classes)
    if missing or unknown:
        problems = [f"lacks {', '.join(missing)}"] if missing else []
        problems += [f"has classes that are not in train: {', '.join(unknown)}"] if unknown else []
        raise DataError(f"{where}: the {split} split {' and '.join(problems)}; classes are matched by name")


def class_indices(classes: Sequence[str], others: Sequence[str], where: object) -> Tensor:
    """Return for each of the other classes its number among `classes`; raises DataError unless they are the same."""
    check_same_classes(classes, others, split="data", where=where)
    return torch.tensor([classes.index(name) for name in others])
