"""Objects of the tiles of a large image as those of the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.tasks.detection import masks
from convatlas.tasks.detection.objects import Objects

DEFAULT_NMS = 0.5
"""IoU above which two objects of a class are the same one: that with the lower score is removed."""

FRAGMENT_INSIDE = 0.7
"""Share of its area inside a whole object from which an object at the inner edge of a tile is a fragment of it."""

EDGE = 2.0
"""Distance in pixels from the inner edge of a tile at which an object may be cut off."""


def merge(views: Sequence[Objects], corners: Sequence[tuple[int, int]], nms: float) -> Objects:
    """Return the objects of tiles in coordinates of the whole image, the highest score first.

    corners: (x, y) of the left upper pixel of each tile; the tiles must cover the image. Boxes, masks and keypoints are
    moved, masks become run lengths of the whole image. Then duplicates in a class are removed: of two objects with an
    IoU above `nms`, the one with the lower score; and fragments, which touch an inner edge of their tile and are by at
    least `FRAGMENT_INSIDE` inside of an object that does not touch one.
    """
    size = (
        max(y + view.size[0] for view, (_, y) in zip(views, corners, strict=True)),
        max(x + view.size[1] for view, (x, _) in zip(views, corners, strict=True)),
    )
    pairs = list(zip(views, corners, strict=True))
    moved = concatenate([_move(view, corner, size) for view, corner in pairs])
    kept = _kept(moved, torch.cat([_cut_off(view, corner, size) for view, corner in pairs]), nms)
    if all(view.segments is None for view in views):
        return moved.take(kept)
    places = [(segment, view.size, corner) for view, corner in pairs for segment in view.segments or ()]
    segments = tuple(masks.shift(*places[i], size) for i in kept)  # only those of objects that are kept
    return replace(moved.take(kept), segments=segments)


def concatenate(parts: Sequence[Objects]) -> Objects:
    """Return objects of one image as one; a field that one of them lacks is None."""
    parts = [part for part in parts if len(part)] or parts[:1]

    def joined(name: str) -> object:
        values = [getattr(part, name) for part in parts]
        if any(value is None for value in values):
            return None
        return torch.cat(values) if isinstance(values[0], Tensor) else tuple(item for value in values for item in value)

    return Objects(parts[0].size, *(joined(field.name) for field in fields(Objects)[1:]))  # type: ignore[arg-type]


def _move(objects: Objects, corner: tuple[int, int], size: tuple[int, int]) -> Objects:
    """Return the objects of a tile in coordinates of the image, without their masks."""
    offset = torch.tensor(corner, dtype=objects.boxes.dtype)
    keypoints = None
    if objects.keypoints is not None:
        keypoints = objects.keypoints.clone()
        keypoints[..., :2] += offset
    return Objects(
        size, objects.boxes + offset.repeat(2), objects.labels, objects.scores, None, keypoints, objects.crowd,
        objects.areas,
    )  # fmt: skip


def _cut_off(objects: Objects, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return (k,): whether an object of a tile touches an edge of it that is inside the image."""
    (height, width), (x, y) = objects.size, corner
    left, top, right, bottom = objects.boxes.unbind(1)
    cut = torch.zeros(len(objects), dtype=torch.bool)
    if x > 0:
        cut |= left <= EDGE
    if y > 0:
        cut |= top <= EDGE
    if x + width < size[1]:
        cut |= right >= width - EDGE
    if y + height < size[0]:
        cut |= bottom >= height - EDGE
    return cut


def _kept(objects: Objects, cut: Tensor, nms: float) -> list[int]:
    """Return the indices of the objects that are no duplicates, the highest score first."""
    scores = torch.ones(len(objects)) if objects.scores is None else objects.scores
    by_score = scores.argsort(descending=True, stable=True).tolist()
    boxes, labels, is_cut = objects.boxes.double().numpy(), objects.labels.numpy(), cut.numpy()
    kept: list[int] = []
    for index in sorted(by_score, key=lambda i: bool(is_cut[i])):  # whole objects first; the order by score is stable
        same = [i for i in kept if labels[i] == labels[index]]
        if same:
            overlap, own, others = _overlaps(boxes[index], boxes[same])
            doubled = bool((overlap > nms * (own + others - overlap)).any())
            fragment = is_cut[index] and bool((overlap[~is_cut[same]] >= FRAGMENT_INSIDE * own).any())
            if doubled or fragment:
                continue
        kept.append(index)
    place = {index: i for i, index in enumerate(by_score)}
    return sorted(kept, key=place.__getitem__)


def _overlaps(
    box: NDArray[np.float64], others: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Return the areas of the intersections of a box with others, its own area, and those of the others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return (
        sides.clip(0).prod(1),
        float((box[2:] - box[:2]).prod()),
        (others[:, 2:] - others[:, :2]).prod(1),
    )
