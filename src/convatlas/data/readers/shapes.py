"""Shapes of annotation tools as polygons."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convatlas.data.annotations import Annotation

CIRCLE_POINTS = 64
"""Number of points of the polygon that stands for a circle or an ellipse."""


def polygon_annotation(where: str, label: str, *polygons: list[float]) -> Annotation:
    """Return the object of polygons [x1, y1, x2, y2, ...]."""
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return Annotation(where, label, (min(xs), min(ys), max(xs), max(ys)), list(polygons))


def flat(points: Sequence[Sequence[float]]) -> list[float]:
    """Return points (x, y) as [x1, y1, x2, y2, ...]."""
    return [float(value) for point in points for value in point]


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> list[float]:
    """Return an ellipse, whose first axis is at an angle in radians, as a polygon."""
    cos, sin = math.cos(angle), math.sin(angle)
    points = []
    for i in range(CIRCLE_POINTS):
        turn = 2 * math.pi * i / CIRCLE_POINTS
        x, y = rx * math.cos(turn), ry * math.sin(turn)
        points.append((cx + x * cos - y * sin, cy + x * sin + y * cos))
    return flat(points)
