"""Pretrained weights that other libraries publish: names, addresses, preprocessing, class names, reported metrics.

The records are read from the libraries that are installed; none are copied into convatlas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch

from convatlas.core.preprocessing import Interpolation, Preprocessing
from convatlas.core.spec import Spec
from convatlas.core.table import Table
from convatlas.errors import WeightsError, nearest
from convatlas.models.card import LIBRARIES, Library, Variant
from convatlas.models.catalog import FAMILIES, canonical_name, variant
from convatlas.system.cache import cache_folder
from convatlas.system.extras import is_installed


@dataclass(frozen=True, repr=False)
class Weights:
    """One set of published weights.

    network: name of the network in the catalog. library, tag: the publisher of the weights, and their name there.
    upstream: name of the network there, such as "tf_efficientnet_b0".
    cells: the cells in which the spec of the weights differs from the catalog's, such as {"padding": "same"}.
    sha256_prefix: the published part of the file's SHA-256, often its first 8 digits; empty if none is published.
    license: empty if none is stated.
    reported_metrics: as measured by the publisher, such as {"ImageNet-1K acc@1": 80.858}.
    recipe_url: where the publisher describes the training. size_mib: of the file; None if unknown.
    """

    network: str
    library: Library
    tag: str
    url: str
    sha256_prefix: str
    filename: str
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    license: str = ""
    reported_metrics: Mapping[str, float] = field(default_factory=dict)
    recipe_url: str = ""
    upstream: str = ""
    size_mib: float | None = None
    cells: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The full name, such as "resnet50@torchvision:IMAGENET1K_V2"."""
        return f"{self.network}@{self.library}:{self.tag}"

    @property
    def spec(self) -> Spec:
        """The network that the weights belong to, at their resolution."""
        return variant(self.network).spec.replaced(self.cells).scaled(resolution=self.preprocessing.resolution)

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.preprocessing.channels

    @property
    def cache_path(self) -> Path:
        """Where the file is stored once it is downloaded or added."""
        return cache_folder() / "weights" / self.library / self.filename

    @property
    def cached_file(self) -> Path | None:
        """The file in convatlas' or torchvision's cache; None if it is in neither."""
        torchvision_path = Path(torch.hub.get_dir()) / "checkpoints" / self.filename
        return next((path for path in (self.cache_path, torchvision_path) if path.is_file()), None)

    def metrics_text(self) -> str:
        """Return the reported metrics as text."""
        return ", ".join(f"{metric} {value:g}" for metric, value in self.reported_metrics.items())

    def __repr__(self) -> str:
        facts = (f"{self.preprocessing.resolution} px", f"{len(self.classes):,} classes", self.metrics_text())
        return f"<Weights {self.name}: {', '.join(filter(None, facts))}>"

    def to_plain(self) -> dict[str, Any]:
        """Return the record as plain data; None for what is unknown. sha256: often only its first 8 digits."""
        return {
            "name": self.name, "network": self.network, "library": self.library, "tag": self.tag,
            "source": self.url or None, "sha256": self.sha256_prefix or None, "upstream": self.upstream or None,
            "cells": dict(self.cells), "license": self.license or None, "recipe_url": self.recipe_url or None,
            "size_mib": self.size_mib, "input_px": self.preprocessing.resolution,
            "top1_percent": percent_of(self.reported_metrics, 1), "top5_percent": percent_of(self.reported_metrics, 5),
            "reported_metrics": dict(self.reported_metrics), "preprocessing": self.preprocessing.to_plain(),
            "num_classes": len(self.classes), "cached_file": str(self.cached_file) if self.cached_file else None,
        }  # fmt: skip


def percent_of(reported_metrics: Mapping[str, float], k: int) -> float | None:
    """Return the top-k accuracy in percent among reported metrics; None if it is not reported."""
    names = (f"top{k}", f"top-{k}", f"acc@{k}")
    return next((value for name, value in reported_metrics.items() if name.lower().endswith(names)), None)


