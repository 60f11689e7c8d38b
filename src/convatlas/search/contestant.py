"""What competes in a search: candidates of the space, hand-made baselines, and pretrained networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from convatlas.core.record import Record, at_least
from convatlas.core.spec import Spec
from convatlas.data.source import Source
from convatlas.errors import ConvatlasError, SearchError
from convatlas.models.catalog import CATALOG, SPEC_TYPES, adapted
from convatlas.train.candidates import Budget, Candidate
from convatlas.train.select_model import MAX_SMALL_SIDE, choose_finalists, find_candidates
from convatlas.train.settings import DataOptions

BASELINES = ("lenet5_modern", "cifar_resnet20", "mobilenet_v2", "regnet_x_200mf", "efficientnet_b0")
"""The hand-made networks of every search, widened or narrowed to the limits."""

WIDTHS = tuple(2 ** (step / 4) for step in range(4, -17, -1))
"""Factors on the channels of a baseline, the largest first: from 2 to 1/16."""

Kind = Literal["candidate", "baseline", "pretrained"]


@dataclass(frozen=True)
class Contestant(Record):
    """A network in a search.

    name: of its run directory. weights: what it starts from; empty for random weights. seed: of its training.
    """

    error = SearchError

    name: str
    kind: Kind
    spec: Spec
    weights: str = ""
    seed: Annotated[int, at_least(0)] = 0

    @classmethod
    def read(cls, plain: Any) -> Contestant:
        """Build the contestant that `to_plain` wrote."""
        return cls.from_plain(plain, where="contestant", known=SPEC_TYPES)


def hand_baselines(
    *, resolution: int, small: bool, fits: Callable[[Spec], bool]
) -> Iterator[Contestant]:  # fmt: skip
    """Yield the largest version of each of `BASELINES` that fits the limits, by its width.

    small: with the stems for images of up to 64 pixels. fits: whether a network is within the limits.
    """
    for name in BASELINES:
        row = CATALOG[name]
        small_only = row.spec.resolution <= MAX_SMALL_SIDE
        if small_only and not small:
            continue
        try:
            spec = adapted(row.spec, stem="cifar" if small and not small_only else "default", resolution=resolution)
        except ConvatlasError:
            continue
        for width in WIDTHS:
            try:
                scaled = spec.scaled(width=width)
                if fits(scaled):
                    yield Contestant(name, "baseline", scaled)
                    break
            except ConvatlasError:  # too deep for the resolution
                break


def largest_baselines(*, resolution: int, small: bool) -> list[Spec]:
    """Return the widest version of each of `BASELINES`, whatever the limits."""
    return [each.spec for each in hand_baselines(resolution=resolution, small=small, fits=lambda spec: True)]


def pretrained_networks(
    source: Source, options: DataOptions, *, channels: int, fits: Callable[[Spec], bool]
) -> list[Contestant]:  # fmt: skip
    """Return networks of the catalog within the limits whose published weights are in the cache.

    The largest of each family, at most eight: those with the best reported accuracy.
    """
    found = find_candidates(source, channels, Budget(params=1e12), options, "auto")
    within: list[Candidate] = [each for each in found if each.weights and fits(each.spec)]
    return [
        Contestant(f"{each.name}-pretrained", "pretrained", each.spec, each.weights)
        for each in choose_finalists(within)
    ]


def is_small(resolution: int) -> bool:
    """Return whether images of this many pixels get the stems for small images."""
    return resolution <= MAX_SMALL_SIDE
