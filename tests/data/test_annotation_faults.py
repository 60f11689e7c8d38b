"""Every fault of annotations is counted with its place, and treated as `KINDS` states it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from annotated_files import TWO, Thing, coco_of, voc_of, write_coco, write_image, write_voc, write_yolo
from convatlas.data.annotation_faults import KINDS, AnnotationFault
from convatlas.data.check import check_data
from convatlas.data.open import open_data
from convatlas.errors import DataError
from convatlas.tasks.detection import masks
from convatlas.tasks.detection.base import objects_of as task_objects
from convatlas.tasks.detection.objects import Objects

ONE = {"a.png": [Thing("cat", (4, 6, 24, 30)), Thing("dog", (10, 10, 60, 40))]}
"""An image of 64 x 48 pixels."""


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in TWO:
        write_image(folder / name)
    return folder


@pytest.fixture
def coco(image_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a COCO file of `ONE` that a function has changed."""

    def write(change: Callable[[dict[str, Any]], Any]) -> Path:
        data = coco_of(ONE)
        change(data)
        shutil.copytree(image_folder, tmp_path / "data", dirs_exist_ok=True)
        path = tmp_path / "data/instances.json"
        path.write_text(json.dumps(data))
        return path

    return write


def faults_of(path: Path) -> dict[str, AnnotationFault]:
    return {fault.kind: fault for fault in open_data(path).faults}


def objects_of(path: Path, name: str = "a.png") -> Objects:
    samples = open_data(path).splits["train"]
    number = [Path(file).name for file in samples.names].index(name)
    return task_objects(samples.targets)[number]


