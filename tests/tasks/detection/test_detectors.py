"""The detection tasks: targets, losses, and results."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convatlas.draw.style import encode
from convatlas.errors import DataError, SpecError
from convatlas.models.families.rcnn import KeypointRCNN
from convatlas.tasks.detection import masks
from convatlas.tasks.detection.detectors import BOX_TERMS
from convatlas.tasks.detection.objects import Objects, no_objects
from convatlas.tasks.detection.skeleton import PERSON, Skeleton, numbered_skeleton
from convatlas.tasks.known import TASKS, Classification, InstanceSegmentation, KeypointDetection, ObjectDetection
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration
from detected_objects import boxes, rectangle
from tiny_detection import TINY

CELLS = ObjectDetection(("RBC", "WBC", "platelet"))
ENDS = Skeleton(("head", "tail"))
A, B, C = (0, 0, 20, 20), (30, 0, 60, 20), (50, 50, 90, 90)
TARGETS = Targets(objects=[
    boxes(A, B, C, labels=[0, 0, 1], crowd=[False, True, False]), boxes(A, labels=[0]), no_objects((100, 100)),
])  # fmt: skip


def test_names() -> None:
    assert {task.short_name: task.predicts for task in TASKS.values() if task.__name__ in ALL} == {
        "classify": "classes", "multi-label": "classes", "detect": "boxes", "segment": "masks",
        "keypoints": "keypoints",
    }  # fmt: skip


ALL = ("Classification", "MultilabelClassification", "ObjectDetection", "InstanceSegmentation", "KeypointDetection")


def test_plain_data() -> None:
    for task in (CELLS, InstanceSegmentation(("a",)), KeypointDetection(("person",), skeleton=PERSON)):
        assert type(task).from_plain(json.loads(json.dumps(task.to_plain()))) == task
    with pytest.raises(SpecError, match="skeleton is missing"):
        KeypointDetection.from_plain({"classes": ["a"]})
    with pytest.raises(SpecError, match="loss must be one of detection for object detection, got 'squared_error'"):
        CELLS.with_loss("squared_error")


def test_keypoints_follow_from_the_network_and_the_network_from_the_keypoints() -> None:
    for count, skeleton in ((17, PERSON), (3, numbered_skeleton(3))):
        spec = KeypointRCNN(**TINY, points=count)
        assert KeypointDetection.for_spec(spec, ("a",)).skeleton == skeleton
    assert KeypointDetection(("a",), skeleton=ENDS).adapted(KeypointRCNN(**TINY)) == KeypointRCNN(**TINY, points=2)
    assert KeypointDetection(("person",), skeleton=PERSON).flip_order[:3] == (0, 2, 1)
    assert CELLS.flip_order == ()


# --- targets


def test_counts_without_crowds() -> None:
    assert CELLS.class_counts(TARGETS).tolist() == [2, 1, 0]
    assert CELLS.strata(TARGETS).tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert [CELLS.describe(TARGETS, i) for i in range(3)] == ["2 RBC, 1 WBC", "1 RBC", "no objects"]
    assert CELLS.baseline(TARGETS) is None


def test_split_without_objects() -> None:
    CELLS.check_split(TARGETS, "val", "data")  # a class without objects is possible
    with pytest.raises(DataError, match="data: no image of the val split has an object"):
        CELLS.check_split(TARGETS.take(torch.tensor([2])), "val", "data")


def test_classes_of_other_data_by_name() -> None:
    other = ObjectDetection(("WBC", "RBC"))
    aligned = CELLS.align(Targets(objects=[boxes(A, B, labels=[0, 1])]), other, "data")
    assert aligned["objects"][0].labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"data: the data .*has classes that are not in the model: cat"):
        CELLS.align(Targets(objects=[boxes(A)]), ObjectDetection(("cat", "RBC")), "data")
    unused = CELLS.align(Targets(objects=[boxes(A, labels=[1])]), ObjectDetection(("cat", "WBC")), "data")
    assert unused["objects"][0].labels.tolist() == [1]
    assert CELLS.align(Targets(objects=[no_objects((9, 9))]), ObjectDetection(("cat",)), "data")
    with pytest.raises(DataError, match="the data is for classification, the model was trained for object detection"):
        CELLS.align(TARGETS, Classification(("a", "b")), "data")
    with pytest.raises(DataError, match=r"the keypoints must be those of the model \(17 points\), got 2 points"):
        KeypointDetection(("a",), skeleton=PERSON).align(TARGETS, KeypointDetection(("a",), skeleton=ENDS), "data")


# --- training


class Counter(nn.Module):
    """A detector that keeps its targets and has a loss of 1, 2, 3, ... for each term."""

    def __init__(self, *terms: str) -> None:
        super().__init__()
        self.weight, self.frozen = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()), requires_grad=False)
        self.terms, self.targets = terms, []

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.targets = targets
        return {name: number * self.weight for number, name in reversed(list(enumerate(self.terms, 1)))}


def training_loss(task: Any, network: Counter, targets: Targets) -> tuple[Tensor, Tensor]:
    images = [torch.zeros(3, 100, 100) for _ in range(len(targets))]
    rows, loss = task.training_loss(network, network, images, targets, task.criterion())
    loss.backward()
    assert task.train_metric(rows, targets) is rows
    assert rows.shape == (len(targets), len(task.progress_columns) - 1)
    return rows, loss


def test_loss_of_boxes() -> None:
    network = Counter(*BOX_TERMS)
    rows, loss = training_loss(CELLS, network, TARGETS.with_columns(short_side=[64, 32, 64], seed=[1, 2, 3]))
    assert rows.tolist() == [[1, 2, 3, 4]] * 3
    assert not rows.requires_grad
    assert (loss.item(), network.weight.grad) == (10, torch.tensor(10.0))
    first, second, third = network.targets
    assert first["boxes"].tolist() == [list(A), list(C)]  # without the crowd
    assert first["labels"].tolist() == [1, 2]  # 0 is the background of torchvision
    assert (first["short_side"], first["seed"]) == (64, 1)
    assert second["short_side"] == 32
    assert third["boxes"].shape == (0, 4)


def test_boxes_without_area_are_not_trained_on() -> None:
    network = Counter(*BOX_TERMS)
    training_loss(CELLS, network, Targets(objects=[boxes(A, (5, 5, 5, 9))]))
    assert network.targets[0]["boxes"].tolist() == [list(A)]


def test_loss_of_masks() -> None:
    network = Counter(*BOX_TERMS, "loss_mask")
    segments = (rectangle(*A), masks.to_runs(rectangle(*B), (100, 100)), rectangle(*C))
    objects = boxes(A, B, C, crowd=[False, True, False], segments=segments)
    rows, _ = training_loss(InstanceSegmentation(("a",)), network, Targets(objects=[objects, no_objects((100, 100))]))
    assert rows[0].tolist() == [1, 2, 3, 4, 5]
    first, second = (target["masks"] for target in network.targets)
    assert first.dtype == torch.uint8
    assert torch.equal(first, masks.to_dense([rectangle(*A), rectangle(*C)], (100, 100)))
    assert second.shape == (0, 100, 100)


def test_loss_of_keypoints() -> None:
    network = Counter(*BOX_TERMS, "loss_keypoint")
    points = [[[1.0, 2, 2], [3, 4, 0]]]
    targets = Targets(objects=[boxes(A, keypoints=points), no_objects((100, 100))])
    training_loss(KeypointDetection(("a",), skeleton=ENDS), network, targets)
    assert [target["keypoints"].tolist() for target in network.targets] == [points, []]
    assert network.targets[1]["keypoints"].shape == (0, 2, 3)


def test_no_images_of_a_batch() -> None:
    network = Counter(*BOX_TERMS)
    rows, loss = CELLS.training_loss(network, network, [], TARGETS.take(torch.tensor([]).long()), CELLS.criterion())
    loss.backward()
    assert rows.shape == (0, 4)
    assert (loss.item(), network.weight.grad) == (0, torch.tensor(0.0))


def test_not_finite_losses_stay() -> None:
    network = Counter(*BOX_TERMS)
    network.weight.data.fill_(math.nan)
    rows, loss = training_loss(CELLS, network, TARGETS)
    assert loss.isnan()
    assert rows.isnan().all()


# --- evaluation


def outputs(*rows: tuple[int, ...], labels: list[int], scores: list[float], **more: Tensor) -> dict[str, Tensor]:
    """Return the output of a network in torchvision's form."""
    corners = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": corners, "labels": torch.tensor(labels), "scores": torch.tensor(scores), **more}


