"""Predictions of detectors: text, JSON, CSV, results of COCO, lines of YOLO."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from convatlas.tasks.detection import masks
from convatlas.tasks.detection.coco import evaluate_coco
from convatlas.tasks.detection.formats import to_annotations, to_coco_results, to_yolo_lines
from convatlas.tasks.detection.objects import no_objects
from convatlas.tasks.detection.prediction import DetectionPrediction
from convatlas.tasks.detection.skeleton import Skeleton
from convatlas.tasks.known import InstanceSegmentation, KeypointDetection, ObjectDetection
from convatlas.tasks.prediction import Predictions
from convatlas.tasks.task import Calibration
from detected_objects import boxes, rectangle

TASK = ObjectDetection(("cat", "dog"))
ENDS = Skeleton(("head", "tail"), edges=((0, 1),))
FOUR = boxes(
    (0, 0, 10, 20), (5, 5, 6, 6), (1, 2, 3, 4), (0, 0, 50, 50), labels=[1, 0, 1, 1], scores=[0.6, 0.3, 0.9, 0.7],
    size=[100, 200],
)  # fmt: skip


def predict(**more: Any) -> DetectionPrediction:
    return TASK.predict("a.jpg", FOUR, Calibration(), **more)


def test_objects_at_the_threshold_by_score() -> None:
    prediction = predict()
    assert prediction.labels == ("dog", "dog", "dog")
    assert prediction.scores == pytest.approx((0.9, 0.7, 0.6))
    assert prediction.boxes[0] == (1, 2, 3, 4)
    assert prediction.text == "3 dog"
    assert prediction.probability == pytest.approx(0.9)
    assert len(predict(threshold=0.65).labels) == 2
    assert predict(threshold=0.0).text == "3 dog, 1 cat"
    empty = predict(threshold=0.99)
    assert (empty.text, empty.probability) == ("no objects", None)


def test_thresholds_of_the_calibration() -> None:
    calibration = Calibration(thresholds=(0.2, 0.8))
    assert TASK.predict("", FOUR, calibration).labels == ("dog", "cat")
    assert TASK.predict("", FOUR, calibration, 0.65).labels == ("dog", "dog")  # a given one replaces them


def test_plain_data_fits_its_schema() -> None:
    plain = predict().to_plain()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == list(DetectionPrediction.plain_fields)
    assert (plain["width"], plain["height"], plain["error"]) == (200, 100, None)
    assert plain["objects"][0] == {"label": "dog", "score": pytest.approx(0.9), "box": [1, 2, 3, 4]}
    failed = TASK.unreadable("b.jpg", "b.jpg: truncated").to_plain()
    assert failed == {"source": "b.jpg", "width": None, "height": None, "objects": [], "error": "b.jpg: truncated"}


def test_masks_and_keypoints() -> None:
    segment = rectangle(0, 0, 10, 20)
    task = InstanceSegmentation(("cat",))
    objects = boxes((0, 0, 10, 20), scores=[0.9], segments=(segment,))
    (plain,) = task.predict("", objects, Calibration()).to_plain()["objects"]
    assert plain["mask"] == masks.to_runs(segment, (100, 100))
    points = KeypointDetection(("tube",), skeleton=ENDS)
    objects = boxes((0, 0, 10, 20), scores=[0.9], keypoints=[[[1.0, 2, 3], [4, 5, 6]]])
    (plain,) = points.predict("", objects, Calibration()).to_plain()["objects"]
    assert plain["keypoints"] == [
        {"name": "head", "x": 1, "y": 2, "score": 3}, {"name": "tail", "x": 4, "y": 5, "score": 6}
    ]  # fmt: skip


def test_one_row_for_each_object() -> None:
    rows = predict().to_rows(1)
    assert rows[0] == {
        "source": "a.jpg", "label": "dog", "score": pytest.approx(0.9), "x1": 1, "y1": 2, "x2": 3, "y2": 4,
        "error": None,
    }  # fmt: skip
    assert len(rows) == 3
    (row,) = TASK.predict("b.jpg", no_objects((9, 9)), Calibration()).to_rows(1)
    assert row == dict.fromkeys(rows[0]) | {"source": "b.jpg"}
    (row,) = TASK.unreadable("c.jpg", "c.jpg: truncated").to_rows(1)
    assert row["error"] == "c.jpg: truncated"


def test_table() -> None:
    text = repr(Predictions([predict(), predict(threshold=0.99), TASK.unreadable("c.jpg", "c.jpg: truncated")]))
    assert [line.split()[:3] for line in text.splitlines()[-3:]] == [
        ["a.jpg", "3", "dog"], ["a.jpg", "no", "objects"], ["c.jpg", "truncated"],
    ]  # fmt: skip


def test_classes_that_are_kept() -> None:
    assert TASK.keep_classes(FOUR, ["cat"]).labels.tolist() == [0]
    assert len(TASK.keep_classes(FOUR, ["dog", "cat"])) == 4


def test_results_of_coco() -> None:
    segments = (rectangle(0, 0, 40, 40), rectangle(50, 50, 90, 90))
    truth = boxes((0, 0, 40, 40), (50, 50, 90, 90), labels=[0, 1], segments=segments)
    detected = boxes((0, 0, 40, 40), (50, 50, 90, 90), labels=[0, 1], segments=segments, scores=[0.9, 0.8])
    prediction = InstanceSegmentation(("cat", "dog")).predict("", detected, Calibration())
    results = to_coco_results([prediction, TASK.unreadable("", "no")], [7, 8], {"cat": 3, "dog": 5})
    assert [(each["image_id"], each["category_id"]) for each in results] == [(7, 3), (7, 5)]
    ground_truth = {
        "images": [{"id": number, "width": 100, "height": 100} for number in (7, 8)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [each | {"id": i} for i, each in enumerate(to_annotations(truth, 7, [3, 5]))],
    }  # fmt: skip
    ground_truth = json.loads(json.dumps(ground_truth))
    for kind in ("boxes", "masks"):
        assert evaluate_coco(ground_truth, json.loads(json.dumps(results)), kind)["ap"] == pytest.approx(1)


def test_lines_of_yolo() -> None:
    assert to_yolo_lines(predict(threshold=0.65)) == [
        "1 0.010000 0.030000 0.010000 0.020000 0.900000", "1 0.125000 0.250000 0.250000 0.500000 0.700000",
    ]  # fmt: skip
    assert to_yolo_lines(TASK.unreadable("", "no")) == []
    objects = boxes((0, 0, 10, 20), scores=torch.tensor([0.5]).tolist(), keypoints=[[[10.0, 50, 1]]])
    (line,) = to_yolo_lines(DetectionPrediction("", objects=objects, classes=("a",)))
    assert line == "0 0.050000 0.100000 0.100000 0.200000 0.100000 0.500000 1.000000 0.500000"
