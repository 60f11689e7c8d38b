"""Objects of tiles as those of the whole image."""

from __future__ import annotations

import pytest
import torch

from convatlas.tasks.detection import masks
from convatlas.tasks.detection.merge import merge
from convatlas.tasks.detection.objects import no_objects
from convatlas.tasks.known import ObjectDetection
from detected_objects import boxes, rectangle

CORNERS = ((0, 0), (60, 0), (0, 60), (60, 60))
"""Of four tiles of 100 x 100 px in an image of 160 x 160 px."""

EMPTY = no_objects((100, 100))


def test_boxes_masks_and_keypoints_move() -> None:
    view = boxes(
        (10, 20, 30, 40), scores=[0.9], segments=masks.encode(masks.to_dense([rectangle(10, 20, 30, 40)], (100, 100))),
        keypoints=[[[15.0, 25, 3]]],
    )  # fmt: skip
    merged = merge([EMPTY, EMPTY, EMPTY, view], CORNERS, 0.5)
    assert merged.size == (160, 160)
    assert merged.boxes.tolist() == [[70, 80, 90, 100]]
    assert merged.segments is not None
    assert masks.boxes(merged.segments, merged.size).tolist() == [[70, 80, 90, 100]]
    assert merged.keypoints is not None
    assert merged.keypoints.tolist() == [[[75, 85, 3]]]


def test_object_in_two_tiles() -> None:
    first, second = boxes((70, 10, 90, 30), scores=[0.6]), boxes((11, 10, 31, 30), scores=[0.8])
    merged = merge([first, second, EMPTY, EMPTY], CORNERS, 0.5)
    assert merged.boxes.tolist() == [[71, 10, 91, 30]]
    assert len(merge([first, boxes((11, 10, 31, 30), labels=[1], scores=[0.8]), EMPTY, EMPTY], CORNERS, 0.5)) == 2


def test_fragment_at_the_edge_of_a_tile() -> None:
    """The object spans x 80 to 140: the first tile has its left third, with a higher score."""
    fragment, whole = boxes((80, 10, 100, 30), scores=[0.9]), boxes((20, 10, 80, 30), scores=[0.7])
    merged = merge([fragment, whole, EMPTY, EMPTY], CORNERS, 0.5)
    assert merged.boxes.tolist() == [[80, 10, 140, 30]]
    small = boxes((80, 10, 97, 30), scores=[0.9])  # not at the edge: a small object in front of a large one
    assert len(merge([small, whole, EMPTY, EMPTY], CORNERS, 0.5)) == 2


def test_highest_score_first() -> None:
    views = [boxes((0, 0, 9, 9), (50, 50, 59, 59), scores=[0.2, 0.9]), boxes((80, 80, 89, 89), scores=[0.5])]
    merged = merge([*views, EMPTY, EMPTY], CORNERS, 0.5)
    assert merged.scores is not None
    assert merged.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])


def test_task_merges_one_view_only_with_nms() -> None:
    task = ObjectDetection(("a",))
    twice = boxes((0, 0, 10, 10), (0, 0, 10, 12), scores=[0.9, 0.8])
    assert task.merge([twice], [(0, 0)]) is twice
    assert len(task.merge([twice], [(0, 0)], 0.5)) == 1
    assert len(task.merge([twice], [(0, 0)], 0.9)) == 2
    assert len(task.merge([EMPTY, EMPTY], CORNERS[:2])) == 0


def test_crowded_tiles() -> None:
    torch.manual_seed(0)
    corners = torch.rand(300, 2) * 90
    view = boxes(*torch.cat([corners, corners + 8], 1).tolist(), scores=torch.rand(300).tolist())
    merged = merge([view], [(0, 0)], 0.3)
    from torchvision.ops import nms

    assert view.scores is not None
    assert merged.boxes.tolist() == view.boxes[nms(view.boxes, view.scores, 0.3)].tolist()
