"""Class names for weights from elsewhere: from a text file, a folder of class folders, or a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convatlas.data.class_names import class_name
from convatlas.errors import WeightsError, listed
from convatlas.weights.pretrained import imagenet_classes, kinetics_classes

IMAGENET, IMAGENET_CLASSES = "imagenet", 1000
"""Stands for the 1,000 names of ImageNet, in the order of torchvision and timm; and their number."""

KNOWN = {IMAGENET: imagenet_classes, "kinetics400": kinetics_classes}
"""Data set -> the names of its classes, in the order of torchvision."""

MAX_BYTES = 2**24
"""Maximum size of a file of class names."""


def read_class_names(classes: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Return class names in the order of the outputs.

    classes: "imagenet" or "kinetics400"; a text file with one name a line; a folder, whose folders are the classes in
        alphabetical order; "a,b,c"; or the names themselves. Raises WeightsError unless all names are different.
    """
    where, names = _read(classes)
    names = [class_name(name, where) for name in names]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice or not names or not all(names):
        got = f"{listed(twice, 5)} twice" if twice else "an empty name" if names else "none"
        raise WeightsError(f"{where}: class names must be different names, got {got}")
    return tuple(names)


def _read(classes: str | Path | Sequence[str]) -> tuple[object, list[str]]:
    if not isinstance(classes, str | Path):
        return "classes", list(classes)
    if classes in KNOWN:
        return classes, list(KNOWN[str(classes)]())
    path = Path(classes).expanduser()
    if path.is_dir():
        return path, sorted(each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    if path.is_file():
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(f"{path}: must be a text file with one class name a line")
        try:
            return path, path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise WeightsError(f"{path}: must be UTF-8 text with one class name a line") from error
    if "," in str(classes):
        return "classes", str(classes).split(",")
    raise WeightsError(
        f"classes: must be {', '.join(KNOWN)}, a text file with one name a line, a folder of class folders, or a,b,c, "
        f"got {classes}"
    )