def test_outputs_become_objects() -> None:
    image = torch.zeros(3, 60, 80)
    (objects,) = CELLS.collect([outputs(A, C, labels=[1, 3], scores=[0.9, 0.8])], [image])
    assert objects.size == (60, 80)
    assert objects.labels.tolist() == [0, 2]
    dense = torch.zeros(2, 1, 60, 80)
    dense[0, 0, :20, :20], dense[1, 0, :5, :5] = 0.5, 0.49
    (objects,) = CELLS.collect([outputs(A, C, labels=[1, 3], scores=[0.9, 0.8], masks=dense)], [image])
    assert objects.segments is not None
    assert [masks.area(segment, (60, 80)) for segment in objects.segments] == [400, 0]
    more = {"keypoints": torch.ones(1, 2, 3), "keypoints_scores": torch.tensor([[4.0, -5]])}
    (objects,) = CELLS.collect([outputs(A, labels=[1], scores=[0.9], **more)], [image])
    assert objects.keypoints is not None
    assert objects.keypoints.tolist() == [[[1, 1, 4], [1, 1, -5]]]
    (empty,) = CELLS.collect([outputs(labels=[], scores=[], masks=torch.zeros(0, 1, 60, 80))], [image])
    assert (len(empty), empty.segments) == (0, ())


