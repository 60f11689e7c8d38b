"""Every network by name: one explicit dictionary."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import torch

from convatlas.core.cost import Cost, cost
from convatlas.core.network import Network
from convatlas.core.spec import SMALL, Record, Spec, diff
from convatlas.errors import SpecError, nearest
from convatlas.models.card import Family, Variant
from convatlas.models.families import (
    alexnet,
    boosted,
    capsnet,
    convnext,
    densenet,
    efficientnet,
    googlenet,
    inception,
    inception_resnet,
    lenet,
    mnasnet,
    mobilenet,
    nasnet,
    nin,
    preact_resnet,
    regnet,
    resnet,
    shufflenet,
    squeezenet,
    vgg,
    video_resnet,
    xception,
)

Stem = Literal["own", "small"]
"""A network's own first layers, or those for images of up to 64 pixels."""

_RESNETS = resnet.FAMILY.variants

FAMILIES: dict[str, Family] = {
    "lenet": lenet.FAMILY,
    "alexnet": alexnet.FAMILY,
    "nin": nin.FAMILY,
    "vgg": vgg.FAMILY,
    "googlenet": googlenet.FAMILY,
    "inception": inception.FAMILY,
    "inception_resnet": inception_resnet.FAMILY,
    "xception": xception.FAMILY,
    "resnet": resnet.FAMILY,
    "preact_resnet": preact_resnet.FAMILY,
    "densenet": densenet.FAMILY,
    "squeezenet": squeezenet.FAMILY,
    "mobilenet": mobilenet.FAMILY,
    "shufflenet": shufflenet.FAMILY,
    "mnasnet": mnasnet.FAMILY,
    "efficientnet": efficientnet.FAMILY,
    "regnet": regnet.FAMILY,
    "convnext": convnext.FAMILY,
    "nasnet": nasnet.FAMILY,
    "capsnet": capsnet.FAMILY,
    "boosted": boosted.family(boosted_resnet18=_RESNETS["resnet18"], boosted_cifar_resnet20=_RESNETS["cifar_resnet20"]),
    "video": video_resnet.FAMILY,
}
"""Family name -> its variants and key rules."""

CATALOG: dict[str, Variant] = {name: row for family in FAMILIES.values() for name, row in family.variants.items()}
"""Network name -> spec, card and defaults."""

SPEC_TYPES: dict[str, type[Record]] = {type(row.spec).__name__: type(row.spec) for row in CATALOG.values()}
"""Spec type name -> class, for reading specs back from plain data."""


def variant(name: str) -> Variant:
    """Return the catalog's row for `name`; raises SpecError that suggests the nearest name."""
    if name not in CATALOG:
        raise SpecError(f"unknown network {name!r}{nearest(name, CATALOG)}; `convatlas list` shows all")
    return CATALOG[name]


def resolve(network: str | Spec) -> tuple[str, Variant]:
    """Return a name and the defaults for a network: the catalog's row, or for a spec the row that is most like it."""
    if isinstance(network, str):
        return network, variant(network)
    alike = [name for name, row in CATALOG.items() if type(row.spec) is type(network)]
    if not alike:
        raise SpecError(f"a network is a name of the catalog or a spec of its families, not {type(network).__name__}")
    name = min(alike, key=lambda name: len(diff(CATALOG[name].spec, network)))
    row = CATALOG[name]
    if row.spec == network:
        return name, row
    if isinstance(network, boosted.Boosted):  # its images and classes are those of the network inside
        inner, own = resolve(network.backbone)
        return f"boosted-{inner}", boosted.row(own, network)
    return f"{name}-custom", dataclasses.replace(row, spec=network)


def spec(name: str) -> Spec:
    """Return the table of a network by name."""
    return variant(name).spec


def reads_clips(spec: Spec) -> bool:
    """Return whether the input has an axis of time."""
    return len(spec.input_shape(1)) != 3


@dataclass(frozen=True)
class Facts:
    """The exact numbers of a network of the catalog, for one image of its own size."""

    parameters: int
    macs: int
    activations: int
    receptive_field: int


FACTS = files("convatlas.models") / "catalog.csv"
"""The numbers of all networks as they were counted once, since counting all takes seconds; the tests count again."""


@cache
def _facts() -> dict[str, Facts]:
    with FACTS.open(encoding="utf-8") as table:
        return {row.pop("name"): Facts(**{k: int(v) for k, v in row.items()}) for row in csv.DictReader(table)}


def facts(name: str) -> Facts:
    """Return the numbers of a network: from the table, or counted now if it is not there yet."""
    variant(name)
    return _facts()[name] if name in _facts() else count(name)


def count(name: str) -> Facts:
    """Count the numbers of a network."""
    measured = measure(name)
    return Facts(measured.parameters, measured.macs, measured.activations, max(measured.receptive_field))


def measure(name: str, *, size: int | None = None, channels: int | None = None, classes: int | None = None) -> Cost:
    """Return the exact cost of a network of the catalog, at its own size or another one in pixels."""
    return cost(build_fresh(variant(name).spec, classes=classes, channels=channels, resolution=size, device="meta"))


def list_models(pattern: str = "*", *, family: str | None = None, max_params: float | None = None) -> list[str]:
    """Return the catalog's names, by year: those that match `pattern` (as files do: "resnet*"), of one family, or
    with at most `max_params` parameters.
    """
    if family is not None and family not in FAMILIES:
        raise SpecError(f"unknown family {family!r}{nearest(family, FAMILIES)}; known: {', '.join(FAMILIES)}")
    chosen = fnmatch.filter(CATALOG if family is None else FAMILIES[family].variants, pattern)
    if max_params is not None:
        chosen = [name for name in chosen if facts(name).parameters <= max_params]
    return sorted(chosen, key=lambda name: CATALOG[name].card.year)


def build_fresh(
    network: str | Spec,
    *,
    classes: int | None = None,
    channels: int | None = None,
    stem: Stem = "own",
    resolution: int | None = None,
    device: str | torch.device = "cpu",
) -> Network:
    """Grow a network from its name or its spec with fresh weights; see `convatlas.build`."""
    _, row = resolve(network)
    spec = adapted(row.spec, stem=stem, resolution=resolution)
    classes = row.classes if classes is None else classes
    channels = row.preprocessing.channels if channels is None else channels
    for what, value in (("classes", classes), ("channels", channels)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise SpecError(f"build: {what} is a whole number from 1 on, below 2^31, not {value!r}")
    # the context costs time at every call into torch
    with nullcontext() if torch.device(device) == torch.get_default_device() else torch.device(device):
        return spec.build(classes=classes, channels=channels)


def adapted(spec: Spec, *, stem: Stem = "own", resolution: int | None = None) -> Spec:
    """Return the spec with another resolution, or with a small stem (at 32 px where no resolution is given)."""
    if stem not in get_args(Stem):
        raise SpecError(f"build: stem is one of {', '.join(get_args(Stem))}, not {stem!r}")
    if stem == "small":
        return spec.small(resolution=SMALL if resolution is None else resolution)
    return spec.scaled(resolution=resolution) if resolution is not None else spec
