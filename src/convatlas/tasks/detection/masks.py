"""Masks of objects: polygons and run lengths as COCO writes them, and dense pixels; exact as pycocotools.

A polygon is rasterized as COCO's tools do it. Run lengths count pixels column by column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from convatlas.tasks.detection.objects import Objects, RunLengths, Segment

MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to a mask."""

MIN_POLYGON = 6
"""Minimum number of coordinates of a polygon."""


def _api() -> Any:
    """Return the module of masks of faster-coco-eval, which is imported only when it is needed."""
    from faster_coco_eval.core import mask

    return mask


def to_runs(segment: Segment, size: tuple[int, int]) -> RunLengths:
    """Return a segment as compressed run lengths. size: (height, width) of the image.

    Polygons of one object are united; those of fewer than three points have no area.
    """
    if isinstance(segment, dict):
        if isinstance(segment["counts"], str):
            return segment
        return _with_text(_api().frPyObjects(segment, *segment["size"]))
    polygons = [polygon for polygon in segment if len(polygon) >= MIN_POLYGON]
    if not polygons:
        return encode(torch.zeros(1, *size, dtype=torch.uint8))[0]
    return _with_text(_api().merge(_api().frPyObjects(polygons, *size)))


def to_dense(segments: Sequence[Segment], size: tuple[int, int]) -> Tensor:
    """Return the masks (k, height, width) uint8, 0 or 1, of segments of one image."""
    if not segments:
        return torch.zeros(0, *size, dtype=torch.uint8)
    dense: NDArray[np.uint8] = _api().decode([to_runs(segment, size) for segment in segments])
    return torch.from_numpy(np.ascontiguousarray(dense.transpose(2, 0, 1)))


def encode(masks: Tensor) -> tuple[RunLengths, ...]:
    """Return masks (k, height, width), zero or not, as compressed run lengths."""
    if not len(masks):
        return ()
    dense = np.asfortranarray((masks != 0).to("cpu", torch.uint8).permute(1, 2, 0).numpy())
    return tuple(map(_with_text, _api().encode(dense)))


def area(segment: Segment, size: tuple[int, int]) -> int:
    """Return the number of pixels of a segment."""
    return int(_api().area(to_runs(segment, size)))


def boxes(segments: Sequence[Segment], size: tuple[int, int]) -> Tensor:
    """Return the smallest boxes (k, 4) around the pixels of segments: x1, y1, x2, y2; zeros for an empty segment."""
    if not segments:
        return torch.zeros(0, 4)
    runs = [to_runs(segment, size) for segment in segments]
    sides = torch.tensor(np.asarray(_api().toBbox(runs)))
    is_empty = torch.tensor(np.asarray(_api().area(runs)) == 0)  # older versions return sides of 2**64
    return torch.cat([sides[:, :2], sides[:, :2] + sides[:, 2:]], 1).float().masked_fill(is_empty[:, None], 0.0)


def overlaps(own: Objects, truth: Objects, *, with_masks: bool) -> NDArray[np.float64]:
    """Return (detections, objects): the IoU of boxes, or of masks; the share of a detection that is inside of a crowd.

    Both are of one image and have at least one object.
    """
    crowd = [0] * len(truth) if truth.crowd is None else truth.crowd.int().tolist()
    shapes = [_runs(each) if with_masks else with_sides(each.boxes).numpy() for each in (own, truth)]
    values: NDArray[np.float64] = np.asarray(_api().iou(*shapes, crowd))
    return values


def _runs(objects: Objects) -> list[RunLengths]:
    return [to_runs(segment, objects.size) for segment in objects.segments or ()]


def with_sides(corners: Tensor) -> Tensor:
    """Return boxes x1, y1, x2, y2 as x, y, width, height, in float64."""
    exact = corners.double()
    return torch.cat([exact[:, :2], exact[:, 2:] - exact[:, :2]], 1)


def shift(segment: Segment, size: tuple[int, int], corner: tuple[int, int], whole: tuple[int, int]) -> RunLengths:
    """Return a segment of a tile as run lengths in the whole image.

    size: (height, width) of the tile. corner: (x, y) of its left upper pixel in the image. whole: (height, width).
    The tile must be inside the image.
    """
    return to_runs(segment, size) if size == whole else _place(to_dense([segment], size)[0], corner, whole)


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[RunLengths, ...]:
    """Return masks (k, 1, side, side) of probabilities, resized to their boxes (k, 4), as run lengths of the image.

    Pixels of 0.5 and more belong to a mask, which is the same as that of torchvision's `paste_masks_in_image`; but no
    mask of the size of the image is in memory.
    """
    from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

    if not len(masks):
        return ()
    padded, scale = expand_masks(masks, 1)
    corners = expand_boxes(boxes, scale).to(torch.int64).tolist()
    return tuple(_paste(mask, corner, size) for mask, corner in zip(padded, corners, strict=True))


def _paste(mask: Tensor, box: Sequence[int], size: tuple[int, int]) -> RunLengths:
    x1, y1, x2, y2 = box
    shape = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    resized = F.interpolate(mask[None], shape, mode="bilinear", align_corners=False)[0, 0]
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, size[1]), min(y2 + 1, size[0])
    inside = resized[top - y1 : max(top, bottom) - y1, left - x1 : max(left, right) - x1] >= MASK_THRESHOLD
    return _place(inside.byte(), (left, top), size)


def _place(mask: Tensor, corner: tuple[int, int], whole: tuple[int, int]) -> RunLengths:
    """Return a mask (h, w) of 0 and 1, whose left upper pixel is at `corner`, as run lengths of the whole image."""
    columns = F.pad(mask.T.to(torch.int8), (1, 1)).diff(dim=1)  # (width, height + 1)
    (column, start), (_, end) = ((columns == step).nonzero().T for step in (1, -1))
    first = (column + corner[0]) * whole[0] + corner[1]
    starts, ends = first + start, first + end
    starts, ends = starts[~torch.isin(starts, ends)], ends[~torch.isin(ends, starts)]  # runs that touch become one
    edges = torch.cat(
        [torch.zeros(1).long(), torch.stack([starts, ends], 1).flatten(), torch.tensor([math.prod(whole)])]
    )
    counts = edges.diff().tolist()
    runs = {"size": list(whole), "counts": counts if counts[-1] else counts[:-1]}
    return _with_text(_api().frPyObjects(runs, *whole))


def _with_text(runs: dict[str, Any]) -> RunLengths:
    """Return run lengths whose counts are text, as JSON needs them."""
    height, width = runs["size"]
    counts = runs["counts"]
    return {
        "size": [int(height), int(width)],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }
