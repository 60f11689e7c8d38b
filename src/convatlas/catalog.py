"""Every network by name: one explicit dictionary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch

from convatlas.card import Variant
from convatlas.costs import Cost, cost
from convatlas.draw import fields, layer_table, totals
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


def resolve(network: str | Spec) -> tuple[str, Variant]:
    """Return a name and the defaults for a network: the catalogue's row, or for a spec the row of its family."""
    if isinstance(network, str):
        return network, variant(network)
    for name, row in CATALOG.items():
        if type(row.spec) is type(network):
            return (name if row.spec == network else f"{name}-custom"), dataclasses.replace(row, spec=network)
    raise SpecError(f"a network is a name of the catalogue or a spec of its families, not {type(network).__name__}")


def spec(name: str) -> Spec:
    """Return the table of a network by name."""
    return variant(name).spec


def measure(name: str, *, size: int | None = None, channels: int | None = None, classes: int | None = None) -> Cost:
    """Return the exact cost of a network of the catalogue, at its own size or another one in pixels."""
    row = variant(name)
    table = row.spec.scaled(resolution=size) if size is not None else row.spec
    return cost(build(table, classes=classes, channels=channels, device="meta"))


def show(name: str, *, size: int | None = None, channels: int | None = None, classes: int | None = None) -> str:
    """Return a network's card, layer table and cost as text."""
    card, measured = variant(name).card, measure(name, size=size, channels=channels, classes=classes)
    told = {what: getattr(card, what) for what in ("paper", "innovation", "reported", "note")}
    head = f"{card.title} ({card.year}), {card.taxonomy}"
    return "\n".join([head, fields(told), "", layer_table(measured), "", fields(totals(measured))])


def names(*, family: str | None = None, max_params: float | None = None) -> list[str]:
    """Return the catalogue's names, by year, optionally of one family or with at most `max_params` parameters."""
    if family is not None and family not in FAMILIES:
        raise SpecError(f"unknown family {family!r}{nearest(family, FAMILIES)}; known: {', '.join(FAMILIES)}")
    chosen: Iterable[str] = FAMILIES[family] if family is not None else CATALOG
    if max_params is not None:
        chosen = [name for name in chosen if measure(name).parameters <= max_params]
    return sorted(chosen, key=lambda name: CATALOG[name].card.year)


def build(
    network: str | Spec,
    *,
    classes: int | None = None,
    channels: int | None = None,
    device: str | torch.device = "cpu",
) -> Network:
    """Grow a network from its name or its spec, with fresh weights drawn from torch's generator.

    classes: outputs; the paper's number where left out.
    channels: channels of the input image; the paper's number where left out.
    Returns a Network: (batch, channels, resolution, resolution) in, (batch, classes) out.
    """
    _, row = resolve(network)
    classes = row.classes if classes is None else classes
    channels = row.preprocessing.channels if channels is None else channels
    for what, value in (("classes", classes), ("channels", channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecError(f"build: {what} is a whole number from 1 on, not {value!r}")
    with torch.device(device):
        return row.spec.build(classes=classes, channels=channels)
