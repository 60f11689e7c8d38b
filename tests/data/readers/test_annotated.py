"""Readers of annotated images: every format gives the same objects."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from annotated_files import (
    SIDE,
    TWO,
    Thing,
    coco_of,
    voc_of,
    write_boxes_table,
    write_coco,
    write_id_masks,
    write_image,
    write_via,
    write_voc,
    write_yolo,
)
from convatlas.data.open import open_data
from convatlas.data.source import Source
from convatlas.errors import DataError
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.detection.skeleton import PERSON, Skeleton
from convatlas.tasks.known import KeypointDetection

WRITERS: dict[str, Callable[[Path], Path]] = {
    "coco": write_coco,
    "coco folder": lambda folder: write_coco(folder).parent,
    "voc": write_voc,
    "yolo": write_yolo,
    "yolo yaml": lambda folder: write_yolo(folder) / "data.yaml",
    "yolo polygons": lambda folder: write_yolo(folder, polygons=True),
    "yolo classes.txt": lambda folder: write_yolo(folder, yaml=False),
    "via 1": lambda folder: write_via(folder, version=1),
    "via 2": write_via,
    "csv corners": write_boxes_table,
    "csv sides": lambda folder: write_boxes_table(folder, corners=False),
}


def objects_by_name(source: Source, split: str = "train") -> dict[str, Objects]:
    samples = source.splits[split]
    return {Path(name).name: each for name, each in zip(samples.names, samples.targets["objects"], strict=True)}


def skeleton_of(source: Source) -> Skeleton:
    assert isinstance(source.task, KeypointDetection)
    return source.task.skeleton


@pytest.mark.parametrize("format", WRITERS)
def test_every_format_gives_the_same_objects(tmp_path: Path, format: str) -> None:
    source = open_data(WRITERS[format](tmp_path / "data"))
    assert source.classes == ("cat", "dog")
    objects = objects_by_name(source)
    assert sorted(objects) == ["a.png", "b.png"]
    for name, things in TWO.items():
        each = objects[name]
        assert each.size == (48, 64)
        assert [source.classes[label] for label in each.labels.tolist()] == [thing.label for thing in things]
        torch.testing.assert_close(each.boxes, torch.tensor([thing.box for thing in things]).float(), rtol=0, atol=1e-4)
        assert each.boxes.dtype == torch.float32
        assert each.labels.dtype == torch.int64
    with_masks = "polygons" in format or "via" in format or "coco" in format
    assert source.task.short_name == ("segment" if with_masks else "detect")
    assert not [fault for fault in source.faults if fault.severity == "warning"]
    assert open_data(source.location).classes == source.classes


@pytest.mark.parametrize("files", [False, True], ids=["ids", "files"])
def test_masks_as_images(tmp_path: Path, files: bool) -> None:
    images = {"a.png": [Thing("object", (4, 6, 24, 30)), Thing("object", (30, 10, 60, 40))], "b.png": []}
    source = open_data(write_id_masks(tmp_path / "data", images, files=files))
    objects = objects_by_name(source)
    assert (source.task.short_name, source.classes, len(objects["b.png"])) == ("segment", ("object",), 0)
    torch.testing.assert_close(objects["a.png"].boxes, torch.tensor([thing.box for thing in images["a.png"]]).float())


def test_masks_in_folders_of_each_image_and_of_penn_fudan(tmp_path: Path) -> None:
    for name in ("x1", "x2"):
        write_image(tmp_path / "dsb" / name / "images" / f"{name}.png")
        for i in range(2):
            mask = Image.new("L", (64, 48))
            mask.paste(255, (10 * i, 5, 10 * i + 8, 20))
            (tmp_path / "dsb" / name / "masks").mkdir(exist_ok=True)
            mask.save(tmp_path / "dsb" / name / "masks" / f"{i}.png")
    objects = objects_by_name(open_data(tmp_path / "dsb"))
    assert objects["x1.png"].boxes.tolist() == [[0, 5, 8, 20], [10, 5, 18, 20]]
    penn = write_id_masks(tmp_path / "penn", {"a.png": [Thing("object", (4, 6, 24, 30))]})
    (penn / "images").rename(penn / "PNGImages")
    (penn / "masks").rename(penn / "PedMasks")
    assert objects_by_name(open_data(penn))["a.png"].boxes.tolist() == [[4, 6, 24, 30]]


def test_images_without_objects_are_kept(tmp_path: Path) -> None:
    images = {**TWO, "empty.png": []}
    for name, write in {"coco": write_coco, "voc": write_voc, "yolo": write_yolo, "csv": write_boxes_table}.items():
        source = open_data(write(tmp_path / name, images))
        empty = objects_by_name(source)["empty.png"]
        assert (len(empty), empty.size, empty.boxes.shape) == (0, (48, 64), (0, 4))
        assert [fault.kind for fault in source.faults if fault.kind == "missing_label_files"] == (
            ["missing_label_files"] if name == "yolo" else []
        )


def test_coco_layouts(tmp_path: Path) -> None:
    """Images beside the file, in a folder of its name or of its split, in images/; splits by name or by folder."""
    contents = {"train": TWO, "val": {"c.png": [Thing("cat", (1, 2, 30, 40))]}}

    def write(path: Path, split: str, images: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(coco_of(contents[split], ["cat", "dog"])), encoding="utf-8")
        for name in contents[split]:
            write_image(images / name)

    layouts = {
        "official": lambda root, split: (root / f"annotations/instances_{split}2017.json", root / f"{split}2017"),
        "images": lambda root, split: (root / f"annotations/{split}.json", root / "images" / split),
        "roboflow": lambda root, split: (root / split / "_annotations.coco.json", root / split),
        "top": lambda root, split: (root / f"{split}.json", root / "images"),
        "one name": lambda root, split: (root / f"boxes_{split}.json", root / f"boxes_{split}"),
    }
    for name, layout in layouts.items():
        for split in contents:
            write(*(lambda pair, split: (pair[0], split, pair[1]))(layout(tmp_path / name, split), split))
        source = open_data(tmp_path / name)
        assert {split: len(part) for split, part in source.splits.items()} == {"train": 2, "val": 1}, name
        assert not source.faults or {fault.kind for fault in source.faults} == {"unused_categories"}, name
        assert all(Path(each).is_file() for part in source.splits.values() for each in part.names), name
        file = layout(tmp_path / name, "train")[0]
        assert len(open_data(file).splits) == (1 if name == "roboflow" else 2), name
    alone = open_data(tmp_path / "official/annotations/instances_val2017.json")
    assert {split: len(part) for split, part in alone.splits.items()} == {"train": 1}


def test_several_annotation_files_of_coco(tmp_path: Path) -> None:
    write_coco(tmp_path, name="x.json")
    shutil.copy(tmp_path / "x.json", tmp_path / "y.json")
    with pytest.raises(DataError, match=r"contains the annotation files x.json, y.json; give one of them"):
        open_data(tmp_path)
    assert len(open_data(tmp_path / "y.json").splits["train"]) == 2
    for name in ("instances_train.json", "person_keypoints_train.json", "captions_train.json"):
        shutil.copy(tmp_path / "x.json", tmp_path / name)
    (tmp_path / "x.json").unlink()
    (tmp_path / "y.json").unlink()
    (note,) = open_data(tmp_path).notes
    assert note.startswith("annotations of instances_train.json are used; to use captions_train.json, person_keypoi")


def test_keypoints_of_coco(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "data")
    data = json.loads(path.read_text())
    for category in data["categories"]:
        category |= {"keypoints": ["left_eye", "right_eye", "nose"], "skeleton": [[1, 3], [2, 3], [9, 1]]}
    for each in data["annotations"]:
        each |= {"keypoints": [5, 7, 2, 8, 9, 1, 0, 0, 0], "num_keypoints": 2}
    path.write_text(json.dumps(data))
    source = open_data(path)
    skeleton = skeleton_of(source)
    assert (skeleton.names, skeleton.edges) == (("left_eye", "right_eye", "nose"), ((0, 2), (1, 2)))
    assert skeleton.flip_pairs == ((0, 1),)
    assert source.notes == ("1 of 3 edges of the skeleton name no keypoint: not drawn",)
    keypoints = objects_by_name(source)["a.png"].keypoints
    assert keypoints is not None
    assert keypoints[0].tolist() == [[5, 7, 2], [8, 9, 1], [0, 0, 0]]
    assert source.task.short_name == "keypoints"
    for name, fields in {"detect": (False, False), "segment": (True, False), "keypoints": (False, True)}.items():
        changed = source.for_task(name)
        each = objects_by_name(changed)["a.png"]
        assert (each.segments is not None, each.keypoints is not None) == fields
        assert (changed.task.short_name, changed.classes) == (name, source.classes)
    for each in data["categories"]:
        each["skeleton"] = [[0, 2]]
        each["sigmas"] = [0.1, 0.1, 0.2]
    path.write_text(json.dumps(data))
    skeleton = skeleton_of(open_data(path))
    assert (skeleton.edges, skeleton.sigmas) == (((0, 2),), (0.1, 0.1, 0.2))


def test_keypoints_of_different_numbers_are_not_used(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "data")
    data = json.loads(path.read_text())
    for i, each in enumerate(data["annotations"], 1):
        each |= {"keypoints": [5, 7, 2] * i, "num_keypoints": i}
    path.write_text(json.dumps(data))
    source = open_data(path)
    assert (source.task.short_name, source.notes) == (
        "segment", ("objects have 1, 2, 3 keypoints: keypoints are not used",)
    )  # fmt: skip


def test_run_lengths_of_coco(tmp_path: Path) -> None:
    """Compressed and uncompressed run lengths are the same mask; a crowd stays one."""
    from pycocotools import mask

    dense = torch.zeros(48, 64, dtype=torch.uint8)
    dense[5:20, 10:30] = 1
    runs = mask.encode(dense.numpy().copy(order="F"))
    counts = [0] if dense.T.flatten()[0] else []
    flat = dense.T.flatten()
    changes = (flat.diff() != 0).nonzero().flatten() + 1
    edges = torch.cat([torch.tensor([0]), changes, torch.tensor([len(flat)])])
    counts += edges.diff().tolist()
    path = write_coco(tmp_path / "data", {"a.png": TWO["a.png"]})
    data = json.loads(path.read_text())
    data["annotations"][0] |= {"segmentation": {"size": [48, 64], "counts": counts}, "iscrowd": 1}
    data["annotations"][1] |= {"segmentation": {"size": [48, 64], "counts": runs["counts"].decode()}}
    path.write_text(json.dumps(data))
    each = objects_by_name(open_data(path))["a.png"]
    assert each.segments is not None
    assert each.crowd is not None
    assert each.segments[0] == each.segments[1] == {"size": [48, 64], "counts": runs["counts"].decode()}
    assert each.crowd.tolist() == [True, False]


def test_voc_splits_and_folders(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "data", {**TWO, "c.png": [Thing("cat", (1, 2, 30, 40))], "d.png": []})
    sets = folder / "ImageSets/Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("a\nb 1\n")
    (sets / "val.txt").write_text("c\n")
    (sets / "cat_train.txt").write_text("a 1\n")
    source = open_data(folder)
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 2, "val": 1}
    assert source.notes == ("1 annotated images are in no split of ImageSets/Main and are not used",)
    shutil.rmtree(folder / "ImageSets")
    shutil.copytree(folder / "Annotations", folder / "Annotations_old")
    assert open_data(folder).notes == ("annotations are read from Annotations/; Annotations_old not",)
    (folder / "Annotations").rename(folder / "Annotations_new")
    with pytest.raises(DataError, match="Annotations_new, Annotations_old contain XML files; give one of them"):
        open_data(folder)
    assert len(open_data(folder / "Annotations_old").splits["train"]) == 4


def test_voc_beside_images_and_with_a_wrong_filename(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(voc_of(TWO["a.png"], filename="something"))
    assert len(objects_by_name(open_data(tmp_path))["a.png"]) == 2


def test_images_three_folders_above_their_annotations(tmp_path: Path) -> None:
    """The layout gts/FORMAT/Annotations beside images/; an image near the annotations that has none is not chosen."""
    write_voc(tmp_path / "x")
    shutil.copytree(tmp_path / "x/Annotations", tmp_path / "data/gts/imagenet/Annotations")
    shutil.copytree(tmp_path / "x/JPEGImages", tmp_path / "data/images")
    write_image(tmp_path / "data/gts/imagenet/Annotations/preview.png")
    source = open_data(tmp_path / "data/gts/imagenet")
    assert sorted(objects_by_name(source)) == ["a.png", "b.png"]
    assert source.faults == ()


def test_voc_in_folders_with_equal_names(tmp_path: Path) -> None:
    for name, things in {"x/a.png": TWO["a.png"], "y/a.png": TWO["b.png"]}.items():
        write_image(tmp_path / "JPEGImages" / name)
        file = tmp_path / "Annotations" / name.replace(".png", ".xml")
        file.parent.mkdir(parents=True)
        file.write_text(voc_of(things))
    samples = open_data(tmp_path).splits["train"]
    numbers = {Path(name).parent.name: len(each) for name, each in zip(samples.names, samples.targets["objects"],
                                                                      strict=True)}  # fmt: skip
    assert numbers == {"x": 2, "y": 1}


@pytest.mark.parametrize("suffix", [".png", ""])
def test_a_table_of_open_images(tmp_path: Path, suffix: str) -> None:
    """Shares of the sides with decimal commas, xmin, xmax, ymin, ymax; the suffix of images may be missing."""
    (width, height), rows = SIDE, ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax"]
    for name, things in TWO.items():
        write_image(tmp_path / "images" / name)
        for thing in things:
            x1, y1, x2, y2 = thing.box
            shares = [f'"{value:g}"'.replace(".", ",") for value in (x1 / width, x2 / width, y1 / height, y2 / height)]
            rows.append(f"{Path(name).stem}{suffix},,{thing.label},,{','.join(shares)}")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/all_bounding_boxes.csv").write_text("\n".join(rows))
    objects = objects_by_name(open_data(tmp_path / "csv"))
    for name, things in TWO.items():
        boxes = torch.tensor([thing.box for thing in things]).float()
        torch.testing.assert_close(objects[name].boxes, boxes, rtol=0, atol=1e-3)
    shutil.copy(tmp_path / "csv/all_bounding_boxes.csv", tmp_path / "csv/other.csv")
    with pytest.raises(DataError, match=r"contains the tables of boxes all_bounding_boxes.csv, other.csv; give one"):
        open_data(tmp_path / "csv")


@pytest.mark.parametrize("prefix", ["", "./", "../"])
def test_yolo_lists_of_images(tmp_path: Path, prefix: str) -> None:
    """Paths in a list start from the folder of the list or from that of the data."""
    write_yolo(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text(f"{prefix}images/train/a.png\n\n{prefix}images/train/b.png\n")
    text = (tmp_path / "data.yaml").read_text()
    (tmp_path / "data.yaml").write_text(text.replace("train: images/train", "train: [lists/train.txt]"))
    source = open_data(tmp_path)
    assert (sorted(objects_by_name(source)), source.faults) == (["a.png", "b.png"], ())


def test_yolo_keypoints(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a.png": [Thing("cat", (4, 6, 24, 30))]})
    label = folder / "labels/train/a.txt"
    text = (folder / "data.yaml").read_text()
    label.write_text(label.read_text() + " 0.5 0.5 2 0.25 0.25 1")
    (folder / "data.yaml").write_text(text + "kpt_shape: [2, 3]\nflip_idx: [1, 0]\n")
    source = open_data(folder)
    assert skeleton_of(source).flip_pairs == ((0, 1),)
    keypoints = objects_by_name(source)["a.png"].keypoints
    assert keypoints is not None
    assert keypoints.tolist() == [[[32, 24, 2], [16, 12, 1]]]
    label.write_text("0 0.2 0.4 0.3 0.5" + " 0.5 0.5" * 16 + " 0 0")
    (folder / "data.yaml").write_text(text + "kpt_shape: [17, 2]\n")
    source = open_data(folder)
    assert skeleton_of(source) == PERSON
    keypoints = objects_by_name(source)["a.png"].keypoints
    assert keypoints is not None
    assert keypoints[0, :, 2].tolist() == [2] * 16 + [0]


def test_yolo_of_roboflow_and_without_names(tmp_path: Path) -> None:
    """Paths that begin with ../ and a folder for each split."""
    write_yolo(tmp_path / "x")
    for split in ("train", "valid"):
        for kind in ("images", "labels"):
            shutil.copytree(tmp_path / "x" / kind / "train", tmp_path / "data" / split / kind)
    file = tmp_path / "data/data.yaml"
    file.write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")
    assert {split: len(part) for split, part in open_data(tmp_path / "data").splits.items()} == {"train": 2, "val": 2}
    file.unlink()
    source = open_data(tmp_path / "data")
    assert (source.classes, list(source.splits)) == (("0", "1"), ["train", "val"])
    assert source.notes == ("the names of the classes are not stated: they are numbers",)


def test_yolo_of_darknet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label files alone: the images are in the nearest folder of images."""
    write_yolo(tmp_path / "x", yaml=False)
    shutil.copytree(tmp_path / "x/images/train", tmp_path / "images")
    shutil.copytree(tmp_path / "x/labels/train", tmp_path / "formats/yolo/obj_train_data")
    shutil.copy(tmp_path / "x/classes.txt", tmp_path / "formats/yolo/obj.names")
    source = open_data(tmp_path / "formats/yolo")
    assert (source.classes, len(objects_by_name(source)["a.png"])) == (("cat", "dog"), 2)
    assert source.faults == ()
    monkeypatch.chdir(tmp_path / "x")
    assert len(objects_by_name(open_data("."))["a.png"]) == 2