def annotation(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of the first annotation."""
    return lambda data: data["annotations"][0].update(values)


def test_data_without_faults(coco: Callable[..., Path]) -> None:
    assert faults_of(coco(lambda _: None)) == {}


BOXES: dict[str, tuple[dict[str, Any], str, list[float] | None]] = {
    "zero width": ({"bbox": [5, 6, 0, 7]}, "degenerate_boxes", None),
    "negative height": ({"bbox": [5, 6, 7, -8]}, "degenerate_boxes", None),
    "beyond the right edge": ({"bbox": [50, 6, 20, 24]}, "outside_boxes", [50, 6, 64, 30]),
    "beyond the left edge": ({"bbox": [-10, 6, 20, 24]}, "outside_boxes", [0, 6, 10, 30]),
    "off by one": ({"bbox": [4, 6, 60, 43]}, "border_boxes", [4, 6, 64, 48]),
    "outside": ({"bbox": [70, 6, 20, 24]}, "lost_boxes", None),
    "no box": ({"bbox": None}, "missing_boxes", [4, 6, 24, 30]),
    "no area": ({"area": None}, "missing_areas", [4, 6, 24, 30]),
    "no iscrowd": ({"iscrowd": None}, "missing_crowds", [4, 6, 24, 30]),
    "id 0": ({"id": 0}, "zero_ids", [4, 6, 24, 30]),
    "id of another one": ({"id": 2}, "duplicate_ids", [4, 6, 24, 30]),
    "empty polygon": ({"segmentation": []}, "empty_polygons", [4, 6, 24, 30]),
    "repeated point": ({"segmentation": [[4, 6, 4, 6, 24, 6, 24, 30, 4, 30]]}, "repeated_points", [4, 6, 24, 30]),
    "polygon outside": ({"segmentation": [[4, 6, 80, 6, 24, 30]]}, "outside_points", [4, 6, 24, 30]),
    "keypoint outside": ({"keypoints": [70, 6, 2, 5, 7, 1], "num_keypoints": 2}, "outside_keypoints", [4, 6, 24, 30]),
    "wrong count": ({"keypoints": [7, 6, 2, 5, 7, 1], "num_keypoints": 1}, "keypoint_counts", [4, 6, 24, 30]),
    "nested": ({"keypoints": [[7, 6, 2], [5, 7, 1]], "num_keypoints": 2}, "nested_keypoints", [4, 6, 24, 30]),
}  # fmt: skip


@pytest.mark.parametrize("name", BOXES)
def test_an_object(coco: Callable[..., Path], name: str) -> None:
    values, kind, box = BOXES[name]
    path = coco(annotation(**values))
    faults = faults_of(path)
    assert list(faults) == [kind]
    fault = faults[kind]
    number = 2 if kind == "duplicate_ids" else values.get("id", 1)
    assert (fault.count, fault.treatment) == (1, KINDS[kind].treatment)
    assert fault.examples[0].startswith(f"instances.json: annotation {number}")
    boxes = objects_of(path).boxes.tolist()
    assert boxes == ([box] if box else []) + [[10, 10, 60, 40]]
    (finding,) = [each for each in check_data(path, progress=False).findings if each.kind == kind]
    assert (finding.count, finding.examples, finding.severity) == (1, fault.examples, KINDS[kind].severity)
    assert finding.fix.startswith("none needed: ")


def test_the_values_after_the_treatment(coco: Callable[..., Path]) -> None:
    each = objects_of(coco(annotation(segmentation=[[4, 6, 80, 6, 24, 60]])))
    assert each.segments is not None
    assert each.segments[0] == [[4, 6, 64, 6, 24, 48]]
    each = objects_of(coco(annotation(segmentation=[])))
    assert each.segments is not None
    assert each.segments[0] == [[4, 6, 24, 6, 24, 30, 4, 30]]  # its box
    each = objects_of(coco(annotation(keypoints=[70, 6, 2, 5, 7, 1], num_keypoints=2)))
    assert each.keypoints is not None
    assert each.keypoints.tolist() == [[[0, 0, 0], [5, 7, 1]], [[0, 0, 0], [0, 0, 0]]]
    each = objects_of(coco(annotation(area=None)))
    assert each.areas is not None
    assert each.areas.tolist() == [20 * 24, 50 * 30]
    each = objects_of(coco(annotation(bbox=None, segmentation=[], keypoints=[7, 6, 2, 9, 12, 1], num_keypoints=2)))
    assert each.boxes[0].tolist() == [7, 6, 9, 12]
    each = objects_of(coco(annotation(iscrowd=None)))
    assert each.crowd is not None
    assert each.crowd.tolist() == [False, False]


def test_objects_that_are_annotated_twice(coco: Callable[..., Path]) -> None:
    """A copy is dropped; an object of another class, or with another mask, is no copy."""

    def change(data: dict[str, Any]) -> None:
        original = data["annotations"][0]
        data["annotations"] += [
            original | {"id": 3}, original | {"id": 4, "category_id": 2},
            original | {"id": 5, "segmentation": [[4, 6, 24, 6, 24, 30]]},
        ]  # fmt: skip

    path = coco(change)
    assert faults_of(path)["duplicate_objects"].examples == ("instances.json: annotation 3",)
    assert len(objects_of(path)) == 4


def test_categories(coco: Callable[..., Path]) -> None:
    def parent(data: dict[str, Any]) -> None:
        names = {0: "animals", 3: "bird", 2: "dog", 1: "cat"}
        parents = {0: "none", 3: "animals", 2: "animals", 1: "animals"}
        data["categories"] = [{"id": i, "name": name, "supercategory": parents[i]} for i, name in names.items()]

    path = coco(parent)
    source = open_data(path)
    assert source.classes == ("cat", "dog", "bird")
    faults = faults_of(path)
    assert faults["parent_categories"].examples == ("instances.json: animals",)
    assert faults["unused_categories"].examples == ("instances.json: bird",)
    (lacking,) = [each for each in check_data(path, progress=False).findings if each.kind == "missing_classes"]
    assert (lacking.severity, lacking.text) == ("warning", "the train split lacks bird")

    def twice(data: dict[str, Any]) -> None:
        data["categories"].append({"id": 3, "name": "dog"})

    with pytest.raises(DataError, match=r"instances.json: dog \(ids 2 and 3\): category has the name of another one"):
        open_data(coco(twice))
    path = coco(annotation(category_id=9))
    with pytest.raises(DataError, match=r"annotation 1: category_id 9: object is of an unknown category; add the cat"):
        open_data(path)
    findings = [each for each in check_data(path, progress=False).findings if each.severity == "error"]
    assert [(each.kind, each.count) for each in findings] == [("unknown_categories", 1)]
    assert not findings[0].fix.startswith("none needed")


def test_all_polygons_of_a_file_are_empty(coco: Callable[..., Path]) -> None:
    def change(data: dict[str, Any]) -> None:
        for each in data["annotations"]:
            each["segmentation"] = []

    path = coco(change)
    assert list(faults_of(path)) == ["no_polygons"]
    assert open_data(path).task.short_name == "detect"
    assert objects_of(path).segments is None


def test_images(coco: Callable[..., Path]) -> None:
    def missing(data: dict[str, Any]) -> None:
        data["images"].append({"id": 2, "file_name": "lost.png", "width": 64, "height": 48})
        data["annotations"][1]["image_id"] = 2

    path = coco(missing)
    (place,) = faults_of(path)["missing_images"].examples
    assert place.startswith("instances.json: image 2: ")
    assert place.endswith("data/lost.png")
    errors = [each for each in check_data(path, progress=False).findings if each.severity == "error"]
    assert [each.kind for each in errors] == ["missing_images"]

    def twice(data: dict[str, Any]) -> None:
        data["images"].append(data["images"][0] | {"id": 2})
        data["annotations"][1]["image_id"] = 2
        data["annotations"].append(data["annotations"][0] | {"id": 3, "image_id": 2})

    path = coco(twice)
    assert {kind: fault.count for kind, fault in faults_of(path).items()} == {
        "duplicate_images": 1, "duplicate_objects": 1,
    }  # fmt: skip
    assert len(open_data(path).splits["train"]) == 1
    assert len(objects_of(path)) == 2

    def no_size(data: dict[str, Any]) -> None:
        del data["images"][0]["width"]

    path = coco(no_size)
    assert list(faults_of(path)) == ["missing_sizes"]
    assert objects_of(path).size == (48, 64)


def test_another_size_of_equal_proportions_scales(coco: Callable[..., Path]) -> None:
    runs = masks.encode(torch.ones(1, 96, 128, dtype=torch.uint8))[0]

    def change(data: dict[str, Any]) -> None:
        data["images"][0] |= {"width": 128, "height": 96}
        data["annotations"][0] |= {"keypoints": [20, 30, 2], "num_keypoints": 1}
        data["annotations"][1] |= {"segmentation": runs}

    path = coco(change)
    assert faults_of(path)["scaled_sizes"].examples == ("instances.json: image 1: 128 x 96, the file has 64 x 48",)
    each = objects_of(path)
    assert each.boxes.tolist() == [[2, 3, 12, 15], [5, 5, 30, 20]]
    assert each.areas is not None
    assert each.areas.tolist() == [120, 375]
    assert each.keypoints is not None
    assert each.keypoints[0].tolist() == [[10, 15, 2]]
    assert each.segments is not None
    assert masks.to_dense([each.segments[1]], (48, 64)).all()
    with pytest.raises(DataError, match="64 x 64, the file has 64 x 48: image has other proportions than its annot"):
        open_data(coco(lambda data: data["images"][0].update(height=64)))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_annotations_of_the_unrotated_image(tmp_path: Path, orientation: int) -> None:
    """A mark that is annotated in the stored pixels is where the oriented pixels show it."""
    from PIL import Image, ImageOps

    stored = Image.new("RGB", (64, 48))
    stored.paste((255, 255, 255), (4, 6, 24, 30))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "data").mkdir()
    stored.save(tmp_path / "data/a.png", exif=exif)
    data = coco_of({"a.png": [Thing("cat", (4, 6, 24, 30)), Thing("dog", (4, 6, 24, 30))]})
    dense = torch.zeros(1, 48, 64, dtype=torch.uint8)
    dense[:, 6:30, 4:24] = 1
    data["annotations"][1]["segmentation"] = masks.encode(dense)[0]
    for each in data["annotations"]:
        each |= {"keypoints": [4, 6, 2], "num_keypoints": 1}
    path = tmp_path / "data/instances.json"
    path.write_text(json.dumps(data))
    faults = faults_of(path)
    if orientation < 5:  # the size does not tell which way the annotation is
        assert faults == {}
        return
    assert faults["rotated_annotations"].examples == (f"instances.json: image 1: EXIF orientation {orientation}",)
    with Image.open(tmp_path / "data/a.png") as image:
        box = ImageOps.exif_transpose(image).getbbox() or ()
    each = objects_of(path)
    assert (each.size, each.boxes.tolist()) == ((64, 48), [list(box)] * 2)
    assert each.segments is not None
    first, second = masks.to_dense(each.segments, each.size)
    assert first.equal(second)
    assert each.keypoints is not None
    x, y, _ = each.keypoints[0, 0].tolist()
    assert (x in box[::2], y in box[1::2]) == (True, True)


def test_voc(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a.png": TWO["a.png"], "b.png": [Thing("dog", (1, 1, 64, 48))]})
    faults = faults_of(tmp_path)
    assert {kind: (fault.count, fault.examples) for kind, fault in faults.items()} == {
        "one_based_boxes": (1, ("train: 3 boxes",))
    }
    assert objects_of(tmp_path).boxes.tolist() == [[4, 6, 24, 30], [10, 10, 60, 40]]
    (tmp_path / "Annotations/a.xml").write_text(voc_of([Thing("cat", (0, 5, 24, 30)), Thing("cat", (7, 7, 7, 7))]))
    write_image(tmp_path / "JPEGImages/c.png")
    faults = faults_of(tmp_path)
    assert {kind: fault.examples for kind, fault in faults.items()} == {
        "unannotated_images": ("Annotations: JPEGImages/c.png",),
        "degenerate_boxes": ("Annotations/a.xml: object 2 (cat): (7, 7, 7, 7)",),
    }
    shutil.move(tmp_path / "JPEGImages/a.png", tmp_path / "a.jpg")
    (place,) = faults_of(tmp_path)["missing_images"].examples
    assert place.startswith("Annotations/a.xml: ")


def test_coordinates_from_one(tmp_path: Path) -> None:
    boxes = [(1, 1 + i, 20 + i, 30) for i in range(15)] + [(1 + i, 3, 64, 48) for i in range(15)]
    path = write_coco(tmp_path / "x", {"a.png": [Thing("cat", box) for box in boxes]})
    assert faults_of(path)["one_based_boxes"].examples == ("train: 30 boxes",)
    path = write_coco(tmp_path / "y", {"a.png": [Thing("cat", (0, 3, 10, 20)), *(Thing("cat", box) for box in boxes)]})
    assert faults_of(path) == {}


def test_yolo(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    label = tmp_path / "labels/train/a.txt"
    label.write_text("0 0.5 0.5 0.2 0.2\n1 0.99 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0 0.2\n")
    (tmp_path / "labels/train/lost.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "labels/train/b.txt").unlink()
    faults = faults_of(tmp_path)
    assert {kind: fault.examples for kind, fault in faults.items() if kind != "missing_images"} == {
        "degenerate_boxes": ("labels/train/a.txt: line 4: (32, 19.2, 32, 28.8)",),
        "outside_boxes": ("labels/train/a.txt: line 2: (56.96, 19.2, 69.76, 28.8) in 64 x 48",),
        "duplicate_objects": ("labels/train/a.txt: line 3",),
        "missing_label_files": ("images/train/b.png",),
    }
    assert faults["missing_images"].count == 1


def test_the_text_of_a_fault() -> None:
    fault = AnnotationFault("degenerate_boxes", "drop", 3, ("a: 1", "b: 2", "c: 3"))
    assert fault.text() == "3 boxes have no area: dropped (a: 1, b: 2 and 1 more)"
    assert fault.shortened(1).examples == ("a: 1",)
    assert AnnotationFault.from_plain(fault.to_plain()) == fault


def test_findings_on_annotated_data(tmp_path: Path, convatlas: Callable[..., Any]) -> None:
    """Unreadable images, duplicates, leaks, images without objects and rare classes are findings, as for classes."""
    many = {f"{i}.png": [Thing("cat", (1, 2, 30 + i, 40))] * 1 for i in range(12)}
    images = {**many, "none.png": [], "dog.png": [Thing("dog", (0, 0, 64, 48))]}
    write_coco(tmp_path, images, name="instances_train.json")
    write_coco(tmp_path, {"val.png": [Thing("cat", (1, 2, 30, 40))]}, name="instances_val.json")
    shutil.copy(tmp_path / "0.png", tmp_path / "val.png")
    (tmp_path / "1.png").write_bytes(b"")
    report = check_data(tmp_path, progress=False)
    found = {each.kind: (each.severity, each.count) for each in report.findings}
    assert found == {
        "leaks": ("error", 1), "unreadable_images": ("error", 1), "duplicates": ("warning", 1),
        "missing_classes": ("warning", 1), "images_without_objects": ("note", 1), "rare_objects": ("note", 1),
    }  # fmt: skip
    assert report.counts == {"train": [11, 1], "val": [1, 0]}
    train = report.to_plain()["objects"]["train"]
    assert (train["images"], train["images_without_objects"], train["objects"]) == (13, 1, 12)
    assert (train["small"], train["medium"], train["large"], train["masks"]) == (0, 12, 0, 12)
    outcome = convatlas("data", "check", tmp_path)
    assert outcome.code == 1
    assert "train: 12 objects in 13 images: 0 small, 12 medium, 0 large boxes; 12 with masks" in outcome.out
