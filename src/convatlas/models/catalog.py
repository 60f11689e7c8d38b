"""The catalog: every network by name, in one explicit dictionary, with lookup and building."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Literal, get_args

import torch

from convatlas.core.cost import Cost, cost
from convatlas.core.network import Network
from convatlas.core.spec import SMALL, Row, Spec, cells, diff
from convatlas.errors import SpecError
from convatlas.models.card import Family, Variant
from convatlas.models.detection import variants
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
    inflated,
    lenet,
    mnasnet,
    mobilenet,
    mobilenet_v3,
    nasnet,
    nin,
    preact_resnet,
    rcnn,
    regnet,
    resnet,
    shufflenet,
    squeezenet,
    vgg,
    video_resnet,
    xception,
)
from convatlas.models.headless import remove_classifier
from convatlas.models.index import Entry, NetworkFacts, find_name, is_current, read_entries, unknown_network
from convatlas.models.own_module import OwnModule, row_of

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
    "inflated": inflated.family(
        googlenet=googlenet.FAMILY.variants["googlenet"], mobilenet_v2=mobilenet.FAMILY.variants["mobilenet_v2"]
    ),
}
"""Family name -> its variants and key rules."""
FAMILIES["rcnn"] = variants.family(FAMILIES)

CATALOG: dict[str, Variant] = {name: row for family in FAMILIES.values() for name, row in family.variants.items()}
"""Network name -> spec, card and defaults."""

SPEC_TYPES: dict[str, type[Row]] = {
    kind.__name__: kind for kind in (*(type(row.spec) for row in CATALOG.values()), OwnModule)
}
"""Spec type name -> class, for reading specs back from plain data."""


def variant(name: str) -> Variant:
    """Return the catalog's row for `name`; raises SpecError that suggests the nearest name."""
    return CATALOG[canonical_name(name)]


def canonical_name(name: str) -> str:
    """Return a network's name as the catalog writes it, resnet50 for "ResNet-50"; raises SpecError for no network."""
    found = name if isinstance(name, str) and name in CATALOG else find_name(name, CATALOG)
    if found is None:
        raise unknown_network(name, CATALOG)
    return found


def spec(name: str) -> Spec:
    """Return the spec of a network by name."""
    return variant(name).spec


def resolve(network: str | Spec) -> tuple[str, Variant]:
    """Return the name and the defaults of a network.

    For a name: its row of the catalog. For a spec: the row of the same type that differs in the fewest cells, with this
    spec; unless they are equal, the name ends in "-custom". For what is recorded of an own module: its class name.
    """
    if isinstance(network, str):
        name = canonical_name(network)
        return name, CATALOG[name]
    _check_type(network)
    if isinstance(network, OwnModule):
        return network.class_name, row_of(network)
    same_type = [name for name, row in CATALOG.items() if type(row.spec) is type(network)]
    name = min(same_type, key=lambda name: len(diff(CATALOG[name].spec, network)))
    row = CATALOG[name]
    if row.spec == network:
        return name, row
    if isinstance(network, rcnn.FasterRCNN):
        body_name, body = resolve(network.body)
        kind = next(kind for kind, each in rcnn.KINDS.items() if each is type(network))
        return f"{kind}-{body_name}", variants.custom_row(network, body.card.title)
    if isinstance(network, inflated.Inflated):
        body_name, body = resolve(network.body)
        return f"inflated-{body_name}", inflated.row(body, network)
    if isinstance(network, boosted.Boosted):  # its images and classes are those of the backbone
        backbone_name, backbone = resolve(network.backbone)
        return f"boosted-{backbone_name}", boosted.row(backbone, network)
    return f"{name}-custom", dataclasses.replace(
        row,
        spec=network,
        card=dataclasses.replace(row.card, reported=None),  # accuracies are those of the paper's
    )


