"""What is known about a network besides its table: history, place in the taxonomy, defaults."""

from __future__ import annotations

from dataclasses import dataclass

from convatlas.preprocessing import Preprocessing
from convatlas.specs import Spec


@dataclass(frozen=True)
class Card:
    """The history of a network, in the words of its paper.

    reported: numbers quoted from the paper, with their conditions; never measured here.
    note: where our version had to choose, and what it chose.
    """

    title: str
    year: int
    paper: str
    taxonomy: str
    innovation: str
    reported: str
    note: str = ""


@dataclass(frozen=True)
class Variant:
    """One row of the catalogue: a spec, its card, and the defaults it is used with."""

    spec: Spec
    card: Card
    preprocessing: Preprocessing
    classes: int
    recipe: str = "default"
