"""VGG Image Annotator, versions 1 and 2: JSON with the regions of each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotations import ONE_CLASS, AnnotatedImage, Annotation, Annotations
from convatlas.data.class_names import class_name
from convatlas.data.readers.image_places import ImagePlaces
from convatlas.data.readers.json_values import mapping, number, numbers, read_json, shown, text
from convatlas.data.readers.shapes import ellipse, flat, polygon_annotation
from convatlas.errors import DataError, listed

CLASS_ATTRIBUTES = ("class", "label", "category", "name", "type", "object", "species")
"""Attributes of regions that contain the class, by priority, if regions have more than one attribute."""


def read_via(
    location: Path, files: Mapping[str, Path], faults: FaultLog, problems: Problems, notes: Sequence[str] = ()
) -> Annotations:
    """Read one VIA file for each split; the images are beside it or in a folder near it.

    Polygons, rectangles, circles and ellipses are objects; points and lines are not. The class is the value of an
    attribute of the regions; without attributes all objects are of one class.
    """
    entries = {split: _entries(file, location) for split, file in files.items()}
    attributes = Counter(
        key
        for part in entries.values()
        for _, entry, _ in part
        for _, region in _regions(entry, "")
        if isinstance(region, dict) and isinstance(region.get("region_attributes"), dict)
        for key, value in region["region_attributes"].items()
        if _class_of(value)
    )
    attribute, remarks = _class_attribute(attributes, list(notes))
    images = {}
    lines = 0
    for split, part in entries.items():
        places = ImagePlaces(files[split], [str(entry.get("filename")) for _, entry, _ in part])
        by_file: dict[str, AnnotatedImage] = {}
        for where, entry, name in part:
            with problems.of("invalid_annotations"):
                filename = text(entry.get("filename"), "filename", where)
                file = places.find(filename)
                if file in by_file:
                    faults.add("duplicate_images", f"{where}: {filename}")
                image = by_file.setdefault(file, AnnotatedImage(file, where, name))
                for key, region in _regions(entry, where):
                    short = f"{filename} region {key}"
                    with problems.of("invalid_annotations"):
                        each = _read_region(region, f"{name}: {short}", short, attribute)
                        lines += each is None
                        image.objects += [each] if each else []
        images[split] = list(by_file.values())
    if lines:
        remarks.append(f"{lines:,} points and lines are not objects and are not used")
    classes = sorted({each.label for part in images.values() for image in part for each in image.objects})
    return Annotations(images, tuple(classes), notes=remarks)


def _entries(file: Path, location: Path) -> list[tuple[str, Mapping[str, Any], str]]:
    """Return (where, entry, name of the file) of each image."""
    name = str(file.relative_to(location)) if location in file.parents else file.name
    data = mapping(read_json(file), file)
    data = mapping(data.get("_via_img_metadata", data), f"{file}: _via_img_metadata")
    found: list[tuple[str, Mapping[str, Any], str]] = []
    for key, entry in data.items():
        if not isinstance(entry, dict) or "regions" not in entry:
            raise DataError(f"{file}: {shown(key)} must be an image with filename and regions, as VIA writes it")
        found.append((f"{name}: {entry.get('filename', key)}", entry, name))
    return found


def _regions(entry: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
    """Return (key, region) of each region: VIA 1 writes a table, VIA 2 a list."""
    regions = entry["regions"]
    if isinstance(regions, dict):
        return list(regions.items())
    if not isinstance(regions, list):
        if not where:
            return []
        raise DataError(f"{where}: regions must be a list or a table, got {shown(regions)}")
    return [(str(i), region) for i, region in enumerate(regions)]


def _class_attribute(attributes: Counter[str], notes: list[str]) -> tuple[str, list[str]]:
    """Return the attribute that contains the class, "" without one, and the notes with a line about it."""
    if not attributes:
        return "", [*notes, f"regions have no attributes: all objects are of one class, {ONE_CLASS}"]
    ranked = sorted(attributes, key=lambda key: (key.lower() not in CLASS_ATTRIBUTES, -attributes[key]))
    if len(ranked) > 1:
        notes.append(f"the class is the attribute {ranked[0]} of regions, not {listed(ranked[1:])}")
    return ranked[0], notes


def _class_of(value: Any) -> str:
    """Return the class in the value of an attribute: a text, or the first option of checkboxes that is set."""
    if isinstance(value, dict):
        return next((str(key) for key, chosen in value.items() if chosen), "")
    return value.strip() if isinstance(value, str) else ""


def _read_region(region: Any, where: str, short: str, attribute: str) -> Annotation | None:
    """Return the object of a region; None for points and lines."""
    region = mapping(region, where)
    shape = mapping(region.get("shape_attributes"), f"{where}: shape_attributes")
    label = ONE_CLASS
    if attribute:
        values = mapping(region.get("region_attributes"), f"{where}: region_attributes")
        label = class_name(_class_of(values.get(attribute)), where)
        if not label:
            raise DataError(f"{where}: has no {attribute}, which is the class of other regions")
    kind = shape.get("name")

    def field(name: str) -> float:
        return number(shape.get(name), name, where)

    if kind in ("polygon", "polyline"):
        xs = numbers(shape.get("all_points_x"), "all_points_x", where)
        ys = numbers(shape.get("all_points_y"), "all_points_y", where, len(xs))
        if kind == "polyline":
            return None
        if len(xs) < 3:
            raise DataError(f"{where}: a polygon must have three or more points, got {len(xs)}")
        return polygon_annotation(short, label, flat(list(zip(xs, ys, strict=True))))
    if kind == "rect":
        x, y, width, height = (field(name) for name in ("x", "y", "width", "height"))
        return Annotation(short, label, (x, y, x + width, y + height))
    if kind in ("circle", "ellipse"):
        rx, ry = (field("r"),) * 2 if kind == "circle" else (field("rx"), field("ry"))
        theta = number(shape.get("theta", 0), "theta", where)
        return polygon_annotation(short, label, ellipse(field("cx"), field("cy"), rx, ry, theta))
    if kind == "point":
        return None
    raise DataError(
        f"{where}: the shape must be a polygon, rect, circle, ellipse, point or polyline, got {shown(kind)}"
    )
