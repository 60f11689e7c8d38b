"""The faults of real data sets are those that their READMEs list."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from convatlas.data.annotation_faults import AnnotationFault
from convatlas.data.check import check_data
from convatlas.data.open import open_data
from convatlas.data.source import Source
from convatlas.tasks.known import KeypointDetection

FAULTS_HEADING = "## Faults and oddities found, visible"

LISTED = {
    "num_keypoints": "keypoint_counts", "keypoints are nested": "nested_keypoints", "no 'area'": "missing_areas",
    "no 'iscrowd'": "missing_crowds", "no 'bbox'": "missing_boxes",
}  # fmt: skip
"""What the README of mmpose_skeletons calls a fault -> its kind."""

UNLISTED = {"unused_categories"}
"""Kinds that READMEs do not count as faults."""


def faults_of(source: Source) -> dict[str, AnnotationFault]:
    return {fault.kind: fault for fault in source.faults}


def boxes_of(source: Source) -> dict[str, list[list[float]]]:
    """Return the boxes [x, y, width, height] of each image, by the last two parts of its path, sorted."""
    boxes = {}
    for samples in source.splits.values():
        for name, objects in zip(samples.names, samples.targets["objects"], strict=True):
            corners = objects.boxes.double()
            sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
            boxes[Path(name).name] = sorted(sides.tolist())
    return boxes


def eval_boxes(file: Path) -> dict[str, list[list[float]]]:
    """Return the boxes of a COCO file, read by hand."""
    data = json.loads(file.read_text())
    names = {image["id"]: Path(image["file_name"]).name for image in data["images"]}
    boxes: dict[str, list[list[float]]] = {name: [] for name in names.values()}
    for each in data["annotations"]:
        boxes[names[each["image_id"]]].append(each["bbox"])
    return {name: sorted(part) for name, part in boxes.items()}


@pytest.mark.parametrize("name", ["bccd_voc", "kitchen_yolo", "rbc_coco", "balloon_via", "glue_tubes_keypoints"])
def test_boxes_equal_those_of_the_evaluation_fixtures(shared_data: Path, name: str) -> None:
    ours, theirs = boxes_of(open_data(shared_data / name)), eval_boxes(shared_data / name / "eval/gt_coco.json")
    assert ours.keys() == theirs.keys()
    for image, boxes in theirs.items():
        expected = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        torch.testing.assert_close(torch.tensor(ours[image]).double().reshape(-1, 4), expected, rtol=0, atol=2e-3)


def test_bccd_voc(shared_data: Path) -> None:
    source = open_data(shared_data / "bccd_voc")
    assert source.classes == ("Platelets", "RBC", "WBC")
    faults = faults_of(source)
    assert {kind: fault.count for kind, fault in faults.items()} == {"degenerate_boxes": 2, "one_based_boxes": 1}
    assert [place.partition(":")[0] for place in faults["degenerate_boxes"].examples] == [
        "Annotations/BloodImage_00338.xml", "Annotations/BloodImage_00343.xml",
    ]  # fmt: skip
    assert [place.partition("): ")[2] for place in faults["degenerate_boxes"].examples] == [
        "(504, 337, 504, 337)", "(181, 329, 181, 329)"
    ]  # fmt: skip
    assert source.notes == ("annotations are read from Annotations/; Annotations_first_release not",)
    first = faults_of(open_data(shared_data / "bccd_voc/Annotations_first_release"))
    assert {kind: fault.count for kind, fault in first.items()} == {
        "degenerate_boxes": 2, "one_based_boxes": 1, "unannotated_images": 11,
    }  # fmt: skip
    readme = (shared_data / "bccd_voc/README.md").read_text()
    listed = re.search(r"photos without XML: \[(.*)\]", readme)
    assert listed
    missing = {Path(place).name for place in first["unannotated_images"].examples}
    assert missing == set(re.findall(r"'([^']+)'", listed[1]))


def test_kitchen_yolo_and_glue_tubes(shared_data: Path) -> None:
    assert open_data(shared_data / "kitchen_yolo").faults == ()
    source = open_data(shared_data / "glue_tubes_keypoints")
    assert source.faults == ()
    keypoints = torch.cat([each.keypoints for each in source.splits["train"].targets["objects"]])
    assert keypoints[..., 2].unique().tolist() == [2]


def test_rbc_coco(shared_data: Path) -> None:
    source = open_data(shared_data / "rbc_coco")
    assert source.classes == ("rbc", "wbc")
    faults = faults_of(source)
    assert {kind: fault.count for kind, fault in faults.items()} == {
        "parent_categories": 3, "no_polygons": 3, "zero_ids": 1
    }  # fmt: skip
    assert sum(fault.count for fault in faults.values()) == 7
    assert faults["zero_ids"].examples[0].endswith("(image image-90_png.rf.03db537223f0999ab453d4b1bdd56439.jpg)")
    assert source.task.short_name == "detect"


def test_balloon_via(shared_data: Path) -> None:
    faults = faults_of(open_data(shared_data / "balloon_via"))
    assert {kind: fault.examples for kind, fault in faults.items()} == {
        "repeated_points": ("train/via_region_data.json: 5253122239_38b1e7f61c_b.jpg region 2: 1 repeated",)
    }


def test_voc100_toy_example(shared_data: Path) -> None:
    folder = shared_data / "voc100_formats/toyexample"
    source, coco = open_data(folder), open_data(folder / "gts_coco_format/toy_example_coco.JSON")
    assert faults_of(source)["unannotated_images"].count == 2
    assert boxes_of(source) == boxes_of(coco)


def test_coco_tiny(shared_data: Path) -> None:
    source = open_data(shared_data / "coco_tiny")
    assert faults_of(source).keys() == {"repeated_points", "unused_categories"}
    assert {split: sum(map(len, part.targets["objects"])) for split, part in source.splits.items()} == {
        "train": 470, "val": 62
    }  # fmt: skip
    people = open_data(shared_data / "coco_tiny/annotations/person_keypoints_train50.json")
    labeled = [
        sum(int((each.keypoints[..., 2] > 0).any(1).sum()) for each in part.targets["objects"])
        for part in people.splits.values()
    ]
    assert labeled == [57, 7]
    assert people.task.short_name == "keypoints"


def test_mmpose_skeletons(shared_data: Path) -> None:
    """All 61 faults, each with its set and annotation."""
    folder = shared_data / "mmpose_skeletons"
    readme = (folder / "README.md").read_text().partition(FAULTS_HEADING)[2]
    expected = Counter(
        (name, next(kind for text, kind in LISTED.items() if text in what), number)
        for name, number, what in re.findall(r"^\* `(\w+)`: annotation (\d+): (.*)$", readme, re.MULTILINE)
    )
    assert sum(expected.values()) == 61
    found: Counter[tuple[str, str, str]] = Counter()
    for each in json.loads((folder / "index.json").read_text()):
        source = open_data(folder / each["set"])
        assert isinstance(source.task, KeypointDetection)
        assert source.task.skeleton.points == each["points"][0]
        for fault in source.faults:
            if fault.kind not in UNLISTED:
                places = (re.search(r"annotation (\d+)", place) for place in fault.examples)
                found.update((each["set"], fault.kind, place[1]) for place in places if place)
    assert found == expected


@pytest.mark.slow
def test_checks_of_the_data_report_the_faults(shared_data: Path) -> None:
    for name in ("bccd_voc", "rbc_coco", "balloon_via", "mmpose_skeletons/mpii"):
        report = check_data(shared_data / name, progress=False)
        kinds = {each.kind: (each.count, each.examples) for each in report.findings}
        for fault in open_data(shared_data / name).faults:
            assert kinds[fault.kind] == (fault.count, fault.examples)
        assert not report.has_errors or {each.kind for each in report.of("error")} == {"leaks"}
