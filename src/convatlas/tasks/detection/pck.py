"""PCK, the percentage of correct keypoints (Yang and Ramanan 2013)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convatlas.tasks.detection.matching import Matching
from convatlas.tasks.detection.objects import Objects

DISTANCES = (0.05, 0.1, 0.2)
"""Largest distances of correct keypoints, as shares of the longer side of the object's box."""


def correct_keypoints(
    detections: Sequence[Objects], truths: Sequence[Objects], matching: Matching, thresholds: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (correct (distances, points), labeled (points,)): numbers of labeled keypoints and of correct ones.

    matching: of boxes. thresholds: (classes,), the minimum scores. All keypoints of a missed object are wrong.
    """
    points = next((truth.keypoints.shape[1] for truth in truths if truth.keypoints is not None), 0)
    correct, labeled = torch.zeros(len(DISTANCES), points), torch.zeros(points)
    missed = matching.missed(thresholds).tolist()
    rows = (column.tolist() for column in (matching.truths.image, matching.truths.row, matching.truths.detection))
    for is_missed, image, row, detection in zip(missed, *rows, strict=True):
        true, predicted = truths[image].keypoints, detections[image].keypoints
        if true is None:
            continue
        is_labeled = true[row, :, 2] > 0
        labeled += is_labeled
        if is_missed or predicted is None:
            continue
        box = truths[image].boxes[row]
        side = (box[2:] - box[:2]).max().clamp(min=1)
        distance = (predicted[detection, :, :2] - true[row, :, :2]).norm(dim=1) / side
        correct += (distance <= torch.tensor(DISTANCES)[:, None]) & is_labeled
    return correct, labeled
