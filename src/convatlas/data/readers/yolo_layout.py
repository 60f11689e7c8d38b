"""What a data.yaml, or the folders of a data set of YOLO, state: images, classes and keypoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.data.class_names import class_name
from convatlas.data.readers.image_places import images_near
from convatlas.data.readers.json_values import shown
from convatlas.data.splits import split_name
from convatlas.errors import DataError, foreign_errors, listed

NAMES_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "names.txt")
"""Files with one class name for each line."""


@dataclass(frozen=True)
class YoloData:
    """What a data.yaml, or the folder, states.

    places: the folders or lists of images of each split. names: of the classes; empty if they are not stated.
    points, dimensions: of keypoints: their number, and 2 for x, y or 3 with the visibility; 0 without keypoints.
    labels: the folder of all label files; None if those of images/ are in labels/.
    """

    root: Path
    places: Mapping[str, Sequence[Path]]
    names: tuple[str, ...] = ()
    points: int = 0
    dimensions: int = 3
    flip_order: tuple[int, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    labels: Path | None = None


def yolo_yaml(folder: Path) -> Path | None:
    """Return the YAML file of a folder that names images and classes as ultralytics does; None if there is none."""
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")], key=lambda file: file.stem != "data"):
        text = file.read_text(encoding="utf-8", errors="replace") if file.stat().st_size < 2**22 else ""
        keys = {line.partition(":")[0].strip() for line in text.splitlines() if line[:1].strip() not in ("", "#")}
        if {"names", "nc"} & keys and {"train", "val", "path"} & keys:
            return file
    return None


def has_yolo_folders(folder: Path) -> bool:
    """Return whether a folder has images/ and labels/ with text files, folders of splits that have them, or only labels
    and a file of class names, as darknet has them.
    """
    if _names_file(folder) and _label_folder_alone(folder):
        return True
    roots = [folder]
    if not (folder / "images").is_dir():
        roots = [each for each in sorted(folder.iterdir()) if each.is_dir() and split_name(each.name)]
    return any(
        (root / "images").is_dir() and next((root / "labels").rglob("*.txt"), None) is not None for root in roots
    )


def read_yolo_folders(folder: Path) -> YoloData:
    """Return what a folder with images/ and labels/ states; each may contain a folder for each split."""
    names_file = _names_file(folder)
    names = _names_of_lines(names_file) if names_file else ()
    if names and (labels := _label_folder_alone(folder)):
        found = images_near(labels, (file.stem for file in labels.glob("*.txt")))
        places = {Path(file).parent for file in found.values()}
        return YoloData(folder, {"train": sorted(places)}, names, labels=labels)
    images = folder / "images"
    splits: dict[str, list[Path]] = {}
    for each in sorted(images.iterdir()) if images.is_dir() else ():
        if each.is_dir() and (split := split_name(each.name.rstrip("0123456789"))):
            splits.setdefault(split, []).append(each)
    if not splits and not images.is_dir():
        for each in sorted(folder.iterdir()):
            if (each / "images").is_dir() and (split := split_name(each.name)):
                splits.setdefault(split, []).append(each / "images")
    if "train" not in splits:
        splits = {"train": [images]}
    return YoloData(folder, splits, names)


def _names_file(folder: Path) -> Path | None:
    """Return the file of class names of a folder, or of its labels/."""
    candidates = (root / name for root in (folder, folder / "labels") for name in NAMES_FILES)
    return next((file for file in candidates if file.is_file()), next(folder.glob("*.names"), None))


def _label_folder_alone(folder: Path) -> Path | None:
    """Return the folder of label files that have no images/ beside them; None if there is none."""
    if (folder / "images").is_dir():
        return None
    return next((each for each in (folder / "obj_train_data", folder / "labels") if any(each.glob("*.txt"))), None)


def _names_of_lines(file: Path) -> tuple[str, ...]:
    with foreign_errors(file, DataError):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return _class_names(lines, file)


def _class_names(names: Sequence[Any], where: object) -> tuple[str, ...]:
    if wrong := [name for name in names if not isinstance(name, str | int) or not str(name).strip()]:
        raise DataError(f"{where}: names must be texts, got {shown(wrong[0])}")
    classes = tuple(class_name(str(name), where) for name in names)
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise DataError(f"{where}: two classes have the name {listed(twice)}; rename them", kind="duplicate_categories")
    return classes


def read_yolo_yaml(file: Path) -> YoloData:
    """Return what a data.yaml states, as ultralytics writes it."""
    import yaml

    with foreign_errors(file, DataError, "not a YAML file"):
        data = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    if not isinstance(data, dict):
        raise DataError(f"{file}: must have the fields path, train, val and names")
    names = data.get("names")
    if isinstance(names, dict):
        numbers = sorted(names) if all(type(key) is int for key in names) else []
        if numbers != list(range(len(names))):
            raise DataError(f"{file}: names must be numbered from 0 without gaps, got {listed(names)}")
        names = [names[number] for number in numbers]
    if not isinstance(names, list):
        raise DataError(f"{file}: names must be a list or a table of class names, got {shown(names)}")
    if "nc" in data and data["nc"] != len(names):
        raise DataError(f"{file}: nc must be the number of names, {len(names)}, got {shown(data['nc'])}")
    root, notes = _root(file, data.get("path"))
    places: dict[str, list[Path]] = {}
    for key, value in data.items():
        split = split_name(key) if isinstance(key, str) else ""
        if split and value:
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(each, str) for each in values):
                raise DataError(f"{file}: {key} must be a folder or a list of folders, got {shown(value)}")
            places[split] = [_place(file, root, each) for each in values]
    if "train" not in places:
        raise DataError(f"{file}: train must be the folder of the training images")
    shape = data.get("kpt_shape")
    if shape is not None and not (
        isinstance(shape, list) and len(shape) == 2 and all(type(each) is int for each in shape)
        and 0 < shape[0] < 10_000 and shape[1] in (2, 3)
    ):  # fmt: skip
        raise DataError(f"{file}: kpt_shape must be [number of keypoints, 2 or 3], got {shown(shape)}")
    points, dimensions = shape or (0, 3)
    order = data.get("flip_idx") or ()
    if order and not (
        isinstance(order, list) and all(type(each) is int for each in order) and sorted(order) == list(range(points))
    ):
        raise DataError(f"{file}: flip_idx must name each of {points} keypoints once, got {shown(order)}")
    return YoloData(
        root, places, _class_names(names, file), points, dimensions, tuple(order),
        _keypoint_names(data.get("kpt_names"), points), notes,
    )  # fmt: skip


def _keypoint_names(names: Any, points: int) -> tuple[str, ...]:
    """Return the names of keypoints, those of the first class; none if they are not `points` different texts."""
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if valid and len(set(names)) == len(names) == points else ()


def _root(file: Path, path: Any) -> tuple[Path, tuple[str, ...]]:
    """Return the folder that a data.yaml's paths start from: `path`, unless it does not exist."""
    if path is None:
        return file.parent, ()
    if not isinstance(path, str):
        raise DataError(f"{file}: path must be a folder, got {shown(path)}")
    root = file.parent / os.path.expanduser(path)
    if os.path.isdir(root):
        return root, ()
    return file.parent, (f"the path in {file.name}, {path}, does not exist: its folder is used",)


def _place(file: Path, root: Path, text: str) -> Path:
    """Return the folder or the list of images of a split; Roboflow writes ../train/images for train/images."""
    for base in (root, file.parent):
        for each in (text, text.removeprefix("../")):
            if os.path.exists(base / each):
                return base / each
    raise DataError(f"{file}: {root / text} does not exist; correct the path")
