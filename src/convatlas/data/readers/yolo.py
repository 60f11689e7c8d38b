"""YOLO text files: one line for each object, with coordinates as shares of the image."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotations import AnnotatedImage, Annotation, Annotations, Box
from convatlas.data.readers.image_files import images_in
from convatlas.data.readers.json_values import shown
from convatlas.data.readers.skeletons import flip_pairs_of
from convatlas.data.readers.yolo_layout import NAMES_FILES, YoloData, read_yolo_folders, read_yolo_yaml
from convatlas.errors import DataError, foreign_errors
from convatlas.tasks.detection.skeleton import PERSON, Skeleton, numbered_skeleton

MIN_SHARE, MAX_SHARE = -0.1, 1.1
"""Range of a coordinate as a share of the image's side; other numbers are pixels, or damaged."""


def read_yolo(location: Path, faults: FaultLog, problems: Problems) -> Annotations:
    """Read a data.yaml, or a folder with images/, labels/ and optionally classes.txt.

    The label file of images/a.jpg is labels/a.txt; an image without one has no objects. Label files without images/
    beside them are those of the images beside them, or of the nearest folder of images. A line contains a class and a
    box (center x, center y, width, height); or a class and the points of a polygon; or a class, a box and keypoints.
    """
    data = read_yolo_yaml(location) if location.is_file() else read_yolo_folders(location)
    images = {split: _read_split(data, split, places, faults, problems) for split, places in data.places.items()}
    notes = list(data.notes)
    names = data.names
    if not names:
        indices = {int(each.label) for part in images.values() for image in part for each in image.objects}
        names = tuple(map(str, range(max(indices, default=0) + 1)))
        notes.append("the names of the classes are not stated: they are numbers")
    skeleton = _skeleton(data, notes) if data.points else None
    return Annotations(images, names, skeleton, notes=notes)


def _skeleton(data: YoloData, notes: list[str]) -> Skeleton:
    points = data.points
    if points == PERSON.points and not data.keypoint_names and data.flip_order in ((), PERSON.flip_order):
        notes.append("17 keypoints without names are read as those of COCO's persons")
        return PERSON
    skeleton = Skeleton(data.keypoint_names) if data.keypoint_names else numbered_skeleton(points)
    pairs = tuple((i, other) for i, other in enumerate(data.flip_order) if i < other)
    return Skeleton(skeleton.names, (), pairs or flip_pairs_of(skeleton.names))


def _read_split(
    data: YoloData, split: str, places: Sequence[Path], faults: FaultLog, problems: Problems
) -> list[AnnotatedImage]:
    images: list[AnnotatedImage] = []
    invalid = problems.of("invalid_annotations")
    for place in places:
        files = images_in(place) if place.is_dir() else _listed(place, data.root)
        labels = {data.labels or _labels_folder(place)} - {place} if place.is_dir() else set()
        used = set()
        for file in files:
            label_file = data.labels / f"{file.stem}.txt" if data.labels else _label_file(file)
            name = os.path.relpath(label_file, data.root)
            image = AnnotatedImage(str(file), name, name, relative=True)
            images.append(image)
            if not label_file.is_file():
                faults.add("missing_label_files", os.path.relpath(file, data.root))
                continue
            used.add(label_file)
            with invalid:
                image.objects = _read_labels(label_file, name, data, faults, problems)
        for folder in labels:
            for label_file in sorted(folder.rglob("*.txt")) if folder.is_dir() else ():
                if label_file not in used and label_file.name not in NAMES_FILES:
                    name = os.path.relpath(label_file, data.root)
                    image_file = str(place / label_file.relative_to(folder).with_suffix(".jpg"))
                    images.append(AnnotatedImage(image_file, name, name, relative=True))
    return images


def _listed(file: Path, root: Path) -> list[Path]:
    """Return the images that a text file lists, relative to its folder or to that of the data."""
    with foreign_errors(file, DataError):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    places = [(file.parent / line.strip(), root / line.strip()) for line in lines if line.strip()]
    return [other if not os.path.exists(place) and os.path.exists(other) else place for place, other in places]


def _labels_folder(images: Path) -> Path:
    return Path(_swap(str(images / "x"))).parent


def _label_file(image: Path) -> Path:
    return Path(_swap(str(image))).with_suffix(".txt")


def _swap(path: str) -> str:
    """Replace the last images/ of a path by labels/, as ultralytics does."""
    parts = path.split(os.sep)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return os.sep.join(parts)


def _read_labels(file: Path, name: str, data: YoloData, faults: FaultLog, problems: Problems) -> list[Annotation]:
    with foreign_errors(name, DataError):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    objects = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}: line {number}"
        with problems.of("invalid_annotations"):
            values = _values(line, where)
            index, values = values[0], values[1:]
            if index < 0 or not float(index).is_integer() or index > 10**6:
                raise DataError(f"{where}: the class must be an integer >= 0, got {index:g}")
            if data.names and index >= len(data.names):
                faults.add("unknown_categories", f"{where}: class {index:g} of {len(data.names)}")
                continue
            label = data.names[int(index)] if data.names else str(int(index))
            objects.append(_read_object(values, label, number, where, data))
    return objects


def _values(line: str, where: str) -> list[float]:
    """Return the numbers of a line."""
    try:
        values = list(map(float, line.split()))
    except ValueError:
        raise DataError(f"{where}: must be numbers, got {shown(line.strip())}") from None
    if not all(map(math.isfinite, values)):
        raise DataError(f"{where}: must be finite numbers, got {shown(line.strip())}")
    return values


def _read_object(values: Sequence[float], label: str, number: int, where: str, data: YoloData) -> Annotation:
    wrong = [value for value in values[: 4 if data.points else None] if not MIN_SHARE <= value <= MAX_SHARE]
    if wrong:
        raise DataError(f"{where}: coordinates must be shares of the image in [0, 1], got {wrong[0]:g}")
    short = f"line {number}"
    if data.points:
        expected = 4 + data.points * data.dimensions
        if len(values) != expected:
            raise DataError(
                f"{where}: must have a class, a box and {data.points} keypoints of {data.dimensions} numbers, "
                f"{1 + expected} fields, got {1 + len(values)}"
            )
        return Annotation(short, label, _box(values), keypoints=_keypoints(values[4:], data.dimensions, where))
    if len(values) == 4:
        return Annotation(short, label, _box(values))
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        return Annotation(short, label, (min(xs), min(ys), max(xs), max(ys)), [list(values)])
    raise DataError(
        f"{where}: must have 5 fields (class, center x, center y, width, height), or a class and the points of a "
        f"polygon, got {1 + len(values)}"
    )


def _box(values: Sequence[float]) -> Box:
    x, y, width, height = values[:4]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _keypoints(values: Sequence[float], dimensions: int, where: str) -> list[tuple[float, float, float]]:
    """Return x, y, visibility of keypoints; without a visibility, (0, 0) is not labeled and others are visible."""
    points = []
    for i in range(0, len(values), dimensions):
        x, y = values[i : i + 2]
        visibility = values[i + 2] if dimensions == 3 else 2.0 * (x != 0 or y != 0)
        if visibility not in (0, 1, 2):
            raise DataError(f"{where}: visibility must be 0, 1 or 2, got {visibility:g}")
        if visibility and not (MIN_SHARE <= x <= MAX_SHARE and MIN_SHARE <= y <= MAX_SHARE):
            raise DataError(f"{where}: coordinates must be shares of the image in [0, 1], got ({x:g}, {y:g})")
        points.append((x, y, visibility))
    return points
