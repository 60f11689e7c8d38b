"""Turn the annotations of images into objects: faults are counted and treated on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import eq

import torch
from torch import Tensor

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotation_geometry import (
    box_of_keypoints,
    box_of_segment,
    polygon_area,
    scale_annotation,
    turn_annotation,
)
from convatlas.data.annotations import AnnotatedImage, Annotation, Annotations, Box
from convatlas.errors import DataError
from convatlas.tasks.detection.objects import Objects, Segment

ROUNDING = 0.1
"""Pixels by which a box may reach out of its image because its file rounds coordinates."""

BORDER = 1.0
"""Pixels by which a box reaches out of its image where its coordinates are off by one."""

MIN_BOXES = 20
"""Minimum number of boxes from which coordinates from 1 are suspected."""

Size = tuple[int, int]
"""(height, width)."""


@dataclass
class Treater:
    """Treats the faults of annotations, image by image, and counts them in `faults`.

    predicts: what the annotations are good for: "keypoints", "masks" or "boxes". Where any object has a mask or
    keypoints, all get them: their box as a mask, no labeled keypoint.
    """

    annotations: Annotations
    faults: FaultLog
    problems: Problems

    def __post_init__(self) -> None:
        objects = [each for part in self.annotations.images.values() for image in part for each in image.objects]
        self.numbers = {name: i for i, name in enumerate(self.annotations.classes)}
        self.with_segments = any(each.segment for each in objects)
        skeleton = self.annotations.skeleton
        self.points = skeleton.points if skeleton and any(each.keypoints for each in objects) else 0
        with_masks = sum(each.segment is not None for each in objects)
        self.predicts = "keypoints" if self.points else "masks" if 2 * with_masks > len(objects) else "boxes"

    def objects_of(self, image: AnnotatedImage, size: Size, orientation: int) -> Objects:
        """Return the objects of an image.

        size: (height, width) of the file with its EXIF orientation applied; (0, 0) if it is unreadable.
        """
        if not size[0]:
            size = image.size if image.size and 0 not in image.size else (1, 1)
        place = f"{image.annotation_file}: " if image.annotation_file else ""
        self._fit(image, size, orientation)
        kept: list[tuple[Annotation, Box]] = []
        copies: dict[tuple[object, ...], list[Annotation]] = {}
        for each in image.objects:
            where = f"{place}{each.where}"
            box = self._box(each, size, where)
            if box is None:
                continue
            self._treat_segment(each, size, where)
            self._treat_keypoints(each, size, where)
            same = copies.setdefault((each.label, each.crowd, *(round(value, 2) for value in box)), [])
            if any(other.segment == each.segment and other.keypoints == each.keypoints for other in same):
                self.faults.add("duplicate_objects", where)
                continue
            same.append(each)
            kept.append((each, box))
        return self._to_objects(kept, size)

    def _fit(self, image: AnnotatedImage, size: Size, orientation: int) -> None:
        """Bring the annotations of an image to the size of its file."""
        if image.relative:
            for each in image.objects:
                scale_annotation(each, size[1], size[0], size)
            return
        stated = image.size
        if stated is None or stated == size:
            return
        if 0 in stated:
            self.faults.add("missing_sizes", image.where)
            return
        text = f"{image.where}: {stated[1]} x {stated[0]}, the file has {size[1]} x {size[0]}"
        if orientation > 4 and stated == size[::-1]:
            self.faults.add("rotated_annotations", f"{image.where}: EXIF orientation {orientation}")
            for each in image.objects:
                turn_annotation(each, orientation, stated)
        elif _same_proportions(stated, size):
            self.faults.add("scaled_sizes", text)
            for each in image.objects:
                scale_annotation(each, size[1] / stated[1], size[0] / stated[0], size)
        else:
            self.faults.add("wrong_sizes", text)

    def _box(self, each: Annotation, size: Size, where: str) -> Box | None:
        """Return the box inside of the image; None for an object that is dropped."""
        height, width = size
        box = each.box
        if box is None:
            if each.segment:
                box = box_of_segment(each.segment)
            elif each.keypoints:
                box = box_of_keypoints(each.keypoints)
            if box is None:
                self.faults.add("degenerate_boxes", f"{where}: no box, mask or labeled keypoint")
                return None
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1:
            self.faults.add("degenerate_boxes", f"{where}: ({x1:g}, {y1:g}, {x2:g}, {y2:g})")
            return None
        excess = max(-x1, -y1, x2 - width, y2 - height)
        if excess <= 0:
            return x1, y1, x2, y2
        clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        text = f"{where}: ({x1:g}, {y1:g}, {x2:g}, {y2:g}) in {width} x {height}"
        if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            self.faults.add("lost_boxes", text)
            return None
        if excess > ROUNDING:
            self.faults.add("border_boxes" if excess <= BORDER + ROUNDING else "outside_boxes", text)
            if each.area is not None and not each.segment and excess > BORDER + ROUNDING:
                each.area = None
        return clipped

    def _treat_segment(self, each: Annotation, size: Size, where: str) -> None:
        height, width = size
        segment = each.segment
        if isinstance(segment, dict):
            if tuple(segment["size"]) != size:
                rows, columns = segment["size"]
                text = f"{where}: the mask has {columns} x {rows} pixels, the image {width} x {height}"
                self.problems.add(DataError(f"{text}; correct or remove it", kind="invalid_annotations"))
                each.segment = None
        elif segment:
            outside, repeated = False, 0
            for polygon in segment:
                xs, ys = polygon[::2], polygon[1::2]
                points = list(zip(xs, ys, strict=True))
                repeated += sum(map(eq, points, points[1:]))
                if min(xs) < 0 or min(ys) < 0 or max(xs) > width or max(ys) > height:
                    outside |= min(min(xs), min(ys), width - max(xs), height - max(ys)) < -ROUNDING
                    polygon[::2] = [min(max(x, 0.0), float(width)) for x in xs]
                    polygon[1::2] = [min(max(y, 0.0), float(height)) for y in ys]
            if outside:
                self.faults.add("outside_points", where)
            if repeated:
                self.faults.add("repeated_points", f"{where}: {repeated} repeated")

    def _treat_keypoints(self, each: Annotation, size: Size, where: str) -> None:
        if not each.keypoints:
            return
        height, width = size
        outside = [
            i for i, (x, y, v) in enumerate(each.keypoints, 1) if v > 0 and not (0 <= x <= width and 0 <= y <= height)
        ]
        if outside:
            self.faults.add("outside_keypoints", f"{where}: {', '.join(map(str, outside))}")
            lost = set(outside)
            each.keypoints = [(0, 0, 0) if i in lost else point for i, point in enumerate(each.keypoints, 1)]

    def _to_objects(self, kept: Sequence[tuple[Annotation, Box]], size: Size) -> Objects:
        boxes = torch.tensor([box for _, box in kept], dtype=torch.float32).reshape(-1, 4)
        areas = None
        if self.annotations.has_areas:
            areas = torch.tensor([_area(each, box) for each, box in kept], dtype=torch.float32)
        keypoints: Tensor | None = None
        if self.points:
            missing = [(0.0, 0.0, 0.0)] * self.points
            rows = [each.keypoints or missing for each, _ in kept]
            keypoints = torch.tensor(rows, dtype=torch.float32).reshape(-1, self.points, 3)
        return Objects(
            size,
            boxes,
            torch.tensor([self.numbers[each.label] for each, _ in kept], dtype=torch.int64),
            segments=tuple(each.segment or _rectangle(box) for each, box in kept) if self.with_segments else None,
            keypoints=keypoints,
            crowd=torch.tensor([each.crowd for each, _ in kept], dtype=torch.bool),
            areas=areas,
        )


def count_one_based(annotations: Annotations, objects: Mapping[str, Sequence[Objects]], faults: FaultLog) -> None:
    """Count splits with coordinates from 1: no box begins before 1.

    In formats that count from 0, there are also `MIN_BOXES` of integers, and some end at the last column and row.
    """
    for split, part in objects.items():
        boxes = torch.cat([each.boxes for each in part])
        starts = boxes[:, :2]
        if not len(boxes) or (starts < 1).any():
            continue
        if not annotations.origin:
            ends = torch.cat([each.boxes[:, 2:] == torch.tensor(each.size[::-1]) for each in part])
            if len(boxes) < MIN_BOXES or (starts != starts.round()).any() or not ends.any(0).all():
                continue
        faults.add("one_based_boxes", f"{split}: {len(boxes):,} boxes")


def _area(each: Annotation, box: Box) -> float:
    if each.area is not None:
        return each.area
    if isinstance(each.segment, list):
        return sum(map(polygon_area, each.segment))
    return (box[2] - box[0]) * (box[3] - box[1])


def _rectangle(box: Box) -> Segment:
    x1, y1, x2, y2 = box
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def _same_proportions(stated: Size, size: Size) -> bool:
    """Return whether one size is the other one scaled, with sides rounded to pixels."""
    small, large = sorted((stated, size))
    return abs(small[0] * large[1] / large[0] - small[1]) <= 1 or abs(small[1] * large[0] / large[1] - small[0]) <= 1