def test_labelme(tmp_path: Path) -> None:
    polygon = [[4, 6], [24, 6], [24, 30]]
    shapes: list[dict[str, Any]] = [
        {"label": "cat", "points": polygon, "shape_type": "polygon", "group_id": None},
        {"label": "dog", "points": [[60, 40], [10, 10]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[20, 20], [20, 30]], "shape_type": "circle", "group_id": 1},
        {"label": "dog", "points": [[40, 4], [44, 4], [44, 9]], "shape_type": "polygon", "group_id": 1},
        {"label": "dog", "points": [[20, 20]], "shape_type": "point"},
    ]
    contents = {"version": "5", "flags": {}, "shapes": shapes, "imageHeight": 48, "imageWidth": 64}
    (tmp_path / "gts/labelme").mkdir(parents=True)
    for name in ("a", "b"):
        write_image(tmp_path / f"images/{name}.png")
        path = tmp_path / f"gts/labelme/{name}.json"
        path.write_text(json.dumps(contents | {"imagePath": f"..\\x\\{name}.png"}))
    source = open_data(tmp_path / "gts/labelme")
    each = objects_by_name(source)["b.png"]
    assert each.boxes.tolist() == [[4, 6, 24, 30], [10, 10, 60, 40], [10, 4, 44, 30]]
    assert source.notes == ("2 points, lines and painted masks are not used",)
    shapes[0]["points"] = [[1, 2]]
    path.write_text(json.dumps(contents | {"imagePath": "b.png"}))
    with pytest.raises(DataError, match=r"b\.json: shape 1: must be a polygon of three or more points, .* of 1"):
        open_data(tmp_path / "gts/labelme")


