"""The assignment of detections to objects: that of COCO at an IoU (or similarity of keypoints) of 0.5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.tasks.detection.coco import Kind
from convatlas.tasks.detection.formats import areas_of
from convatlas.tasks.detection.masks import overlaps
from convatlas.tasks.detection.objects import Objects

MIN_IOU = 0.5
"""Minimum IoU, or similarity of keypoints, of a detection and its object."""

SIZES = ("small", "medium", "large")
SIZE_LIMITS = (32.0**2, 96.0**2)
"""Areas in pixels that separate small, medium and large objects (COCO)."""

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Detections:
    """All detections of a split, one row for each.

    image, label: numbers. score. correct: whether it is assigned to an object that counts. ignored: whether it is
    assigned to one that does not (a crowd, or one without labeled keypoints): neither correct nor false. area: of its
    box in pixels.
    """

    image: Tensor
    label: Tensor
    score: Tensor
    correct: Tensor
    ignored: Tensor
    area: Tensor


@dataclass(frozen=True, eq=False)
class Truths:
    """All objects of a split that count, one row for each.

    image, label: numbers. row: its place among the objects of its image. detection: the place of its detection among
    those of its image. score: of its detection. Both are -1 if it has none. area: in pixels.
    """

    image: Tensor
    label: Tensor
    row: Tensor
    detection: Tensor
    score: Tensor
    area: Tensor


@dataclass(frozen=True, eq=False)
class Matching:
    """Detections and objects of a split, and their assignment, which is the same at every threshold."""

    detections: Detections
    truths: Truths

    def missed(self, thresholds: Tensor) -> Tensor:
        """Return (objects,): whether an object has no detection at or above the threshold of its class."""
        return self.truths.score < thresholds[self.truths.label]

    def counted(self, thresholds: Tensor) -> Tensor:
        """Return (detections,): whether a detection is at or above the threshold of its class."""
        return self.detections.score >= thresholds[self.detections.label]

    def false(self, thresholds: Tensor) -> Tensor:
        """Return (detections,): whether a detection at or above the threshold of its class has no object."""
        return self.counted(thresholds) & ~self.detections.correct & ~self.detections.ignored


def match(
    detections: Sequence[Objects], truths: Sequence[Objects], kind: Kind, sigmas: Sequence[float] | None = None
) -> Matching:
    """Assign detections to objects of the same class, image by image, as COCO does at an IoU of 0.5.

    In order of their scores, each detection is assigned to the object with the highest IoU that has none yet. Any
    number is assigned to a crowd, or to an object without labeled keypoints. sigmas: of keypoints.
    """
    detection_rows: list[tuple[Tensor, ...]] = []
    truth_rows: list[tuple[Tensor, ...]] = []
    for image, (own, truth) in enumerate(zip(detections, truths, strict=True)):
        scores = torch.ones(len(own)) if own.scores is None else own.scores
        uncounted = _uncounted(truth, kind)
        assigned = _assign(own, truth, scores, uncounted, kind, sigmas)  # (k,): -1 for none
        ignored = torch.cat([uncounted, torch.tensor([False])])[assigned]
        places = torch.full((len(truth),), -1)
        places[assigned[assigned >= 0]] = (assigned >= 0).nonzero().flatten()
        best = torch.cat([scores, scores.new_full((1,), -1.0)])[places]
        box_areas = (own.boxes[:, 2:] - own.boxes[:, :2]).prod(1)
        detection_rows.append((
            torch.full_like(own.labels, image), own.labels, scores, (assigned >= 0) & ~ignored, ignored, box_areas
        ))  # fmt: skip
        columns = (
            torch.full_like(truth.labels, image), truth.labels, torch.arange(len(truth)), places, best, areas_of(truth)
        )  # fmt: skip
        truth_rows.append(tuple(column[~uncounted] for column in columns) if uncounted.any() else columns)
    return Matching(Detections(*_concatenated(detection_rows)), Truths(*_concatenated(truth_rows)))


def _concatenated(rows: Sequence[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    return (torch.cat(column) for column in zip(*rows, strict=True))


def _uncounted(truth: Objects, kind: Kind) -> Tensor:
    """Return (k,): whether an object does not count: crowds, and objects without labeled keypoints."""
    uncounted = torch.zeros(len(truth), dtype=torch.bool) if truth.crowd is None else truth.crowd.clone()
    if kind == "keypoints" and truth.keypoints is not None:
        uncounted |= ~(truth.keypoints[..., 2] > 0).any(1)
    return uncounted


def _assign(
    own: Objects, truth: Objects, scores: Tensor, uncounted: Tensor, kind: Kind, sigmas: Sequence[float] | None
) -> Tensor:
    """Return (k,): the object to which each detection of an image is assigned, -1 for none.

    Objects that count are assigned once and go first; others to any number of detections.
    """
    assigned = torch.full((len(own),), -1)
    if not len(own) or not len(truth):
        return assigned
    same = own.labels.numpy()[:, None] == truth.labels.numpy()[None]
    similar = np.where(same, _similarity(own, truth, kind, sigmas), 0.0)
    rows, columns = np.nonzero(similar >= MIN_IOU)
    ranks = scores.argsort(descending=True, stable=True).argsort().numpy()
    shared = uncounted.numpy()
    # by score; then objects that count, the highest IoU, and of equal ones the last, as in COCO
    order = np.lexsort((-columns, -similar[rows, columns], shared[columns], ranks[rows]))
    chosen: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in chosen and column not in taken:
            chosen[row] = column
            if not shared[column]:
                taken.add(column)
    assigned[list(chosen)] = torch.tensor(list(chosen.values()), dtype=torch.int64)
    return assigned


def _similarity(own: Objects, truth: Objects, kind: Kind, sigmas: Sequence[float] | None) -> _Array:
    """Return (detections, objects): IoU of boxes or masks, with the share of a detection that is inside for crowds."""
    if kind == "keypoints":
        return keypoint_similarity(own, truth, sigmas or ())
    return overlaps(own, truth, with_masks=kind == "masks")


def keypoint_similarity(own: Objects, truth: Objects, sigmas: Sequence[float]) -> _Array:
    """Return (detections, objects): the object keypoint similarity of COCO over the labeled keypoints of each object.

    For an object without labeled keypoints, the distance is that of a keypoint to twice its box.
    """
    assert own.keypoints is not None
    assert truth.keypoints is not None
    points, labeled = own.keypoints[..., :2].double(), truth.keypoints[..., 2] > 0
    distance = (points[:, None] - truth.keypoints[None, ..., :2].double()).square().sum(-1)  # (d, k, points)
    sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
    low, high = (truth.boxes[:, :2] - sides).double(), (truth.boxes[:, 2:] + sides).double()
    outside = (low[None, :, None] - points[:, None]).clamp(min=0) + (points[:, None] - high[None, :, None]).clamp(min=0)
    without = ~labeled.any(1)
    distance = torch.where(without[None, :, None], outside.square().sum(-1), distance)
    variance = (2 * torch.tensor(sigmas, dtype=torch.float64)) ** 2
    exponent = distance / variance / (areas_of(truth).double()[None, :, None] + np.spacing(1)) / 2
    used = labeled | without[:, None]
    similar = torch.where(used[None], (-exponent).exp(), 0.0).sum(-1) / used.sum(1).clamp(min=1)
    array: _Array = similar.numpy()
    return array


def best_thresholds(matching: Matching, classes: int, *, default: float, min_objects: int) -> list[float]:
    """Return for each class the minimum score with the best F1.

    That of all classes together for a class with fewer than `min_objects` objects; `default` if no object is detected.
    """
    every = _best_threshold(matching, None, default)
    counts = torch.bincount(matching.truths.label.long(), minlength=classes).tolist()
    return [
        _best_threshold(matching, label, every) if counts[label] >= min_objects else every for label in range(classes)
    ]


def _best_threshold(matching: Matching, label: int | None, default: float) -> float:
    """Return the minimum score with the best F1, half way between two neighboring scores."""
    detections, truths = matching.detections, matching.truths
    chosen = ~detections.ignored if label is None else ~detections.ignored & (detections.label == label)
    objects = len(truths.label) if label is None else int((truths.label == label).sum())
    correct = detections.correct[chosen]
    if not objects or not correct.any():
        return default
    scores, order = detections.score[chosen].sort(descending=True)
    f1 = 2 * correct[order].cumsum(0) / (torch.arange(1, len(scores) + 1) + objects)
    below = torch.cat([scores[1:], scores.new_zeros(1)])
    f1 = f1.where(below < scores, -1)  # no threshold separates equal scores
    best = int(f1.argmax())
    return float((scores[best] + below[best]) / 2)


def size_numbers(areas: Tensor) -> Tensor:
    """Return 0 for small, 1 for medium and 2 for large areas."""
    return torch.bucketize(areas.double(), torch.tensor(SIZE_LIMITS, dtype=torch.float64), right=True)
