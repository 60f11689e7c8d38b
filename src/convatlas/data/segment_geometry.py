"""Flips and crops of segments: of polygons by their coordinates, of run lengths by their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.tasks.detection.masks import MIN_POLYGON, encode, to_dense
from convatlas.tasks.detection.masks import boxes as boxes_of_runs
from convatlas.tasks.detection.objects import Segment

Polygon = NDArray[np.float64]
"""The corners (n, 2) of a polygon: x, y."""

Box = tuple[int, int, int, int]
"""(top, left, height, width) of a crop in pixels."""


def flip_segments(segments: Sequence[Segment], size: tuple[int, int]) -> tuple[Segment, ...]:
    """Return segments of an image (height, width) flipped horizontally: x becomes width - x."""
    from torchvision.transforms.v2 import functional as F

    mirror = np.array([-1.0, 1.0])
    return _map(
        segments,
        size,
        lambda polygon: polygon * mirror + (size[1], 0.0),
        lambda masks: F.horizontal_flip(masks),
    )


def crop_segments(segments: Sequence[Segment], size: tuple[int, int], box: Box) -> tuple[Segment, ...]:
    """Return the parts of segments that are in a box of the image, relative to it; [] for those outside of it."""
    from torchvision.transforms.v2 import functional as F

    top, left, height, width = box
    return _map(
        segments,
        size,
        lambda polygon: clip_polygon(polygon - (left, top), width, height),
        lambda masks: F.crop(masks, top, left, height, width),
    )


def segment_boxes(segments: Sequence[Segment], size: tuple[int, int]) -> Tensor:
    """Return the smallest boxes (k, 4) around segments, x1, y1, x2, y2 in pixels; zeros for empty ones.

    Those of polygons are around their corners, those of run lengths around their pixels.
    """
    boxes = torch.zeros(len(segments), 4)
    runs = [i for i, segment in enumerate(segments) if isinstance(segment, dict)]
    boxes[runs] = boxes_of_runs([segments[i] for i in runs], size)
    for i, segment in enumerate(segments):
        if not isinstance(segment, dict) and segment:
            corners = np.concatenate([_corners(polygon) for polygon in segment])
            boxes[i] = torch.from_numpy(np.concatenate([corners.min(0), corners.max(0)]))
    return boxes


def clip_polygon(polygon: Polygon, width: float, height: float) -> Polygon:
    """Return the part of a polygon in a rectangle whose corner is (0, 0); empty if there is none.

    Sutherland and Hodgman 1974. Parts of a polygon that is not convex are connected along the border, without area.
    """
    for axis, limit, sign in ((0, 0.0, 1.0), (0, width, -1.0), (1, 0.0, 1.0), (1, height, -1.0)):
        if not len(polygon):
            break
        depth = (polygon[:, axis] - limit) * sign
        if (depth >= 0).all():
            continue
        polygon = _clip_at_line(polygon, depth, axis, limit)
    return polygon if _area(polygon) > 0 else polygon[:0]


def _clip_at_line(polygon: Polygon, depth: NDArray[np.float64], axis: int, limit: float) -> Polygon:
    """Return the part of a polygon on one side of a line. depth: of each corner, how far inside it is."""
    corners = []
    for i in range(len(polygon)):
        before, after = polygon[i - 1], polygon[i]
        if (depth[i - 1] >= 0) != (depth[i] >= 0):
            share = depth[i - 1] / (depth[i - 1] - depth[i])
            crossing = before + (after - before) * share
            crossing[axis] = limit
            corners.append(crossing)
        if depth[i] >= 0:
            corners.append(after)
    return np.array(corners).reshape(-1, 2)


def _area(polygon: Polygon) -> float:
    x, y = polygon.T
    return float(abs((x * np.roll(y, 1) - y * np.roll(x, 1)).sum()) / 2)


def _corners(polygon: Sequence[float]) -> Polygon:
    return np.asarray(polygon, dtype=np.float64).reshape(-1, 2)


def _map(
    segments: Sequence[Segment],
    size: tuple[int, int],
    of_polygon: Callable[[Polygon], Polygon],
    of_masks: Callable[[Tensor], Tensor],
) -> tuple[Segment, ...]:
    """Return segments changed by functions of polygons and of masks (k, height, width)."""
    from torchvision import tv_tensors

    runs = [i for i, segment in enumerate(segments) if isinstance(segment, dict)]
    changed: dict[int, Segment] = {}
    if runs:
        masks = of_masks(tv_tensors.Mask(to_dense([segments[i] for i in runs], size))).as_subclass(Tensor)
        changed = dict(zip(runs, encode(masks), strict=True))
    for i, segment in enumerate(segments):
        if not isinstance(segment, dict):
            polygons = [of_polygon(_corners(polygon)) for polygon in segment if len(polygon) >= MIN_POLYGON]
            changed[i] = [polygon.flatten().tolist() for polygon in polygons if len(polygon)]
    return tuple(changed[i] for i in range(len(segments)))