class WeightsList(list[Weights]):
    """Published weights; prints as a table."""

    def table(self) -> Table:
        """Return the table of names, resolutions, reported metrics and licenses."""
        rows = (
            (
                w.name,
                str(w.preprocessing.resolution),
                w.metrics_text(),
                w.license or "not stated",
                "yes" if w.cached_file else "",
            )
            for w in self
        )
        return Table(("weights", "px", "reported metrics", "license", "cached"), tuple(rows), right=frozenset({1}))

    def __repr__(self) -> str:
        return repr(self.table()) if self else "[]"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def has_cached_files(library: str) -> bool:
    """Return whether files of a library's weights may be in convatlas' or torchvision's cache."""
    folders = (cache_folder() / "weights" / library, Path(torch.hub.get_dir()) / "checkpoints")
    return any(next(folder.glob("*.*"), None) for folder in folders)


def list_weights(network: str, library: str | None = None) -> list[Weights]:
    """Return the published weights of a network of the catalog, each library's default first.

    library: only those of "torchvision" or "timm". Libraries that are not installed have none.
    Raises SpecError for an unknown network, WeightsError for a library that does not have the network.
    """
    network = canonical_name(network)
    sources = variant(network).sources
    libraries = list(dict.fromkeys(each for each, _ in sources))
    if library is not None and library not in libraries:
        publishers = f"published by {', '.join(libraries)}" if libraries else "no library publishes weights for it"
        raise WeightsError(f"{network}: {library} does not have this network; {publishers}")
    return WeightsList(
        weights for each, name in sources if library in (None, each) for weights in _RECORDS[each](network, name)
    )


def find_weights(name: str) -> Weights:
    """Return published weights by name, "network@library:tag"; the tag DEFAULT is the library's default."""
    network, at, source = name.partition("@")
    library, colon, tag = source.partition(":")
    if not (at and colon and tag):
        raise WeightsError(f"{name}: the name of published weights must be network@library:tag, got {name!r}")
    if library not in LIBRARIES:
        known = ", ".join(LIBRARIES)
        raise WeightsError(f"{name}: library must be one of {known}, got {library!r}{nearest(library, LIBRARIES)}")
    by_tag = {weights.tag: weights for weights in list_weights(network, library)}
    if tag == "DEFAULT" and by_tag:
        return next(iter(by_tag.values()))
    if not by_tag and library == "timm" and not is_installed("timm"):
        raise WeightsError(f"{name}: timm is not installed; pip install 'convatlas[hub]'")
    if tag not in by_tag:
        raise WeightsError(f"{name}: tag must be one of {', '.join(by_tag)}, got {tag!r}{nearest(tag, by_tag)}")
    return by_tag[tag]


def all_weights() -> Iterator[Weights]:
    """Yield the published weights of all networks of the catalog."""
    for family in FAMILIES.values():
        for name in family.variants:
            yield from list_weights(name)


@cache
def _read_torchvision(network: str, upstream_name: str) -> list[Weights]:
    """Read torchvision's records (torchvision.models.WeightsEnum) of one network."""
    import torchvision

    records = torchvision.models.get_model_weights(upstream_name)
    row = variant(network)
    weights = []
    for record in sorted(records, key=lambda record: record is not records.DEFAULT):
        meta = record.meta
        if not meta["categories"]:
            continue  # predictions need class names
        ours = row.preprocessing.is_whole or row.preprocessing.sampling
        preprocessing = row.preprocessing if ours else _preprocessing_of(record, row)
        # the first category of a detector is the background
        categories = meta["categories"][row.preprocessing.is_whole :]
        url = str(record.url)
        metrics = {
            f"{data} {name}": value for data, values in meta["_metrics"].items() for name, value in values.items()
        }
        weights.append(Weights(
            network, "torchvision", record.name, url, _sha256_prefix(url), url.rsplit("/", 1)[-1], preprocessing,
            number_duplicates(categories), meta.get("license", ""), metrics, meta.get("recipe", ""),
            upstream_name, meta.get("_file_size"),
        ))  # fmt: skip
    return weights