DETECTIONS = [
    boxes(A, C, (70, 0, 99, 20), labels=[0, 1, 0], scores=[0.9, 0.4, 0.8]), no_objects((100, 100)),
    boxes(A, labels=[2], scores=[0.6]),
]  # fmt: skip


def test_result() -> None:
    result = CELLS.evaluate(DETECTIONS, TARGETS)
    assert (result.headline, result.headline_name, result.loss) == ("box_ap", "box AP", None)
    summary = result.summary()
    assert (summary["n"], summary["objects"], summary["missed"], summary["false"]) == (3, 3, 2, 2)
    assert result.score == summary["box_ap"] == result.epoch_metrics()["box_ap"]
    assert summary["box_ap50"] == pytest.approx((51 / 101 + 1) / 2)
    assert "box_ap_small" in summary
    assert "box_ap_large" not in summary  # no large objects
    assert result.text() == f"box AP {summary['box_ap']:.1%}, AP50 75.2%, 3 images; 2 of 3 classes present"
    rows = {row[0]: row[1:5] for row in result.table().rows}
    assert [column.key for column in result.table().columns[1:5]] == ["objects", "detections", "missed", "false"]
    assert rows == {"RBC": (2, 2, 1, 1), "WBC": (1, 0, 1, 0), "platelet": (0, 1, 0, 1)}
    assert json.loads(json.dumps(result.to_plain()))["classes"]["platelet"]["box_ap"] is None
    assert result.value_text == f"{result.value:.1%}"


def test_worst_images_and_rows() -> None:
    result = CELLS.evaluate(DETECTIONS, TARGETS)
    assert [row[0] for row in result.worst(9)] == [0, 1, 2]
    assert result.worst(1)[0][1:] == ("missed: 1 WBC; false: 1 RBC", "2 RBC, 1 WBC")
    rows = result.image_rows(["a.jpg", "b.jpg", "c.jpg"])
    assert [(prediction.text, target, correct) for prediction, target, correct in rows] == [
        ("2 RBC", "2 RBC|1 WBC", False), ("no objects", "1 RBC", False), ("1 platelet", "", False),
    ]  # fmt: skip
    good = CELLS.evaluate([boxes(A, labels=[0], scores=[0.9])], TARGETS.take(torch.tensor([1])))
    assert good.image_rows(["b.jpg"])[0][2]
    assert good.worst(9) == []


