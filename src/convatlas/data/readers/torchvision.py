"""Data sets of torchvision, by name: arrays or image files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convatlas.core.problems import NO_DATA
from convatlas.data.class_names import class_name
from convatlas.data.readers.arrays import array_source
from convatlas.data.readers.files import file_source
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.errors import DataError, brief
from convatlas.system.cache import cache_folder
from convatlas.system.download import OFFLINE, offline
from convatlas.system.progress import Progress
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Targets


@dataclass(frozen=True)
class _Set:
    """A data set of torchvision.

    kind: the name of its class. splits: our split -> arguments for torchvision's. files: whether it consists of image
        files. folder: the subfolder by which it is recognized; "" if it has none of its own.
    """

    kind: str
    splits: Mapping[str, Mapping[str, Any]]
    files: bool = True
    folder: str = ""


def _split(**named: str) -> dict[str, dict[str, Any]]:
    return {ours: {"split": theirs} for ours, theirs in named.items()}


_HALVES = {"train": {"train": True}, "test": {"train": False}}

SETS: dict[str, _Set] = {
    "cifar10": _Set("CIFAR10", _HALVES, files=False, folder="cifar-10-batches-py"),
    "cifar100": _Set("CIFAR100", _HALVES, files=False, folder="cifar-100-python"),
    "kmnist": _Set("KMNIST", _HALVES, files=False),
    "usps": _Set("USPS", _HALVES, files=False),
    "stl10": _Set("STL10", _split(train="train", test="test"), files=False, folder="stl10_binary"),
    "svhn": _Set("SVHN", _split(train="train", test="test"), files=False),
    "flowers102": _Set("Flowers102", _split(train="train", val="val", test="test"), folder="flowers-102"),
    "oxford_iiit_pet": _Set("OxfordIIITPet", _split(train="trainval", test="test"), folder="oxford-iiit-pet"),
    "food101": _Set("Food101", _split(train="train", test="test"), folder="food-101"),
    "dtd": _Set("DTD", _split(train="train", val="val", test="test"), folder="dtd"),
    "fgvc_aircraft": _Set(
        "FGVCAircraft", _split(train="train", val="val", test="test"), folder="fgvc-aircraft-2013b"
    ),
    "gtsrb": _Set("GTSRB", _split(train="train", test="test"), folder="gtsrb"),
    "country211": _Set("Country211", _split(train="train", val="valid", test="test"), folder="country211"),
    "eurosat": _Set("EuroSAT", {"train": {}}, folder="eurosat"),
    "imagenette": _Set("Imagenette", _split(train="train", val="val"), folder="imagenette2"),
    "sun397": _Set("SUN397", {"train": {}}, folder="SUN397"),
}  # fmt: skip
"""The data sets by name."""

FOLDERS = {known.folder: name for name, known in SETS.items() if known.folder}
"""Subfolder by which a data set is recognized -> its name."""


def read_torchvision(
    name: str, root: Path | None = None, *, download: bool = False, progress: Progress | None = None
) -> Source:
    """Read a data set of torchvision from `root`, or from the cache; `download` allows to download it there."""
    data_set, folder = SETS[name], root or cache_folder() / name
    if download and offline():
        raise DataError(f"{name}: {OFFLINE}", kind=NO_DATA)
    try:
        from torchvision import datasets

        if download:
            folder.mkdir(parents=True, exist_ok=True)
        kind = getattr(datasets, data_set.kind)
        parts = {split: kind(folder, download=download, **options) for split, options in data_set.splits.items()}
    except Exception as error:  # torchvision unpickles, unpacks and parses files of many kinds
        # torchvision advises `download=True`, which is not an argument here
        reason = "" if "download=True" in str(error) else f": {brief(error)}"
        command = f"convatlas data check {name} --download"
        fix = "" if download else f"; download it with `{command}`, or give the folder that contains it"
        raise DataError(f"{name} is missing or incomplete in {folder}{reason}{fix}", kind=NO_DATA) from error
    location = name if root is None else str(folder.resolve())
    if data_set.files:
        return _file_set(name, location, parts, progress)
    splits = {}
    for split, part in parts.items():
        pixels = np.asarray(part.data)
        labels = np.asarray(part.labels if name in ("stl10", "svhn") else part.targets)
        splits[split] = (pixels.transpose(0, 2, 3, 1) if name in ("stl10", "svhn") else pixels, labels)
    classes = tuple(map(str, getattr(parts["train"], "classes", range(10))))
    return array_source(name, location, splits, folder, classes)


def _file_set(name: str, location: str, parts: Mapping[str, Any], progress: Progress | None) -> Source:
    """Return a data set of torchvision whose images are files."""
    pairs = {split: _pairs(part) for split, part in parts.items()}
    count = 1 + max(label for part in pairs.values() for _, label in part)
    names = getattr(parts["train"], "classes", None) or range(count)
    classes = tuple(class_name(each[0] if isinstance(each, tuple) else str(each), location) for each in names)
    splits = {
        split: Samples([path for path, _ in part], Targets(label=torch.tensor([label for _, label in part])))
        for split, part in pairs.items()
    }
    return file_source(name, location, Classification(classes), splits, progress=progress)


def _pairs(part: Any) -> list[tuple[str, int]]:
    """Return (file, class number) of the images of a split; their attributes differ between data sets."""
    for name in ("samples", "_samples"):
        if hasattr(part, name):
            return [(str(path), int(label)) for path, label in getattr(part, name)]
    files = part._image_files if hasattr(part, "_image_files") else part._images
    return [(str(path), int(label)) for path, label in zip(files, part._labels, strict=True)]
