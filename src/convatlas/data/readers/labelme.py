"""labelme: one JSON file of shapes for each image."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotations import AnnotatedImage, Annotation, Annotations
from convatlas.data.class_names import class_name
from convatlas.data.readers.image_places import images_near
from convatlas.data.readers.json_values import field_list, mapping, numbers, read_json, shown, side, text
from convatlas.data.readers.shapes import ellipse, flat, polygon_annotation
from convatlas.errors import DataError

UNUSED = ("point", "points", "line", "linestrip", "mask")
"""Shapes that are not objects here."""


def read_labelme(
    location: Path, files: Mapping[str, Sequence[Path]], faults: FaultLog, problems: Problems
) -> Annotations:
    """Read the files of each split: polygons, rectangles and circles are objects; those of one group are one object.

    The image is that of imagePath or, if it does not exist, of the name of the file, beside it or in a folder of images
    near it.
    """
    images: dict[str, list[AnnotatedImage]] = {}
    unused = 0
    for split, part in files.items():
        images[split] = []
        found = images_near(part[0].parent, (file.stem for file in part))
        for file in part:
            name = os.path.relpath(file, location)
            with problems.of("invalid_annotations"):
                data = mapping(read_json(file), name)
                path = str(data.get("imagePath") or "")
                height, width = (side(data.get(field), field, name) for field in ("imageHeight", "imageWidth"))
                stem = PureWindowsPath(path).stem  # splits at / and at \
                place = found.get(stem) or found.get(file.stem) or str(file.parent / (path or f"{file.stem}.jpg"))
                image = AnnotatedImage(place, name, name, (height, width))
                unused += _read_shapes(field_list(data, "shapes", name), name, image, problems)
                images[split].append(image)
    notes = [f"{unused:,} points, lines and painted masks are not used"] if unused else []
    classes = sorted({each.label for part in images.values() for image in part for each in image.objects})
    return Annotations(images, tuple(classes), notes=notes)


def _read_shapes(shapes: Sequence[Any], name: str, image: AnnotatedImage, problems: Problems) -> int:
    """Add the objects of shapes to an image; return how many shapes are not objects."""
    groups: dict[tuple[str, Any], Annotation] = {}
    unused = 0
    for i, shape in enumerate(shapes, 1):
        short = f"shape {i}"
        where = f"{name}: {short}"
        with problems.of("invalid_annotations"):
            shape = mapping(shape, where)
            if shape.get("shape_type", "polygon") in UNUSED:
                unused += 1
                continue
            each = _read_shape(shape, short, where)
            group = shape.get("group_id")
            same = groups.get((each.label, group)) if type(group) in (int, str) else None
            if same is not None and same.segment and each.segment:
                merged = polygon_annotation(same.where, same.label, *same.segment, *each.segment)
                same.box, same.segment = merged.box, merged.segment
                continue
            if type(group) in (int, str):
                groups[each.label, group] = each
            image.objects.append(each)
    return unused


def _read_shape(shape: Mapping[str, Any], short: str, where: str) -> Annotation:
    label = class_name(text(shape.get("label"), "label", where), where)
    points = [numbers(point, "points", where, 2) for point in field_list(shape, "points", where)]
    kind = shape.get("shape_type", "polygon")
    if kind == "polygon" and len(points) > 2:
        return polygon_annotation(short, label, flat(points))
    if kind == "rectangle" and len(points) in (2, 4):
        (xs, ys) = ([float(point[axis]) for point in points] for axis in (0, 1))
        return Annotation(short, label, (min(xs), min(ys), max(xs), max(ys)))
    if kind == "circle" and len(points) == 2:
        (cx, cy), (x, y) = points
        radius = math.hypot(x - cx, y - cy)
        return polygon_annotation(short, label, ellipse(cx, cy, radius, radius))
    raise DataError(
        f"{where}: must be a polygon of three or more points, a rectangle of two or a circle of two, got "
        f"{shown(kind)} of {len(points)}"
    )
