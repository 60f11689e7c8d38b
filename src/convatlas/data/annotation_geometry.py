"""Geometry of annotations: boxes of masks and keypoints, scaling, and the EXIF orientation of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from convatlas.data.annotations import Annotation, Box
from convatlas.tasks.detection import masks
from convatlas.tasks.detection.objects import Segment

Point = tuple[float, float]
Move = Callable[[float, float], Point]


def box_of_segment(segment: Segment) -> Box | None:
    """Return the smallest box around a mask; None if it is empty."""
    if isinstance(segment, dict):
        x1, y1, x2, y2 = masks.boxes([segment], tuple(segment["size"]))[0].tolist()
    else:
        xs = [x for polygon in segment for x in polygon[::2]]
        ys = [y for polygon in segment for y in polygon[1::2]]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def box_of_keypoints(keypoints: Sequence[Sequence[float]]) -> Box | None:
    """Return the smallest box around the labeled keypoints; None if it has no area."""
    labeled = [(x, y) for x, y, v in keypoints if v > 0]
    if not labeled:
        return None
    xs, ys = zip(*labeled, strict=True)
    x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def polygon_area(polygon: Sequence[float]) -> float:
    """Return the area of a polygon [x1, y1, x2, y2, ...] (the shoelace formula)."""
    xs, ys = polygon[::2], polygon[1::2]
    after = zip((*xs[1:], xs[0]), (*ys[1:], ys[0]), strict=True)
    return abs(sum(x * b - a * y for x, y, (a, b) in zip(xs, ys, after, strict=True))) / 2


def scale_annotation(each: Annotation, x_factor: float, y_factor: float, size: tuple[int, int]) -> None:
    """Scale an object. size: (height, width) of the scaled image."""
    _move(each, lambda x, y: (x * x_factor, y * y_factor))
    if isinstance(each.segment, dict):
        dense = masks.to_dense([each.segment], tuple(each.segment["size"]))
        scaled = torch.nn.functional.interpolate(dense[None], size, mode="nearest-exact")[0]
        each.segment = masks.encode(scaled)[0]
    if each.area is not None:
        each.area *= x_factor * y_factor


def turn_annotation(each: Annotation, orientation: int, size: tuple[int, int]) -> None:
    """Apply an EXIF orientation from 5 to 8 to an object. size: (height, width) of the image as it is stored."""
    height, width = size
    moves: dict[int, Move] = {
        5: lambda x, y: (y, x), 6: lambda x, y: (height - y, x), 7: lambda x, y: (height - y, width - x),
        8: lambda x, y: (y, width - x),
    }  # fmt: skip
    _move(each, moves[orientation])
    if isinstance(each.segment, dict):
        dense = masks.to_dense([each.segment], size).transpose(1, 2)  # orientation 5
        flips = {5: [], 6: [2], 7: [1, 2], 8: [1]}[orientation]
        each.segment = masks.encode(dense.flip(flips))[0]


def _move(each: Annotation, move: Move) -> None:
    """Move the box, the polygons and the labeled keypoints of an object."""
    if each.box is not None:
        (ax, ay), (bx, by) = move(*each.box[:2]), move(*each.box[2:])
        each.box = (min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
    if isinstance(each.segment, list):
        each.segment = [
            [value for point in zip(polygon[::2], polygon[1::2], strict=True) for value in move(*point)]
            for polygon in each.segment
        ]
    if each.keypoints:
        each.keypoints = [(*move(x, y), v) if v > 0 else (x, y, v) for x, y, v in each.keypoints]
