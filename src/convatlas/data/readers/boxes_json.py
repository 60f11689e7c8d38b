"""One JSON file for each image, with the boxes and keypoints of its objects: {"bboxes": [...], "keypoints": [...]}."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotations import ONE_CLASS, AnnotatedImage, Annotation, Annotations
from convatlas.data.class_names import class_name
from convatlas.data.readers.image_places import images_near
from convatlas.data.readers.json_values import field_list, mapping, numbers, read_json, shown
from convatlas.data.readers.skeletons import skeleton_of_categories
from convatlas.errors import DataError


def read_boxes_json(
    location: Path, files: Mapping[str, Sequence[Path]], faults: FaultLog, problems: Problems
) -> Annotations:
    """Read the files of each split: `bboxes` [x1, y1, x2, y2], optionally `labels` and, of each object, `keypoints`
    [[x, y, visibility], ...].

    The image of a.json is a.jpg, or of another suffix, beside it or in images/ beside its folder. Where no visibility
    is 2, 1 means visible. Images without a file are not used.
    """
    images: dict[str, list[AnnotatedImage]] = {}
    invalid = problems.of("invalid_annotations")
    for split, part in files.items():
        images[split] = []
        used: set[str] = set()
        found = images_near(part[0].parent, (file.stem for file in part))
        for file in part:
            name = os.path.relpath(file, location)
            path = found.get(file.stem, str(file.with_suffix(".jpg")))
            used.add(path)
            image = AnnotatedImage(path, name, name)
            with invalid:
                image.objects = _read_file(file, name)
                images[split].append(image)
        for path in dict.fromkeys(found.values()):
            if path not in used:
                faults.add("unannotated_images", os.path.relpath(path, location))
    objects = [each for part in images.values() for image in part for each in image.objects]
    notes = [] if any(each.label != ONE_CLASS for each in objects) else [f"all objects are of one class, {ONE_CLASS}"]
    points = [point for each in objects for point in each.keypoints or ()]
    if points and max(point[2] for point in points) == 1:
        notes.append("keypoints with the visibility 1 are visible: none has 2")
        for each in objects:
            each.keypoints = [(x, y, 2 * v) for x, y, v in each.keypoints or ()] or None
    lengths = {len(each.keypoints) for each in objects if each.keypoints}
    skeleton = skeleton_of_categories((), lengths, location, notes)
    return Annotations(images, tuple(sorted({each.label for each in objects})), skeleton, notes=notes)


def _read_file(file: Path, name: str) -> list[Annotation]:
    data = mapping(read_json(file), name)
    boxes = field_list(data, "bboxes", name)
    labels = field_list(data, "labels", name) if data.get("labels") is not None else [ONE_CLASS] * len(boxes)
    keypoints = field_list(data, "keypoints", name) if data.get("keypoints") is not None else [None] * len(boxes)
    if not len(boxes) == len(labels) == len(keypoints):
        raise DataError(
            f"{name}: bboxes, labels and keypoints must have one entry for each object, got {len(boxes)}, "
            f"{len(labels)} and {len(keypoints)}"
        )
    objects = []
    for i, (box, label, points) in enumerate(zip(boxes, labels, keypoints, strict=True)):
        where = f"{name}: object {i + 1}"
        if type(label) not in (str, int) or not str(label).strip():
            raise DataError(f"{where}: the label must be a text, got {shown(label)}")
        x1, y1, x2, y2 = map(float, numbers(box, "bboxes", where, 4))
        rows = None
        if points is not None:
            if not isinstance(points, list):
                raise DataError(f"{where}: keypoints must be a list of x, y and visibility, got {shown(points)}")
            rows = [tuple(map(float, numbers(point, "keypoints", where, 3))) for point in points]
            if wrong := [row for row in rows if row[2] not in (0, 1, 2)]:
                raise DataError(f"{where}: visibility must be 0, 1 or 2, got {wrong[0][2]:g}")
        objects.append(
            Annotation(f"object {i + 1}", class_name(str(label), where), (x1, y1, x2, y2), keypoints=rows or None)
        )
    return objects