def test_cvat(tmp_path: Path) -> None:
    xml = """<annotations><version>1.1</version>
      <image id="0" name="a.png" subset="Train" width="64" height="48">
        <box label="cat" xtl="4" ytl="6" xbr="24" ybr="30" occluded="0"/>
        <polygon label="dog" points="10.0,10.0;60.0,10.0;60.0,40.0"/><tag label="x"/>
        <ellipse label="dog" cx="20" cy="20" rx="10" ry="5" rotation="90"/><points label="dog" points="1,2"/></image>
      <image id="1" name="b.png" subset="Validation" width="64" height="48"/></annotations>"""
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "images" / name)
    path = tmp_path / "annotations.xml"
    path.write_text(xml)
    source = open_data(tmp_path)
    assert (list(source.splits), source.classes) == (["train", "val"], ("cat", "dog"))
    boxes = objects_by_name(source)["a.png"].boxes
    torch.testing.assert_close(boxes, torch.tensor([[4, 6, 24, 30], [10, 10, 60, 40], [15, 10, 25, 30]]).float())
    assert len(objects_by_name(open_data(path))) == 1
    for wrong, by, message in (
        ('xtl="4"', 'xtl="nan"', "image 0: shape 1: xtl must be a number"),
        ('label="cat"', "", "shape 1: has no label"),
        ("60.0,10.0;", "60.0;", "a polygon must have three or more points"),
        ("<version>", "<track/><version>", "tracks"),
    ):
        path.write_text(xml.replace(wrong, by))
        with pytest.raises(DataError, match=message):
            open_data(path)


