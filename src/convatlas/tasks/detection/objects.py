"""The objects of one image: ground truth or detections."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

RunLengths = dict[str, Any]
"""A mask as {"size": [height, width], "counts": str}: lengths of runs of pixels, compressed, column by column."""

Segment = list[list[float]] | RunLengths
"""The mask of an object as COCO writes it: polygons [[x1, y1, x2, y2, ...], ...], or run lengths."""


@dataclass(frozen=True, eq=False, repr=False)
class Objects:
    """The objects of one image; all fields have one row for each of k objects.

    size: (height, width) of the image in pixels. boxes: (k, 4) float32, x1, y1, x2, y2 in pixels from the left and the
    top edge of the image. labels: (k,) int64, indices of classes from 0. scores: (k,), of detections.
    segments: masks, as polygons or run lengths: they become pixels only where they are needed. keypoints: (k, points,
    3): x, y in pixels, and the visibility (0: not labeled, 1: hidden, 2: visible) or, of detections, the score.
    crowd: (k,) bool: a group of objects, which is neither trained on nor counted as missed. areas: (k,) in pixels, as
    the annotation states them.
    """

    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    segments: tuple[Segment, ...] | None = None
    keypoints: Tensor | None = None
    crowd: Tensor | None = None
    areas: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value is not None and len(value) != count:
                raise ValueError(f"Objects: {field.name} must have {count} rows, got {len(value)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        """Return the number of objects, the size of the image in pixels, and the fields that are not None."""
        height, width = self.size
        known = ", ".join(field.name for field in fields(self)[1:] if getattr(self, field.name) is not None)
        return f"Objects({len(self):,} in an image of {width} x {height} px: {known})"

    def isfinite(self) -> Tensor:
        """Return whether the boxes (k,), scores and keypoints of each object are finite."""
        finite = self.boxes.isfinite().all(1)
        if self.scores is not None:
            finite = finite & self.scores.isfinite()
        if self.keypoints is not None:
            finite = finite & self.keypoints.isfinite().all(2).all(1)
        return finite

    def take(self, which: Tensor | Sequence[int]) -> Objects:
        """Return the objects with these indices, or those where a mask (k,) is true."""
        indices = torch.as_tensor(which)
        indices = indices.nonzero().flatten() if indices.dtype == torch.bool else indices.long()
        rows = indices.tolist()

        def of(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[indices]
            return None if value is None else tuple(value[i] for i in rows)

        return Objects(self.size, *(of(getattr(self, field.name)) for field in fields(self)[1:]))

    def to_bytes(self) -> bytes:
        """Return the values for a fingerprint."""
        digest = hashlib.sha256(repr(self.size).encode())
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            digest.update(field.name.encode())
            if isinstance(value, Tensor):
                digest.update(value.cpu().contiguous().numpy().tobytes())
            elif value is not None:
                digest.update(json.dumps(value, sort_keys=True).encode())
        return digest.digest()


def no_objects(size: tuple[int, int]) -> Objects:
    """Return the objects of an image without any."""
    return Objects(size, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
