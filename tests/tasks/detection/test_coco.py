"""COCO's metrics equal those of pycocotools, for files in COCO's form and for objects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convatlas.errors import DataError
from convatlas.tasks.detection.coco import CocoMetrics, Kind, evaluate_coco, evaluate_objects
from convatlas.tasks.detection.matching import match
from convatlas.tasks.detection.objects import Objects, no_objects
from detected_objects import boxes, objects_of_coco, read, rectangle

FIXTURES = (
    "bccd_voc", "kitchen_yolo", "rbc_coco", "balloon_via", "glue_tubes_keypoints",
    *(
        f"mmpose_skeletons/{name}"
        for name in (
            "300w", "aic", "animalpose", "ap10k", "crowdpose", "deepfasion2", "fly", "horse10", "jhmdb", "lapa",
            "onehand10k", "rhd",
        )
    ),
)  # fmt: skip

KINDS: dict[str, Kind] = {
    "bbox": "boxes", "segm": "masks", "segm_bbox_left_in": "masks", "keypoints": "keypoints",
    "keypoints_bbox_removed": "keypoints",
}  # fmt: skip
WITHOUT_BOXES = ("segm", "keypoints_bbox_removed")

COCO_TINY = {
    "train50": (
        0.214906, 0.335081, 0.246811, 0.051426, 0.266226, 0.439094, 0.229791, 0.261198, 0.261623, 0.059097, 0.302114,
        0.486320,
    ),
    "val10": (
        0.329013, 0.495555, 0.301953, 0.096934, 0.398477, 0.661276, 0.300220, 0.369196, 0.372529, 0.116857, 0.432727,
        0.698148,
    ),
}  # fmt: skip


def assert_equals(metrics: CocoMetrics, expected: Sequence[float]) -> None:
    """Assert that the metrics are equal to 1e-6; -1 is what cannot be measured."""
    assert np.nan_to_num(list(metrics.values.values()), nan=-1) == pytest.approx(expected, abs=1e-6)


def sigmas_of(ground_truth: dict[str, Any], kind: Kind) -> list[float] | None:
    if kind != "keypoints":
        return None
    return [0.05] * (len(ground_truth["annotations"][0]["keypoints"]) // 3)


@pytest.mark.parametrize("name", FIXTURES)
def test_equals_pycocotools(shared_data: Path, name: str) -> None:
    folder = shared_data / name / "eval"
    ground_truth, detections = read(folder / "gt_coco.json"), read(folder / "detections.json")
    expected = {key: value for key, value in read(folder / "metrics.json").items() if key in KINDS}
    assert "bbox" in expected
    for key, numbers in expected.items():
        kind, results = KINDS[key], [dict(detection) for detection in detections]
        for result in results if key in WITHOUT_BOXES else ():
            del result["bbox"]
        metrics = evaluate_coco(ground_truth, results, kind, sigmas_of(ground_truth, kind))
        assert_equals(metrics, numbers["stats"])
        by_class = [value for _, value in sorted(numbers.get("AP_per_category", {}).items(), key=lambda p: int(p[0]))]
        assert np.nan_to_num(metrics.class_ap[: len(by_class)], nan=-1) == pytest.approx(by_class, abs=1e-6)
        if key in ("bbox", "segm", "keypoints"):
            truths, own = objects_of_coco(ground_truth, detections)
            classes = [str(i) for i in range(len(ground_truth["categories"]))]
            again = evaluate_objects(own, truths, classes, kind, sigmas_of(ground_truth, kind))
            assert_equals(again, numbers["stats"])


@pytest.mark.parametrize("split", COCO_TINY)
def test_detections_of_a_real_detector(shared_data: Path, split: str) -> None:
    folder = shared_data / "coco_tiny/annotations"
    ground_truth, detections = read(folder / f"instances_{split}.json"), read(folder / f"detections_{split}.json")
    assert_equals(evaluate_coco(ground_truth, detections, "boxes"), COCO_TINY[split])
    truths, own = objects_of_coco(ground_truth, detections)
    classes = [category["name"] for category in ground_truth["categories"]]
    metrics = evaluate_objects(own, truths, classes, "boxes")
    assert_equals(metrics, COCO_TINY[split])
    assert_matching_agrees(metrics, match(own, truths, "boxes"))


def test_twelve_official_numbers(shared_data: Path) -> None:
    folder = shared_data / "voc100_formats/coco_eval_case"
    ground_truth = read(folder / "gts/sampled_gts_bbox_area.json")
    detections = read(folder / "dets/sampled_bbox_results.json")["annotations"]
    expected = (
        0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363, 0.386813, 0.593680, 0.595353, 0.654764, 0.603130,
        0.553744,
    )  # fmt: skip
    assert_equals(evaluate_coco(ground_truth, detections, "boxes"), expected)


@pytest.mark.parametrize(("name", "kind"), [("balloon_via", "masks"), ("glue_tubes_keypoints", "keypoints")])
def test_matching_agrees(shared_data: Path, name: str, kind: Kind) -> None:
    folder = shared_data / name / "eval"
    ground_truth = read(folder / "gt_coco.json")
    truths, own = objects_of_coco(ground_truth, read(folder / "detections.json"))
    sigmas = sigmas_of(ground_truth, kind)
    assert_matching_agrees(evaluate_objects(own, truths, ["0"], kind, sigmas), match(own, truths, kind, sigmas))


def assert_matching_agrees(metrics: CocoMetrics, matching: Any) -> None:
    """Assert that the matching gives the average precision of COCO at an IoU of 0.5, class by class."""
    assert {k: ap for k, ap in enumerate(metrics.class_ap50.tolist()) if not math.isnan(ap)} == pytest.approx(
        dict(average_precisions(matching))
    )


def average_precisions(matching: Any) -> Iterator[tuple[int, float]]:
    """Yield (class, average precision) at 101 recalls, as COCO defines it."""
    for label in matching.truths.label.unique().tolist():
        of_class = (matching.detections.label == label) & ~matching.detections.ignored
        order = matching.detections.score[of_class].argsort(descending=True, stable=True)
        correct = matching.detections.correct[of_class][order].double().numpy().cumsum()
        recall = correct / int((matching.truths.label == label).sum())
        precision = np.maximum.accumulate((correct / np.arange(1, len(correct) + 1))[::-1])[::-1]
        places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
        yield label, float(np.append(precision, 0.0)[places].mean())


def test_matches_of_annotation_0_count() -> None:
    """pycocotools counts a match with an annotation whose id is 0 as none."""
    box = [10.0, 10.0, 20.0, 20.0]
    ground_truth = {
        "images": [{"id": 0, "width": 100, "height": 100}], "categories": [{"id": 0, "name": "a"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": box, "area": 400.0}],
    }  # fmt: skip
    detections = [{"image_id": 0, "category_id": 0, "bbox": box, "score": 0.9}]
    copies = [dict(ground_truth["annotations"][0]), dict(detections[0])]
    assert evaluate_coco(ground_truth, detections, "boxes")["ap"] == pytest.approx(1)
    assert [ground_truth["annotations"][0], detections[0]] == copies  # the arguments are as before


def test_only_person_keypoints_have_default_sigmas() -> None:
    points = [float(value) for i in range(17) for value in (i, i, 2)]
    ground_truth = {
        "images": [{"id": 1, "width": 100, "height": 100}], "categories": [{"id": 1, "name": "person"}],
        "annotations": [{
            "id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 17, 17], "area": 289, "keypoints": points,
        }],
    }  # fmt: skip
    detections = [{"image_id": 1, "category_id": 1, "score": 1.0, "keypoints": points}]
    assert evaluate_coco(ground_truth, detections, "keypoints")["ap"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("ground_truth", "detections"),
    [
        ({}, []),
        ({"images": [], "annotations": [{}], "categories": []}, []),
        ({"images": [{"id": 1}], "annotations": [], "categories": []}, [{"image_id": 2, "bbox": [0, 0, 1, 1]}]),
        ({"images": [{"id": 1}], "annotations": [], "categories": []}, [{"image_id": 1, "bbox": "no"}]),
        (None, None),
    ],
)
def test_other_forms_are_refused(ground_truth: Any, detections: Any) -> None:
    with pytest.raises(DataError, match=r"evaluate_coco: .* not in COCO's form"):
        evaluate_coco(ground_truth, detections, "boxes")


# --- what cannot be measured


def test_no_objects_and_no_detections() -> None:
    metrics = evaluate_objects([no_objects((9, 9))], [no_objects((9, 9))], ["a"], "boxes")
    assert all(math.isnan(value) for value in metrics.values.values())
    assert math.isnan(metrics.class_ap[0])


def test_no_detections() -> None:
    metrics = evaluate_objects([no_objects((100, 100))], [boxes((0, 0, 50, 50))], ["a"], "boxes")
    assert (metrics["ap"], metrics["ar100"], metrics["ap_medium"]) == (0, 0, 0)
    assert math.isnan(metrics["ap_small"])


def test_detections_without_objects() -> None:
    detections = boxes((0, 0, 50, 50), scores=[0.9])
    assert math.isnan(evaluate_objects([detections], [no_objects((100, 100))], ["a"], "boxes")["ap"])


def test_absent_class_is_not_in_the_mean() -> None:
    metrics = evaluate_objects([boxes((0, 0, 50, 50), scores=[0.9])], [boxes((0, 0, 50, 50))], ["a", "b"], "boxes")
    assert metrics["ap"] == pytest.approx(1)
    assert np.isnan(metrics.class_ap).tolist() == [False, True]


def test_crowds_are_neither_missed_nor_detected() -> None:
    truth = boxes((0, 0, 50, 50), (50, 50, 100, 100), crowd=[False, True])
    detections = boxes((0, 0, 50, 50), (60, 60, 70, 70), (75, 75, 80, 80), scores=[0.5, 0.9, 0.8])
    assert evaluate_objects([detections], [truth], ["a"], "boxes")["ap"] == pytest.approx(1)
    matching = match([detections], [truth], "boxes")
    assert matching.detections.ignored.tolist() == [False, True, True]
    assert len(matching.truths.label) == 1


def test_size_of_a_mask_is_that_of_its_pixels() -> None:
    thin = rectangle(0, 0, 90, 2)  # a large box around a small mask
    truth = boxes((0, 0, 90, 90), segments=(thin,))
    metrics = evaluate_objects([boxes((0, 0, 90, 90), scores=[1.0], segments=(thin,))], [truth], ["a"], "masks")
    assert metrics["ap_small"] == pytest.approx(1)
    assert math.isnan(metrics["ap_medium"])


def test_order_of_images_does_not_matter() -> None:
    torch.manual_seed(0)
    corners = torch.rand(30, 4, 4).mul(40)
    corners[..., 2:] += corners[..., :2] + 1
    truths = [boxes(*rows.tolist(), labels=[0, 0, 1, 1]) for rows in corners]
    detections = [
        boxes(*(rows + torch.randn(4, 4)).tolist(), labels=[0, 1, 1, 1], scores=torch.rand(4).tolist())
        for rows in corners
    ]  # fmt: skip
    order = torch.randperm(30).tolist()
    first, second = (
        evaluate_objects([detections[i] for i in images], [truths[i] for i in images], ["a", "b"], "boxes")
        for images in (range(30), order)
    )
    assert str(first.values) == str(second.values)  # nan is nan


def test_metrics_print_as_a_table() -> None:
    truth = {
        "images": [{"id": 1, "width": 40, "height": 40}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "area": 400}],
    }
    metrics = evaluate_coco(truth, [], "boxes")
    assert repr(metrics).splitlines()[:2] == ["ap         0.0000", "ap50       0.0000"]
    assert "<table" in metrics._repr_html_()
    with pytest.raises(DataError, match="evaluate_coco: kind must be one of boxes, masks, keypoints, got 'bbox'"):
        evaluate_coco(truth, [], "bbox")  # type: ignore[arg-type]


def test_objects_print_in_a_line() -> None:
    objects = Objects((480, 640), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    assert repr(objects) == "Objects(2 in an image of 640 x 480 px: boxes, labels)"