def test_via_shapes(tmp_path: Path) -> None:
    folder = write_via(tmp_path / "data", {"a.png": TWO["a.png"]}, version=1)
    path = folder / "via_region_data.json"
    data = json.loads(path.read_text())
    shapes = [
        {"name": "rect", "x": 4, "y": 6, "width": 20, "height": 24}, {"name": "circle", "cx": 20, "cy": 20, "r": 10},
        {"name": "ellipse", "cx": 20, "cy": 20, "rx": 10, "ry": 5}, {"name": "point", "cx": 3, "cy": 3},
    ]  # fmt: skip
    (entry,) = data.values()
    entry["regions"] = {str(i): {"shape_attributes": shape, "region_attributes": {}} for i, shape in enumerate(shapes)}
    path.write_text(json.dumps(data))
    source = open_data(folder)
    boxes = objects_by_name(source)["a.png"].boxes.tolist()
    assert boxes == [[4, 6, 24, 30], [10, 10, 30, 30], [10, 15, 30, 25]]
    assert source.notes == (
        "regions have no attributes: all objects are of one class, object",
        "1 points and lines are not objects and are not used",
    )


def test_tables_of_boxes(tmp_path: Path) -> None:
    path = write_boxes_table(tmp_path / "data")
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match="the first line must contain the names of the columns, such as file,x1,y1"):
        open_data(path)
    path.write_text('ImageID,LabelName,XMin,XMax,YMin,YMax\na.png,cat,"0,25","0,5",0,1\nb.png,dog,0.5,1,0.25,0.75\n')
    source = open_data(path)
    assert objects_by_name(source)["a.png"].boxes.tolist() == [[16, 0, 32, 48]]
    assert source.notes == ("coordinates are shares of the images' sides",)
    path.write_text("filename,width,height,class,xmin,ymin,xmax,ymax,split\na.png,64,48,cat,1,2,3,4,\n"
                    "b.png,64,48,cat,1,2,3,4,test\n")  # fmt: skip
    assert list(open_data(path).splits) == ["train", "test"]