def _check_type(network: Spec) -> None:
    if SPEC_TYPES.get(type(network).__name__) is not type(network):
        found, fix = type(network).__name__, ""
        if isinstance(network, Spec):
            fix = "; ca.register(name, spec) adds a spec of one's own"
        elif isinstance(network, type):
            found, fix = f"the class {network.__name__}", f"; create one, {network.__name__}(...)"
        raise SpecError(f"network must be a name of the catalog or a spec of one of its families, got {found}{fix}")


def unknown_spec_hint(plain: object) -> str:
    """Return how the spec in a file's plain data can be read, if its type is not known; else an empty text."""
    spec = plain.get("spec") if isinstance(plain, Mapping) else None
    kind = spec.get("type") if isinstance(spec, Mapping) else None
    if not isinstance(kind, str) or kind in SPEC_TYPES or not kind.isidentifier():
        return ""
    return f"; a spec class of one's own is known after ca.register(name, {kind}(...))"


def stats(name: str) -> NetworkFacts:
    """Return the facts of a network."""
    return find_entry(name).facts


def find_entry(name: str) -> Entry:
    """Return the entry of a network: from the index, or counted now if that lacks it or is not up to date."""
    name = canonical_name(name)
    known = read_entries().get(name) if is_current() else None
    return known or count_entry(name, CATALOG[name])


def count_entry(name: str, row: Variant, *, resolution: int | None = None) -> Entry:
    """Count a network: the entry of a row under this name, at its own resolution unless one is given, in pixels."""
    row = dataclasses.replace(row, spec=row.spec.scaled(resolution=resolution))
    network = build_fresh(row.spec, classes=row.classes, channels=row.preprocessing.channels, device="meta")
    return entry_of(name, row, cost(network))


def entry_of(name: str, row: Variant, measured: Cost) -> Entry:
    """Return the entry of a row whose cost is known; its family is empty for a network that is in none."""
    family = next((key for key, family in FAMILIES.items() if name in family.variants), "")
    spec_cells = {path: value for path, value, _ in cells(row.spec)}
    return Entry(NetworkFacts.of(name, row, measured), spec_cells, family=family)


def measure(
    network: str | Spec,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    stem: Stem = "default",
) -> Cost:
    """Return the exact cost of a network, for one image of `resolution` pixels (default: its own)."""
    built = build_fresh(network, classes=classes, channels=channels, stem=stem, resolution=resolution, device="meta")
    return cost(built)


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
    for name, value, least in (("classes", classes, 0), ("channels", channels, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_COUNT:
            raise SpecError(f"build: {name} must be an integer in [{least}, {MAX_COUNT}], got {value!r}")
    if classes == 0 and table.predicts != "classes":
        raise SpecError("build: classes must be >= 1 for a detector, got 0")
    table = adapted(table, stem=stem, resolution=resolution)
    # the context costs time at every call into torch
    with nullcontext() if torch.device(device) == torch.get_default_device() else torch.device(device):
        built = table.build(classes=classes or 1, channels=channels)
    if classes == 0:
        with torch.device("meta"):
            other = table.build(classes=2, channels=channels).state_dict()
        remove_classifier(built, other)
    built.spec = table
    return built


def adapted(
    spec: Spec, *, stem: Stem = "default", resolution: int | None = None, frames: int | None = None
) -> Spec:  # fmt: skip
    """Return the spec at another resolution in pixels, or with the stem for small images (default: at 32 px).

    frames: number of frames of a clip, of networks that read clips.
    """
    if frames is not None:
        if spec.reads != "clips":
            raise SpecError(f"build: frames must not be given, because {type(spec).__name__} reads {spec.reads}")
        spec = spec.replaced({"frames": frames})
    if stem not in get_args(Stem):
        raise SpecError(f"build: stem must be one of {', '.join(get_args(Stem))}, got {stem!r}")
    if stem == "cifar":
        return spec.small(resolution=SMALL if resolution is None else resolution)
    return spec.scaled(resolution=resolution) if resolution is not None else spec