def test_calibration_chooses_thresholds() -> None:
    calibration = CELLS.calibrate(DETECTIONS, TARGETS)
    assert len(calibration.thresholds) == 3
    before, after = (CELLS.evaluate(DETECTIONS, TARGETS, each) for each in (None, calibration))
    assert after.score == before.score  # average precision uses all detections
    assert after.summary()["missed"] < before.summary()["missed"]
    assert CELLS.calibrate([no_objects((9, 9))], TARGETS.take(torch.tensor([1]))) == Calibration(thresholds=(0.5,) * 3)


def test_nothing_to_measure() -> None:
    empty = [no_objects((100, 100))]
    result = CELLS.evaluate(empty, Targets(objects=empty))
    assert math.isnan(result.value)
    assert (result.score, result.value_text) == (0.0, "not measurable")
    assert "not measurable" in result.text()
    assert result.table().rows == ()
    json.dumps(result.to_plain(), allow_nan=False)
    assert result.figures()


def test_result_of_masks_and_keypoints() -> None:
    segment = rectangle(*C)
    truth = Targets(objects=[boxes(C, segments=(segment,))])
    result = InstanceSegmentation(("a",)).evaluate([boxes(C, segments=(segment,), scores=[0.9])], truth)
    assert (result.headline, result.score) == ("mask_ap", pytest.approx(1))
    assert result.epoch_metrics() == {"box_ap": pytest.approx(1), "mask_ap": pytest.approx(1)}
    assert result.text() == "mask AP 100.0%, AP50 100.0%, box AP 100.0%, AP50 100.0%, 1 image"

    points = [[[50.0, 50, 2], [60.0, 60, 2]]]
    truth = Targets(objects=[boxes(C, keypoints=points)])
    own = [boxes(C, keypoints=[[[50.0, 50, 1], [66.0, 60, 1]]], scores=[0.9])]
    measured = KeypointDetection(("a",), skeleton=ENDS).evaluate(own, truth)
    summary = measured.summary()
    assert summary["keypoint_ap"] < summary["box_ap"] == pytest.approx(1)
    assert [summary[f"keypoint_pck{share}"] for share in ("05", "10", "20")] == pytest.approx([0.5, 0.5, 1])
    rows = [dict(zip(("labeled", "pck05", "pck10", "pck20"), row, strict=True)) for row in ((1, 1, 1, 1), (1, 0, 0, 1))]
    assert measured.to_plain()["keypoints"] == dict(zip(ENDS.names, rows, strict=True))


@pytest.mark.parametrize("classes", [1, 80])
def test_figures(classes: int) -> None:
    torch.manual_seed(0)
    task = ObjectDetection(tuple(f"class {i}" for i in range(classes)))
    truths, own = [], []
    for _ in range(40):
        corners = torch.rand(5, 2) * 60
        rows, labels = torch.cat([corners, corners + 1 + torch.rand(5, 2) * 39], 1), torch.randint(0, classes, (5,))
        truths.append(Objects((100, 100), rows, labels))
        own.append(Objects((100, 100), rows + torch.randn(5, 4), labels, torch.rand(5)))
    figures = task.evaluate(own, Targets(objects=truths)).figures()
    assert list(figures) == ["Precision and recall", "Missed and false objects"]
    beside = figures["Missed and false objects"].beside
    assert beside is not None
    assert beside[1].columns == ("class", "size", "missed", "false")
    assert len(beside[1].rows) <= 25
    totals = [int(missed) + int(false) for *_, missed, false in beside[1].rows]
    assert totals == sorted(totals, reverse=True)
    for each in figures.values():
        assert encode(each.figure).startswith(b"\x89PNG")
    left, right = figures["Precision and recall"].figure.axes
    assert (left.get_title("left"), right.get_title("left")) == ("IoU 0.5", "IoU 0.75")
    assert len(right.get_legend().get_texts()) <= 10


def test_annotated_image_has_both_sides() -> None:
    result = CELLS.evaluate(DETECTIONS, TARGETS)
    drawn = result.annotated(0, torch.zeros(3, 100, 100))
    assert drawn.shape[0] == 3
    assert drawn.shape[2] > 2 * 100