def test_one_json_file_for_each_image(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_image(tmp_path / split / "images/a.jpg")
        (tmp_path / split / "annotations").mkdir()
        (tmp_path / split / "annotations/a.json").write_text(
            json.dumps({"bboxes": [[1, 2, 30, 40]], "keypoints": [[[5, 6, 1], [7, 8, 0]]]})
        )
    source = open_data(tmp_path)
    assert (source.task.short_name, list(source.splits)) == ("keypoints", ["train", "test"])
    keypoints = objects_by_name(source)["a.jpg"].keypoints
    assert keypoints is not None
    assert keypoints.tolist() == [[[5, 6, 2], [7, 8, 0]]]


def test_a_skeleton_of_its_own(tmp_path: Path) -> None:
    """skeleton.yaml in the folder of the data names its keypoints."""
    path = write_coco(tmp_path)
    data = json.loads(path.read_text())
    for each in data["annotations"]:
        each |= {"keypoints": [5, 7, 2, 8, 9, 1], "num_keypoints": 2}
    path.write_text(json.dumps(data))
    assert open_data(path).notes == ("the names of the 2 keypoints are not stated: they are numbered from 1",)
    own = Skeleton(("head", "tail"), ((0, 1),), (), (0.1, 0.2))
    own.write(tmp_path / "skeleton.yaml")
    for data_set in (path, tmp_path):
        source = open_data(data_set)
        assert (skeleton_of(source), source.notes) == (own, ("the skeleton is that of skeleton.yaml",))
    Skeleton(("head",)).write(tmp_path / "skeleton.yaml")
    with pytest.raises(DataError, match=r"skeleton\.yaml: names must be the 2 keypoints of the annotations, got 1"):
        open_data(path)


def test_a_task_that_the_data_does_not_allow(tmp_path: Path) -> None:
    source = open_data(write_voc(tmp_path / "data"))
    with pytest.raises(DataError, match="the task segment needs masks, which no object of the data has; annotate them"):
        source.for_task("segment")
    with pytest.raises(DataError, match="the task keypoints needs keypoints"):
        source.for_task("keypoints")
    with pytest.raises(DataError, match=r"the data is for the task detect .object detection., not for classify"):
        source.for_task("classify")
    with pytest.raises(DataError, match=r"task must be one of classify, .* got 'detects' .did you mean detect"):
        source.for_task("detects")
    for name in ("cat/a.png", "dog/a.png"):
        write_image(tmp_path / "classes" / name)
    classes = open_data(tmp_path / "classes")
    assert classes.for_task("classify") is classes
    with pytest.raises(DataError, match=r"the data is for the task classify .*; annotate boxes, in COCO, Pascal VOC"):
        classes.for_task("detect")


def test_a_val_split_of_annotated_images(tmp_path: Path) -> None:
    """Images without objects are split, too; the only image of a class is trained on."""
    images = {f"{i:02}.png": [Thing("cat", (1, 2, 30, 40))] if i % 2 else [] for i in range(20)}
    images["00.png"] = [Thing("rare", (1, 2, 30, 40))]
    source = open_data(write_coco(tmp_path / "data", images))
    source.check_val_split(val_share=0.2)
    splits = source.with_val(val_share=0.2)
    assert {split: len(part) for split, part in splits.items()} == {"train": 16, "val": 4}
    assert sorted(len(each) for each in splits["val"].targets["objects"]) == [0, 0, 1, 1]
    assert "00.png" in {Path(name).name for name in splits["train"].names}
    tiny = open_data(write_coco(tmp_path / "tiny"))
    assert {split: len(part) for split, part in tiny.with_val(val_share=0.2).items()} == {"train": 1, "val": 1}
