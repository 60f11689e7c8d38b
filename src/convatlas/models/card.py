"""What is known about a network besides its table: history, place in the taxonomy, defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.errors import SpecError
from convatlas.models.keys import KeyMapping

Taxonomy = Literal[
    "spatial exploitation", "depth", "multi-path", "width", "feature-map exploitation", "attention",
    "channel boosting", "efficiency", "search", "routing", "time",
]  # fmt: skip
"""What a network is known for: the classes of Khan et al. 2020 (arXiv 1901.06032), efficiency and search, and two more.

Routing is what capsules do; time is the third axis of networks for video.
"""

TAXONOMY: tuple[Taxonomy, ...] = get_args(Taxonomy)


@dataclass(frozen=True)
class Card:
    """The history of a network, in the words of its paper.

    taxonomy: what it is known for, the first first.
    reported: numbers quoted from the paper or the authors, with their conditions; never measured here.
    note: where our version had to choose, and what it chose.
    family: what this network and those of the same paper are called together; the title where it stands alone.
    """

    title: str
    year: int
    paper: str
    taxonomy: tuple[Taxonomy, ...]
    innovation: str
    reported: str = ""
    note: str = ""
    family: str = ""

    def __post_init__(self) -> None:
        if not self.family:
            object.__setattr__(self, "family", self.title)
        if not self.taxonomy or not set(self.taxonomy) <= set(TAXONOMY):
            raise SpecError(f"card {self.title}: taxonomy {self.taxonomy} is not among {', '.join(TAXONOMY)}")

    def of(self, title: str, reported: str = "", **changes: Any) -> Card:
        """Return the card of one variant of the family."""
        family = {"family": title if "paper" in changes else self.family} | changes
        return dataclasses.replace(self, title=title, reported=reported or self.reported, **family)


@dataclass(frozen=True)
class Variant:
    """One row of the catalog: a spec, its card, and the defaults it is used with.

    peers: what other libraries call this very network, by library; empty where they call it as we do.
    """

    spec: Spec
    card: Card
    preprocessing: Preprocessing
    classes: int = 1000
    recipe: str = "default"
    peers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """The variants of one file by name, and how other libraries call their tensors."""

    variants: Mapping[str, Variant]
    key_mappings: Mapping[str, KeyMapping] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, row in self.variants.items():
            peers = {library: peer or name for library, peer in row.peers.items()}
            self.variants[name] = dataclasses.replace(row, peers=peers)  # type: ignore[index]


def imagenet(
    spec: Spec, card: Card, *libraries: str, share: float = 0.875, half: bool = False, **peers: str
) -> Variant:
    """Return a row with ImageNet's 1,000 classes: RGB, the central `share` of the short side cut out.

    libraries: those that have this network under our name; peers: library=name, where it has another one there.
    half: values are scaled to [-1, 1], as Google's networks have it, and not by ImageNet's mean and deviation.
    """
    mean, std = ((0.5,) * 3,) * 2 if half else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    size = spec.resolution
    preprocessing = Preprocessing(resize=max(size, round(size / share)), crop=size, mean=mean, std=std)
    return Variant(spec, card, preprocessing, peers=dict.fromkeys(libraries, "") | peers)
