"""What competes in a search: candidates of the space, hand-made baselines, and pretrained networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from convatlas.core.record import Record, at_least
from convatlas.core.spec import Spec
from convatlas.errors import ConvatlasError, SearchError
from convatlas.models.catalog import CATALOG, SPEC_TYPES, Stem, adapted
from convatlas.search.catalog_networks import CatalogNetwork, is_small

BASELINES = ("lenet5_modern", "cifar_resnet20", "mobilenet_v2", "regnet_x_200mf", "efficientnet_b0")
"""The hand-made networks of every search, widened or narrowed to the limits."""

WIDTHS = tuple(2 ** (step / 4) for step in range(4, -17, -1))
"""Factors on the channels of a baseline, the largest first: from 2 to 1/16."""

Kind = Literal["candidate", "baseline", "pretrained", "supernet"]


@dataclass(frozen=True)
class Contestant(Record):
    """A network in a search.

    name: of its run directory. weights: what it starts from, a name or a file in the directory of the search; empty for
    random weights. seed: of its training. network, stem: of the catalog, whose row has the recipe and the
    preprocessing; empty for other specs. latency_s: if it was measured already. to_end: whether a finalist is
    trained to its end. A supernet does not compete, but some of its sub-networks do.
    """

    error = SearchError

    name: str
    kind: Kind
    spec: Spec
    weights: str = ""
    seed: Annotated[int, at_least(0)] = 0
    network: str = ""
    stem: Stem = "default"
    latency_s: float | None = None
    to_end: bool = False

    @classmethod
    def read(cls, plain: Any) -> Contestant:
        """Build the contestant that `to_plain` wrote."""
        return cls.from_plain(plain, where="contestant", known=SPEC_TYPES)


def candidate_name(codes: Mapping[str, int]) -> str:
    """Return the name of a candidate, which its choices determine."""
    return "candidate-" + hashlib.sha256(json.dumps(dict(codes), sort_keys=True).encode()).hexdigest()[:8]


def hand_baselines(
    *, resolution: int, small: bool, latency_of: Callable[[Spec], float | None],
    is_timely: Callable[[Spec], bool] = lambda spec: True,
) -> Iterator[Contestant]:  # fmt: skip
    """Yield the largest version of each of `BASELINES` that fits the limits, by its width.

    small: with the stems for images of up to 64 pixels. latency_of: seconds for one image; None above the limits.
    is_timely: whether a network learns enough in its time; others are not wider than in their papers.
    """
    for name in BASELINES:
        row = CATALOG[name]
        small_only = is_small(row.spec.resolution)
        if small_only and not small:
            continue
        try:
            spec = adapted(row.spec, stem="cifar" if small and not small_only else "default", resolution=resolution)
        except ConvatlasError:
            continue
        for width in WIDTHS:
            try:
                scaled = spec.scaled(width=width)
                seconds = latency_of(scaled) if width <= 1 or is_timely(scaled) else None
                if seconds is not None:
                    yield Contestant(name, "baseline", scaled, latency_s=seconds)
                    break
            except ConvatlasError:  # too deep for the resolution
                break


def largest_baselines(*, resolution: int, small: bool) -> list[Spec]:
    """Return the widest version of each of `BASELINES`, whatever the limits."""
    return [each.spec for each in hand_baselines(resolution=resolution, small=small, latency_of=lambda spec: 0.0)]


def catalog_contestants(networks: Sequence[CatalogNetwork]) -> list[Contestant]:
    """Return networks of the catalog as contestants."""
    return [
        Contestant(
            f"{each.name}-pretrained" if each.weights else each.name, "pretrained" if each.weights else "baseline",
            each.spec, each.weights, network=each.name, stem=each.stem, latency_s=each.latency_s,
        )
        for each in networks
    ]  # fmt: skip