def _preprocessing_of(record: Any, row: Variant) -> Preprocessing:
    """Return the preprocessing of weights of torchvision for classification."""
    transforms = record.transforms()
    # modules with transform_input normalize once more, to mean and standard deviation 0.5
    mean, std = ((0.5,) * 3, (0.5,) * 3) if row.transforms_input else (tuple(transforms.mean), tuple(transforms.std))
    return Preprocessing(
        resize=transforms.resize_size[0], crop=transforms.crop_size[0],
        interpolation=cast(Interpolation, transforms.interpolation.value), mean=mean, std=std,
        antialias=bool(getattr(transforms, "antialias", True)),
    )  # fmt: skip


@cache
def _read_timm(network: str, upstream_name: str) -> list[Weights]:
    """Read timm's configurations of one network with the 1,000 classes of ImageNet; none if timm is not installed.

    The tag of a relative's weights begins with its name.
    """
    if not is_installed("timm"):
        return []
    import timm
    from timm.models import get_pretrained_cfg

    classes = imagenet_classes()
    default = get_pretrained_cfg(upstream_name)
    tags = [full_name.partition(".")[2] for full_name in timm.list_pretrained(f"{upstream_name}.*")]
    cells = variant(network).relatives.get(upstream_name)
    weights = []
    for tag in sorted(tags, key=lambda tag: default is None or tag != default.tag):
        full_name = f"{upstream_name}.{tag}"
        config = get_pretrained_cfg(full_name)
        if config is None or config.num_classes != 1000 or config.crop_mode != "center":
            continue
        resolution = config.input_size[-1]
        hub_id = f"{config.hf_hub_id}{full_name}" if str(config.hf_hub_id).endswith("/") else config.hf_hub_id
        # a file that was not made for timm has its author's tensor names; the copy on the hub has timm's names
        timm_url = config.url if "pytorch-image-models" in (config.url or "") or not config.hf_hub_id else ""
        url = timm_url or f"https://huggingface.co/{hub_id}/resolve/main/model.safetensors"
        preprocessing = Preprocessing(
            resize=int(resolution / config.crop_pct), crop=resolution, interpolation=config.interpolation,
            mean=tuple(config.mean), std=tuple(config.std),
        )  # fmt: skip
        filename = url.rsplit("/", 1)[-1] if timm_url else f"{full_name}.safetensors"
        weights.append(Weights(
            network, "timm", tag if cells is None else full_name, url, _sha256_prefix(timm_url), filename,
            preprocessing, classes, config.license or "", upstream=upstream_name, cells=cells or {},
        ))  # fmt: skip
    return weights


_RECORDS: dict[str, Callable[[str, str], list[Weights]]] = {"torchvision": _read_torchvision, "timm": _read_timm}


def _sha256_prefix(url: str) -> str:
    """Return the beginning of the SHA-256 in a file name such as resnet50-11ad3fa6.pth; empty if there is none."""
    match = re.search(r"-([0-9a-f]{8,})\.", url)
    return match[1] if match else ""


def imagenet_classes() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes in the order of torchvision and timm."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return number_duplicates(list(_IMAGENET_CATEGORIES))


def kinetics_classes() -> tuple[str, ...]:
    """Return the names of the 400 classes of Kinetics-400 in the order of torchvision."""
    from torchvision.models._meta import _KINETICS400_CATEGORIES

    return tuple(_KINETICS400_CATEGORIES)


def number_duplicates(names: list[str]) -> tuple[str, ...]:
    """Return class names with repeated ones numbered, "crane" and "crane (2)": ImageNet has two cranes and maillots."""
    counts: dict[str, int] = {}
    distinct = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        distinct.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(distinct)
