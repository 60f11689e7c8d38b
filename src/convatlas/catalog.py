"""Every network by name: one explicit dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from convatlas.card import Variant
from convatlas.errors import SpecError, nearest
from convatlas.families import lenet
from convatlas.joins import Network
from convatlas.specs import Record, Spec

FAMILIES: dict[str, Mapping[str, Variant]] = {"lenet": lenet.VARIANTS}
"""Family name -> its variants."""

CATALOG: dict[str, Variant] = {name: variant for variants in FAMILIES.values() for name, variant in variants.items()}
"""Network name -> spec, card and defaults."""

SPEC_TYPES: dict[str, type[Record]] = {kind.__name__: kind for kind in (*lenet.SPECS,)}
"""Spec type name -> class, for reading specs back from plain data."""


def variant(name: str) -> Variant:
    """Return the catalogue's row for `name`; raises SpecError that suggests the nearest name."""
    if name not in CATALOG:
        raise SpecError(f"unknown network {name!r}{nearest(name, CATALOG)}; `convatlas list` shows all")
    return CATALOG[name]


def spec(name: str) -> Spec:
    """Return the table of a network by name."""
    return variant(name).spec


def names(*, family: str | None = None, max_params: float | None = None) -> list[str]:
    """Return the catalogue's names, by year, optionally of one family or with at most `max_params` parameters."""
    from convatlas.costs import cost

    if family is not None and family not in FAMILIES:
        raise SpecError(f"unknown family {family!r}{nearest(family, FAMILIES)}; known: {', '.join(FAMILIES)}")
    chosen: Iterable[str] = FAMILIES[family] if family is not None else CATALOG
    if max_params is not None:
        chosen = [name for name in chosen if cost(build(name, device="meta")).parameters <= max_params]
    return sorted(chosen, key=lambda name: CATALOG[name].card.year)


def build(
    network: str | Spec, *, classes: int | None = None, channels: int = 1, device: str | torch.device = "cpu"
) -> Network:
    """Grow a network from its name or its spec, with fresh weights drawn from torch's generator.

    classes: outputs; the number of the variant's paper where left out (10 for a bare spec).
    channels: channels of the input image.
    Returns a Network: (batch, channels, resolution, resolution) in, (batch, classes) out.
    """
    row = variant(network) if isinstance(network, str) else None
    table = row.spec if row else network
    if not isinstance(table, Spec):
        raise SpecError(f"build takes a network's name or spec, not {type(network).__name__}")
    classes = classes if classes is not None else row.classes if row else 10
    for what, value in (("classes", classes), ("channels", channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecError(f"build: {what} is a whole number from 1 on, not {value!r}")
    with torch.device(device):
        return table.build(classes=classes, channels=channels)
