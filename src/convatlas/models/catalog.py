"""The catalog: every network by name, in one explicit dictionary, with lookup and building."""

from __future__ import annotations

import dataclasses
import fnmatch
from contextlib import nullcontext
from typing import Literal, get_args

import torch

from convatlas.core.cost import Cost, cost
from convatlas.core.network import Network
from convatlas.core.spec import SMALL, Row, Spec, diff
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
    inception_resnet,
    inception_v3,
    inception_v4,
    lenet,
    mnasnet,
    mobilenet,
    mobilenet_v3,
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
from convatlas.models.stats import CatalogStats, read_stats

Stem = Literal["default", "cifar"]
"""First layers: those of the paper, or the stem for images of up to 64 pixels, which keeps their size."""

MAX_COUNT = 2**31 - 1
"""The largest number of classes or channels."""

_RESNETS = resnet.FAMILY.variants

FAMILIES: dict[str, Family] = {
    "lenet": lenet.FAMILY,
    "alexnet": alexnet.FAMILY,
    "nin": nin.FAMILY,
    "vgg": vgg.FAMILY,
    "googlenet": googlenet.FAMILY,
    "inception_v3": inception_v3.FAMILY,
    "inception_v4": inception_v4.FAMILY,
    "inception_resnet": inception_resnet.FAMILY,
    "xception": xception.FAMILY,
    "resnet": resnet.FAMILY,
    "preact_resnet": preact_resnet.FAMILY,
    "densenet": densenet.FAMILY,
    "squeezenet": squeezenet.FAMILY,
    "mobilenet": mobilenet.FAMILY,
    "mobilenet_v3": mobilenet_v3.FAMILY,
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

SPEC_TYPES: dict[str, type[Row]] = {type(row.spec).__name__: type(row.spec) for row in CATALOG.values()}
"""Spec type name -> class, for reading specs back from plain data."""


def variant(name: str) -> Variant:
    """Return the catalog's row for `name`; raises SpecError that suggests the nearest name."""
    if name not in CATALOG:
        raise SpecError(f"unknown network {name!r}{nearest(name, CATALOG)}; `convatlas list` shows all")
    return CATALOG[name]


def spec(name: str) -> Spec:
    """Return the spec of a network by name."""
    return variant(name).spec


def resolve(network: str | Spec) -> tuple[str, Variant]:
    """Return the name and the defaults of a network.

    For a name: its row of the catalog. For a spec: the row of the same type that differs in the fewest cells, with this
    spec; unless they are equal, the name ends in "-custom".
    """
    if isinstance(network, str):
        return network, variant(network)
    _check_type(network)
    same_type = [name for name, row in CATALOG.items() if type(row.spec) is type(network)]
    name = min(same_type, key=lambda name: len(diff(CATALOG[name].spec, network)))
    row = CATALOG[name]
    if row.spec == network:
        return name, row
    if isinstance(network, boosted.Boosted):  # its images and classes are those of the backbone
        backbone_name, backbone = resolve(network.backbone)
        return f"boosted-{backbone_name}", boosted.row(backbone, network)
    return f"{name}-custom", dataclasses.replace(row, spec=network)


def _check_type(network: Spec) -> None:
    if SPEC_TYPES.get(type(network).__name__) is not type(network):
        raise SpecError(
            f"network must be a name of the catalog or a spec of one of its families, got {type(network).__name__}"
        )


def reads_clips(spec: Spec) -> bool:
    """Return whether the input has a time axis: (channels, frames, height, width)."""
    return len(spec.input_shape(1)) != 3


def list_models(pattern: str = "*", *, family: str | None = None, max_params: float | None = None) -> list[str]:
    """Return the catalog's names by year.

    pattern: a glob pattern, such as "resnet*". family: a key of `FAMILIES`. max_params: maximum number of parameters.
    """
    if family is not None and family not in FAMILIES:
        raise SpecError(f"unknown family {family!r}{nearest(family, FAMILIES)}; known: {', '.join(FAMILIES)}")
    names = fnmatch.filter(CATALOG if family is None else FAMILIES[family].variants, pattern)
    if max_params is not None:
        names = [name for name in names if stats(name).parameters <= max_params]
    return sorted(names, key=lambda name: CATALOG[name].card.year)


def stats(name: str) -> CatalogStats:
    """Return the stats of a network: from catalog.csv, or counted now if it has no row there yet."""
    variant(name)
    return read_stats()[name] if name in read_stats() else count_stats(name)


def count_stats(name: str) -> CatalogStats:
    """Count the stats of a network."""
    return CatalogStats.of(measure(name))


def measure(
    name: str, *, resolution: int | None = None, channels: int | None = None, classes: int | None = None
) -> Cost:
    """Return the exact cost of a network of the catalog, for one image of `resolution` pixels (default: its own)."""
    network = build_fresh(name, classes=classes, channels=channels, resolution=resolution, device="meta")
    return cost(network)


def build_fresh(
    network: str | Spec,
    *,
    classes: int | None = None,
    channels: int | None = None,
    stem: Stem = "default",
    resolution: int | None = None,
    device: str | torch.device = "cpu",
) -> Network:
    """Build a network from its name or its spec with freshly initialized weights; see `convatlas.build`."""
    table = spec(network) if isinstance(network, str) else network
    _check_type(table)
    if classes is None or channels is None:  # finding the defaults of a spec compares it with all rows of its type
        _, row = resolve(network)
        classes = row.classes if classes is None else classes
        channels = row.preprocessing.channels if channels is None else channels
    for name, value in (("classes", classes), ("channels", channels)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
            raise SpecError(f"build: {name} must be an integer in [1, {MAX_COUNT}], got {value!r}")
    table = adapted(table, stem=stem, resolution=resolution)
    # the context costs time at every call into torch
    with nullcontext() if torch.device(device) == torch.get_default_device() else torch.device(device):
        return table.build(classes=classes, channels=channels)


def adapted(spec: Spec, *, stem: Stem = "default", resolution: int | None = None) -> Spec:
    """Return the spec at another resolution in pixels, or with the stem for small images (default: at 32 px)."""
    if stem not in get_args(Stem):
        raise SpecError(f"build: stem must be one of {', '.join(get_args(Stem))}, got {stem!r}")
    if stem == "cifar":
        return spec.small(resolution=SMALL if resolution is None else resolution)
    return spec.scaled(resolution=resolution) if resolution is not None else spec
