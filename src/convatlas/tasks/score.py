"""Scores: the one number that an explanation explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from convatlas.core.record import Record, at_least
from convatlas.errors import DataError, listed, nearest

Index = Annotated[int, at_least(0)]


@dataclass(frozen=True)
class Score(Record):
    """The logit of a class, or the difference of the logits of two classes.

    label, index: the class and its output. against, against_index: the class whose logit is subtracted, if any.
    box, size: of detectors, the box of the object in pixels of the image: left, top, right, bottom; and the (height,
        width) of the image.
    """

    label: str
    index: Index
    against: str | None = None
    against_index: Index | None = None
    box: tuple[float, float, float, float] | None = None
    size: tuple[int, int] | None = None

    @property
    def text(self) -> str:
        """The score in words: "bee", or "bee and not ant"."""
        return self.label if self.against is None else f"{self.label} and not {self.against}"

    def logit(self, logits: Tensor) -> Tensor:
        """Return the score (n,) of logits (n, classes); gradients flow."""
        value = logits[:, self.index]
        return value if self.against_index is None else value - logits[:, self.against_index]

    def probability(self, probabilities: Tensor) -> Tensor:
        """Return the probability (n,) of the class, from (n, classes); of a difference, its share of both, 0 of 0."""
        value = probabilities[:, self.index]
        if self.against_index is None:
            return value
        return value / (value + probabilities[:, self.against_index]).clamp(min=torch.finfo(value.dtype).tiny)


def check_class(name: str | None, classes: Sequence[str], field: str = "class") -> None:
    """Raise DataError that suggests the nearest class if `name` is not among the classes."""
    if name is not None and name not in classes:
        raise DataError(
            f"explain: {field} must be a class of the model ({listed(classes, 5)}), got {name!r}"
            f"{nearest(name, classes)}"
        )


def score_of(classes: Sequence[str], best: int, label: str | None, against: str | None) -> Score:
    """Return the score of a class, by default number `best`, or of its difference to another one.

    Raises DataError for a class that is not there, and for the difference of a class to itself.
    """
    check_class(label, classes)
    check_class(against, classes, "against")
    index = best if label is None else classes.index(label)
    if against is None:
        return Score(classes[index], index)
    if against == classes[index]:
        predicted = ", the predicted class; name another class with it" if label is None else ""
        raise DataError(f"explain: against must differ from the explained class, got {against!r}{predicted}")
    return Score(classes[index], index, against, classes.index(against))
