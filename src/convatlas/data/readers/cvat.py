"""CVAT for images: one XML file with the shapes of all images."""

from __future__ import annotations

import math
import re
from itertools import islice
from pathlib import Path
from xml.etree.ElementTree import Element

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotations import AnnotatedImage, Annotation, Annotations
from convatlas.data.class_names import class_name
from convatlas.data.readers.image_places import ImagePlaces
from convatlas.data.readers.shapes import ellipse, flat, polygon_annotation
from convatlas.data.readers.xml_values import MAX_LOOKS, begins_with, parse_xml, xml_number
from convatlas.data.splits import split_name
from convatlas.errors import DataError

SHAPES = ("box", "polygon", "ellipse")
"""Shapes that are objects."""

UNUSED = ("points", "polyline", "cuboid", "mask", "skeleton")


def cvat_file(folder: Path) -> Path | None:
    """Return the XML file of CVAT in a folder; None if there is none."""
    return next((file for file in islice(folder.glob("*.xml"), MAX_LOOKS) if begins_with(file, "annotations")), None)


def read_cvat(file: Path, faults: FaultLog, problems: Problems) -> Annotations:
    """Read boxes, polygons and ellipses; the images are beside the file or in a folder near it.

    The subset of an image is its split, if all subsets are names of splits. Classes are in the order of their names.
    """
    root = parse_xml(file, file.name)
    if root.tag != "annotations":
        raise DataError(f"{file}: must be a file of CVAT for images; of Pascal VOC, give the folder")
    elements = root.findall("image")
    if root.find("track") is not None:
        raise DataError(f"{file}: contains the tracks of a video; export it from CVAT as images")
    names = [each.get("name") or "" for each in elements]
    places = ImagePlaces(file, names)
    subsets = {each.get("subset") or "train" for each in elements}
    known = all(map(split_name, subsets))
    images: dict[str, dict[str, AnnotatedImage]] = {}
    unused = 0
    for i, (element, name) in enumerate(zip(elements, names, strict=True), 1):
        where = f"{file.name}: image {element.get('id', i)}"
        with problems.of("invalid_annotations"):
            if not name:
                raise DataError(f"{where}: has no name")
            size = (
                round(xml_number(element.get("height", "0"), where, "height")),
                round(xml_number(element.get("width", "0"), where, "width")),
            )
            part = images.setdefault(split_name(element.get("subset") or "train") if known else "train", {})
            path = places.find(name)
            if path in part:
                faults.add("duplicate_images", f"{where}: {name}")
            image = part.setdefault(path, AnnotatedImage(path, where, "", (max(size[0], 0), max(size[1], 0))))
            for number, shape in enumerate(element, 1):
                unused += shape.tag in UNUSED
                if shape.tag in SHAPES:
                    with problems.of("invalid_annotations"):
                        image.objects.append(_read_shape(shape, f"{where}: shape {number}"))
    notes = [f"{unused:,} points, lines and painted masks are not used"] if unused else []
    classes = sorted({each.label for part in images.values() for image in part.values() for each in image.objects})
    return Annotations({split: list(part.values()) for split, part in images.items()}, tuple(classes), notes=notes)


def _read_shape(shape: Element, where: str) -> Annotation:
    label = class_name(shape.get("label") or "", where)
    if not label:
        raise DataError(f"{where}: has no label")

    def number(name: str) -> float:
        return xml_number(shape.get(name), where, name)

    if shape.tag == "box":
        return Annotation(where, label, (number("xtl"), number("ytl"), number("xbr"), number("ybr")))
    if shape.tag == "ellipse":
        angle = math.radians(xml_number(shape.get("rotation", "0"), where, "rotation"))
        return polygon_annotation(where, label, ellipse(number("cx"), number("cy"), number("rx"), number("ry"), angle))
    pairs = [re.split(r"\s*,\s*", pair) for pair in (shape.get("points") or "").split(";")]
    if len(pairs) < 3 or any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{where}: a polygon must have three or more points x,y")
    return polygon_annotation(where, label, flat([[xml_number(x, where, "points") for x in pair] for pair in pairs]))
