"""Missed and false objects, and thresholds."""

from __future__ import annotations

import pytest
import torch

from convatlas.tasks.detection.matching import best_thresholds, keypoint_similarity, match, size_numbers
from convatlas.tasks.detection.objects import no_objects
from convatlas.tasks.detection.pck import correct_keypoints
from detected_objects import boxes

A, B = (0, 0, 20, 20), (50, 50, 90, 90)


def test_missed_and_false_at_thresholds() -> None:
    truth = boxes(A, B, labels=[0, 1])
    detections = boxes(A, B, (30, 0, 40, 10), labels=[0, 1, 0], scores=[0.9, 0.4, 0.7])
    matching = match([detections], [truth], "boxes")
    assert matching.detections.correct.tolist() == [True, True, False]
    assert matching.truths.detection.tolist() == [0, 1]
    for threshold, missed, false in ((0.3, 0, 1), (0.5, 1, 1), (0.8, 1, 0), (0.95, 2, 0)):
        thresholds = torch.tensor([threshold, threshold])
        assert int(matching.missed(thresholds).sum()) == missed
        assert int(matching.false(thresholds).sum()) == false
    assert matching.missed(torch.tensor([0.5, 0.3])).tolist() == [False, False]


def test_each_object_is_one_detection() -> None:
    matching = match([boxes(A, A, scores=[0.5, 0.9])], [boxes(A)], "boxes")
    assert matching.detections.correct.tolist() == [False, True]
    assert matching.truths.score.tolist() == pytest.approx([0.9])


def test_other_class_is_missed_and_false() -> None:
    matching = match([boxes(A, labels=[1], scores=[1.0])], [boxes(A)], "boxes")
    thresholds = torch.tensor([0.5, 0.5])
    assert (int(matching.missed(thresholds).sum()), int(matching.false(thresholds).sum())) == (1, 1)


def test_images_without_objects() -> None:
    empty = no_objects((100, 100))
    matching = match([empty, boxes(A, scores=[0.9]), empty], [empty, empty, boxes(A)], "boxes")
    assert matching.detections.image.tolist() == [1]
    assert matching.truths.image.tolist() == [2]
    assert matching.missed(torch.tensor([0.5])).tolist() == [True]


def test_best_thresholds() -> None:
    truths = [boxes(A, B) for _ in range(5)]
    detections = [boxes(A, B, (0, 50, 9, 59), scores=[0.9, 0.6, 0.3]) for _ in range(5)]
    matching = match(detections, truths, "boxes")
    assert best_thresholds(matching, 1, default=0.5, min_objects=5) == pytest.approx([0.45])
    # a rare class has the threshold of all classes, and without any detected object the default
    assert best_thresholds(matching, 2, default=0.5, min_objects=5) == pytest.approx([0.45, 0.45])
    nothing = match([no_objects((9, 9))], [boxes(A)], "boxes")
    assert best_thresholds(nothing, 2, default=0.5, min_objects=1) == [0.5, 0.5]


def test_sizes() -> None:
    areas = torch.tensor([0, 1023, 1024, 9215, 9216, 1e6])
    assert size_numbers(areas).tolist() == [0, 0, 1, 1, 2, 2]


# --- keypoints


def test_keypoint_similarity() -> None:
    truth = boxes((0, 0, 20, 20), keypoints=[[[0.0, 0, 2], [10, 10, 0]]])
    own = boxes((0, 0, 20, 20), (0, 0, 20, 20), keypoints=[[[0.0, 0, 1], [99, 99, 1]], [[2.0, 0, 1], [0, 0, 1]]])
    far = torch.exp(torch.tensor(-4 / (2 * 0.05) ** 2 / 400 / 2)).item()  # 2 px of an object with an area of 400
    assert keypoint_similarity(own, truth, (0.05, 0.05)).flatten().tolist() == pytest.approx([1, far])


def test_object_without_labeled_keypoints_is_ignored() -> None:
    truth = boxes((0, 0, 20, 20), keypoints=[[[0.0, 0, 0]]])
    own = boxes((0, 0, 20, 20), keypoints=[[[30.0, 30, 1]]], scores=[0.9])
    matching = match([own], [truth], "keypoints", (0.05,))
    assert matching.detections.ignored.tolist() == [True]
    assert len(matching.truths.label) == 0


def test_share_of_correct_keypoints() -> None:
    points = [[[0.0, 0, 2], [10, 10, 2], [5, 5, 0]], [[60.0, 60, 2], [70, 70, 2], [80, 80, 2]]]
    truth = boxes((0, 0, 20, 20), (50, 50, 90, 90), keypoints=points)
    predicted = [[[0.9, 0, 1], [13.0, 10, 1], [99, 99, 1]]]  # 0.045 and 0.15 of the longer side; the rest is missed
    own = boxes((0, 0, 20, 20), scores=[0.9], keypoints=predicted)
    matching = match([own], [truth], "boxes")
    correct, labeled = correct_keypoints([own], [truth], matching, torch.tensor([0.5]))
    assert labeled.tolist() == [2, 2, 1]
    assert correct.tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert correct_keypoints([own], [truth], matching, torch.tensor([0.95]))[0].sum() == 0
