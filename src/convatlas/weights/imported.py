"""Weights from elsewhere, imported into the cache: a checkpoint gets a name and all that makes it a model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import ModelFileError, WeightsError, listed, nearest
from convatlas.models.catalog import CATALOG, build_fresh, canonical_name, variant
from convatlas.models.index import find_name
from convatlas.system.cache import cache_folder
from convatlas.system.files import sha256
from convatlas.tasks.known import task_for
from convatlas.weights.adapt import load_into
from convatlas.weights.class_list import IMAGENET, IMAGENET_CLASSES, read_class_names
from convatlas.weights.fetch import new_file
from convatlas.weights.files import split_key, weights_in
from convatlas.weights.modelfile import Header, read_header, write_model_file
from convatlas.weights.pretrained import percent_of
from convatlas.weights.read import Checkpoint, read_checkpoint
from convatlas.weights.training_record import TrainingRecord

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ImportedWeights:
    """Imported weights: a model file in the cache.

    name: "network@tag". header: of the model file, with class names, preprocessing, license and reported metrics.
    """

    name: str
    path: Path
    header: Header

    @property
    def network(self) -> str:
        """The name of the network in the catalog."""
        return self.name.partition("@")[0]

    def to_plain(self) -> dict[str, Any]:
        """Return the record as plain data, with the keys of published weights."""
        header = self.header
        metrics = header.training.reported_metrics
        return {
            "name": self.name, "network": self.network, "library": None, "tag": self.name.partition("@")[2],
            "source": header.training.source or None, "sha256": header.training.source_sha256 or None, "upstream": None,
            "cells": {}, "license": header.license or None, "recipe_url": header.training.recipe_url or None,
            "size_mib": self.path.stat().st_size / 2**20, "input_px": header.preprocessing.resolution,
            "top1_percent": percent_of(metrics, 1), "top5_percent": percent_of(metrics, 5),
            "reported_metrics": dict(metrics), "preprocessing": header.preprocessing.to_plain(),
            "num_classes": len(header.classes), "cached_file": str(self.path),
        }  # fmt: skip


def is_imported_name(name: str) -> bool:
    """Return whether a text has the form of the name of imported weights: network@tag, without a library."""
    network, at, tag = name.partition("@")
    return bool(at) and find_name(network, CATALOG) is not None and ":" not in tag


def find_imported(name: str) -> ImportedWeights:
    """Return imported weights by name, "network@tag"; raises WeightsError if there are none."""
    network, _, tag = name.partition("@")
    network = canonical_name(network)
    path = _path(network, tag) if _TAG.fullmatch(tag) else None
    if path is None or not path.is_file():
        known = [each.name for each in list_imported(network)]
        there = f"; imported are {listed(known)}{nearest(name, known)}" if known else ""
        raise WeightsError(
            f"{name}: no such imported weights{there}; convatlas weights import {network} FILE --tag TAG imports a "
            f"file, and published weights are {network}@LIBRARY:TAG"
        )
    return ImportedWeights(f"{network}@{tag}", path, read_header(path))


def list_imported(network: str | None = None) -> list[ImportedWeights]:
    """Return the imported weights of a network, or of all; files that are damaged are logged and left out."""
    imported = []
    network = None if network is None else canonical_name(network)
    for path in sorted(_folder().glob("*@*.safetensors")):
        name = path.name.removesuffix(".safetensors")
        if is_imported_name(name) and network in (None, name.partition("@")[0]):
            try:
                imported.append(ImportedWeights(name, path, read_header(path)))
            except ModelFileError as error:
                logging.getLogger("convatlas").warning("%s", error)
    return imported


def import_weights(
    network: str,
    file: str | Path,
    *,
    tag: str,
    classes: str | Path | Sequence[str] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    license: str = "",
    reported_metrics: Mapping[str, float] | None = None,
) -> ImportedWeights:
    """Import a checkpoint from elsewhere: "network@tag" is a model from then on, wherever one is taken.

    network: a name of the catalog. file: a checkpoint, as for `convatlas.build`. tag: letters, digits, ".", "_", "-";
    weights with the same name are replaced.
    classes: the class names in the order of the outputs, as many as the file has: the names, "imagenet",
        "kinetics400", a text file with one name a line, or a folder of class folders. By default those of ImageNet, if
        there are 1,000 outputs.
    preprocessing: of the images that the weights were trained on, or the fields of it that differ from that of the
        network, such as {"mean": (0.5,) * 3, "resize": 219, "crop": 192, "rotation": 180}.
    license, reported_metrics: what the publisher states, such as "Apache-2.0" and {"top1": 70.9}.
    Returns the entry of the cache. Raises WeightsError, in one line, for a file that does not fit.
    """
    network = canonical_name(network)
    row = variant(network)
    if not _TAG.fullmatch(tag):
        raise WeightsError(f"tag must be letters, digits and .-_ (at most 100), got {tag!r}")
    path, key = split_key(file)
    if path.is_dir():
        path = weights_in(path)
    stated = preprocessing.to_plain() if isinstance(preprocessing, Preprocessing) else dict(preprocessing or {})
    spec = row.spec
    if "crop" in stated:
        spec = spec.scaled(resolution=_preprocessing(row.preprocessing, stated).resolution)
    checkpoint = read_checkpoint(path, spec, name=network, row=row, key=key)
    steps = _preprocessing(checkpoint.preprocessing.for_channels(checkpoint.channels), stated)
    spec = checkpoint.spec_for(spec).scaled(resolution=steps.resolution)
    names = _class_names(classes, checkpoint)
    built = build_fresh(spec, classes=len(names), channels=checkpoint.channels)
    load_into(built, spec, checkpoint, num_classes=len(names))
    header = Header(
        name=f"{network}@{tag}", task=task_for(spec, names), spec=spec, preprocessing=steps, license=license,
        training=TrainingRecord(
            source=path.name, source_sha256=sha256(path), library=checkpoint.library,
            reported_metrics={name: float(value) for name, value in (reported_metrics or {}).items()},
        ),
    )  # fmt: skip
    with new_file(_path(network, tag)) as part:
        write_model_file(part, built, header)
    return find_imported(header.name)


def _preprocessing(base: Preprocessing, stated: Mapping[str, Any]) -> Preprocessing:
    """Return `base` with the stated fields; with another crop, the resize and the border keep their proportion."""
    if type(stated.get("crop")) is int and stated["crop"] > 0 and "pad" not in stated:
        pad = round(base.pad * stated["crop"] / base.crop)
        base = base.for_resolution(stated["crop"] + 2 * pad)
    changes = dict(stated)
    for name in ("mean", "std"):  # one number for all channels
        values = changes.get(name)
        if isinstance(values, int | float):
            changes[name] = (float(values),) * base.channels
        elif isinstance(values, list | tuple):
            changes[name] = tuple(values) * (base.channels if len(values) == 1 else 1)
    if type(changes.get("resize")) is int and "crop" not in stated and changes["resize"] < base.crop:
        raise WeightsError(f"resize must be >= the crop of {base.crop} px, got {changes['resize']}; state crop as well")
    return base.replaced(changes, where="preprocessing")


def _class_names(classes: str | Path | Sequence[str] | None, checkpoint: Checkpoint) -> tuple[str, ...]:
    if not checkpoint.num_classes:
        raise WeightsError(f"{checkpoint.note}; weights without a classifier can only start a training (fit --weights)")
    if classes is None and checkpoint.num_classes != IMAGENET_CLASSES:
        raise WeightsError(
            f"{checkpoint.where}: classes must be {checkpoint.num_classes:,} names, one for each output; state them "
            "with --classes (a text file with one name a line, a folder of class folders, or a,b,c)"
        )
    names = read_class_names(IMAGENET if classes is None else classes)
    if len(names) != checkpoint.num_classes:
        raise WeightsError(
            f"{checkpoint.where}: classes must be {checkpoint.num_classes:,} names, one for each output, got "
            f"{len(names):,}"
        )
    return names


def _folder() -> Path:
    return cache_folder() / "weights" / "imported"


def _path(network: str, tag: str) -> Path:
    return _folder() / f"{network}@{tag}.safetensors"
