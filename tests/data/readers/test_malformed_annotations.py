"""Malformed annotation files end in one line that names the file; `data check` lists them without a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annotated_files import (
    TWO,
    Thing,
    coco_of,
    voc_of,
    write_coco,
    write_id_masks,
    write_image,
    write_via,
    write_voc,
    write_yolo,
)
from convatlas.data.check import check_data
from convatlas.data.open import open_data
from convatlas.errors import DataError

Change = Callable[[dict[str, Any]], Any]
DEEP = "[" * 100_000 + "]" * 100_000
RUNS = {"size": [48, 64], "counts": [48 * 64]}


def first(field: str, **values: Any) -> Change:
    """Return a change of the first entry of a list."""

    def change(data: dict[str, Any]) -> None:
        data[field][0] |= values

    return change


def without(field: str, key: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        del data[field][0][key]

    return change


def put(**values: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        data |= values

    return change


def text(replaced: str, by: str) -> Callable[[str], str]:
    return lambda contents: contents.replace(replaced, by, 1)


COCO_FILES: dict[str, bytes] = {
    "empty": b"",
    "blank": b"  \n",
    "binary": bytes(range(256)) * 8,
    "list": b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
    "number": b"17",
    "text": b'"images"',
    "truncated": json.dumps(coco_of(TWO)).encode()[:-50],
    "no comma": json.dumps(coco_of(TWO)).encode().replace(b", ", b" ", 1),
    "latin-1": json.dumps(coco_of(TWO)).replace("cat", "k\u00e4fer").encode("latin-1"),
    "deep": b'{"images": [], "annotations": ' + DEEP.encode() + b"}",
    "deep objects": b'{"annotations": [' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"]}",
    "huge integer": json.dumps(coco_of(TWO)).encode().replace(b'"area": ', b'"area": ' + b"9" * 5000, 1),
    "utf-16 half": json.dumps(coco_of(TWO)).encode("utf-16")[:-31],
    "html": b"<!DOCTYPE html><html>Not found</html>",
}

COCO: dict[str, Change] = {
    "no images": lambda data: data.pop("images"),
    "no annotations": lambda data: data.pop("annotations"),
    "no categories": lambda data: data.pop("categories"),
    "images as a table": put(images={"1": "a.png"}),
    "annotations of numbers": put(annotations=[1, 2]),
    "categories as null": put(categories=None),
    "nothing in it": put(images=[], annotations=[], categories=[]),
    "image as a list": put(images=[["a.png", 64, 48]]),
    "image without file_name": without("images", "file_name"),
    "file_name as a number": first("images", file_name=7),
    "file_name empty": first("images", file_name="  "),
    "image id null": first("images", id=None),
    "image id a list": first("images", id=[1]),
    "image ids twice": first("images", id=2),
    "width as text": first("images", width="64"),
    "negative height": first("images", height=-48),
    "width too large": first("images", width=1e300),
    "other proportions": first("images", width=48, height=64),
    "category without name": without("categories", "name"),
    "category name null": first("categories", name=None),
    "category name unprintable": first("categories", name="c\u0007t"),
    "category id as text": first("categories", id="1"),
    "category ids twice": first("categories", id=2),
    "category names twice": first("categories", name="dog"),
    "unknown category": first("annotations", category_id=99),
    "category_id as a table": first("annotations", category_id={"id": 1}),
    "image_id of no image": first("annotations", image_id=99),
    "image_id missing": without("annotations", "image_id"),
    "image_id as a list": first("annotations", image_id=[1]),
    "box as text": first("annotations", bbox="1 2 3 4"),
    "box of three": first("annotations", bbox=[1, 2, 3]),
    "box of texts": first("annotations", bbox=["1", "2", "3", "4"]),
    "box with null": first("annotations", bbox=[1, 2, None, 4]),
    "box with true": first("annotations", bbox=[1, 2, True, 4]),
    "box with NaN": first("annotations", bbox=[1, 2, float("nan"), 4]),
    "box with infinity": first("annotations", bbox=[1, 2, float("inf"), 4]),
    "box far away": first("annotations", bbox=[1, 2, 1e30, 4]),
    "box of huge integers": first("annotations", bbox=[10**400, 2, 3, 4]),
    "area as text": first("annotations", area="12"),
    "area negative": first("annotations", area=-1),
    "area infinite": first("annotations", area=float("inf")),
    "iscrowd as text": first("annotations", iscrowd="yes"),
    "iscrowd of a list": first("annotations", iscrowd=[0]),
    "segmentation as text": first("annotations", segmentation="mask"),
    "polygon odd": first("annotations", segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
    "polygon of three numbers": first("annotations", segmentation=[[1, 2, 3]]),
    "polygon of two points": first("annotations", segmentation=[[1, 2, 3, 4]]),
    "polygon with NaN": first("annotations", segmentation=[[1, 2, 3, float("nan"), 5, 6]]),
    "polygon with NaN first": first("annotations", segmentation=[[float("nan"), 2, 3, 4, 5, 6]]),
    "polygon of tables": first("annotations", segmentation=[{"x": 1}]),
    "polygon too deep": first("annotations", segmentation=[[[1, 2], [3, 4], [5, 6]]]),
    "runs without size": first("annotations", segmentation={"counts": [48 * 64]}),
    "runs without counts": first("annotations", segmentation={"size": [48, 64]}),
    "runs too short": first("annotations", segmentation=RUNS | {"counts": [100]}),
    "runs negative": first("annotations", segmentation=RUNS | {"counts": [-8, 48 * 64 + 8]}),
    "runs as fractions": first("annotations", segmentation=RUNS | {"counts": [0.5, 48 * 64 - 0.5]}),
    "runs of a huge image": first("annotations", segmentation={"size": [10**6, 10**6], "counts": [10**12]}),
    "runs of another image": first("annotations", segmentation={"size": [10, 10], "counts": [50, 50]}),
    "runs compressed, damaged": first("annotations", segmentation=RUNS | {"counts": "oooo"}),
    "runs compressed, other characters": first("annotations", segmentation=RUNS | {"counts": "\u00e4 \u0007"}),
    "runs compressed, too long": first("annotations", segmentation=RUNS | {"counts": "P" * 3}),
    "keypoints as text": first("annotations", keypoints="1,2,2"),
    "keypoints of four": first("annotations", keypoints=[1, 2, 2, 4]),
    "keypoints with NaN": first("annotations", keypoints=[1, float("nan"), 2]),
    "keypoints of pairs": first("annotations", keypoints=[[1, 2], [3, 4]]),
    "visibility 7": first("annotations", keypoints=[1, 2, 7]),
    "sigmas of a huge integer": lambda data: [
        first("annotations", keypoints=[1, 2, 2], num_keypoints=1)(data),
        first("categories", keypoints=["nose"], skeleton=1.5, sigmas=[10**400])(data),
    ],
    "a detection": first("annotations", score=0.5),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images of `TWO`."""
    folder = tmp_path_factory.mktemp("images")
    for name in TWO:
        write_image(folder / name)
    return folder


def check_refused(data: Path) -> str:
    """Check that opening raises one printable line, and that the check of the data reports an error."""
    with pytest.raises(DataError) as caught:
        open_data(data)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700
    assert check_data(data, progress=False).has_errors
    return message


@pytest.mark.parametrize("name", COCO_FILES)
def test_files_that_are_not_coco(images: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(images, tmp_path / "data")
    path = tmp_path / "data/instances.json"
    path.write_bytes(COCO_FILES[name])
    with pytest.raises(DataError, match=r"instances\.json: |annotation 1: area"):
        open_data(path)


@pytest.mark.parametrize("name", COCO)
def test_coco(images: Path, tmp_path: Path, name: str) -> None:
    data = coco_of(TWO)
    COCO[name](data)
    shutil.copytree(images, tmp_path / "data")
    path = tmp_path / "data/instances.json"
    path.write_text(json.dumps(data))
    assert "instances.json" in check_refused(path)


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png", "x" * 300])
def test_names_of_no_file_are_unreadable_images(images: Path, tmp_path: Path, name: str) -> None:
    data = coco_of(TWO)
    data["images"][0]["file_name"] = name
    shutil.copytree(images, tmp_path / "data")
    path = tmp_path / "data/instances.json"
    path.write_text(json.dumps(data))
    assert len(open_data(path).splits["train"]) == 2
    errors = [each.kind for each in check_data(path, progress=False).findings if each.severity == "error"]
    assert errors in (["unreadable_images"], ["missing_images"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_of_json_are_read(images: Path, tmp_path: Path, encoding: str) -> None:
    shutil.copytree(images, tmp_path / "data")
    path = tmp_path / "data/instances.json"
    path.write_text(json.dumps(coco_of(TWO)), encoding=encoding)
    assert len(open_data(path).splits["train"]) == 2


YOLO: dict[str, str] = {
    "four fields": "0 0.5 0.5 0.2",
    "seven fields, six of a polygon and one": "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4",
    "one field": "0",
    "words": "cat 0.5 0.5 0.2 0.2",
    "commas": "0,0.5,0.5,0.2,0.2",
    "NaN": "0 nan 0.5 0.2 0.2",
    "infinity": "0 1e400 0.5 0.2 0.2",
    "pixels": "0 32 24 10 10",
    "above 1": "0 1.5 0.5 0.2 0.2",
    "class out of range": "2 0.5 0.5 0.2 0.2",
    "class negative": "-1 0.5 0.5 0.2 0.2",
    "class as a fraction": "0.5 0.5 0.5 0.2 0.2",
    "class huge": "1e300 0.5 0.5 0.2 0.2",
    "binary": "\x00\x01\x02",
}


@pytest.mark.parametrize("name", YOLO)
def test_yolo_lines(tmp_path: Path, name: str) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(f"\n{YOLO[name]}\n")
    assert "labels/train/a.txt: line 2: " in check_refused(tmp_path)


def test_yolo_text_in_another_encoding(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_bytes(b"0 0.5 0.5 0.2 0.2 \xff\xfe")
    assert "labels/train/a.txt: " in check_refused(tmp_path)


YAML: dict[str, str] = {
    "a list": "- train: x\n- names: y\ntrain: 1",
    "not YAML": "names: [cat, dog\ntrain: images/train",
    "a tag": "train: !!python/object/apply:os.system ['true']\nnames: [cat, dog]",
    "no train": "val: images/train\nnames: [cat, dog]",
    "train does not exist": "train: nowhere\nnames: [cat, dog]",
    "a name that is too long": f"train: {'x' * 300}\nnames: [cat, dog]",
    "train as a number": "train: 7\nnames: [cat, dog]",
    "names as text": "train: images/train\nnames: cat",
    "names with a gap": "train: images/train\nnames: {0: cat, 2: dog}",
    "names twice": "train: images/train\nnames: [cat, cat]",
    "names of lists": "train: images/train\nnames: [[cat], [dog]]",
    "another nc": "train: images/train\nnc: 3\nnames: [cat, dog]",
    "path as a list": "path: [a]\ntrain: images/train\nnames: [cat, dog]",
    "kpt_shape as text": "train: images/train\nkpt_shape: x\nnames: [cat, dog]",
    "kpt_shape of 4": "train: images/train\nkpt_shape: [2, 4]\nnames: [cat, dog]",
    "flip_idx out of range": "train: images/train\nkpt_shape: [2, 3]\nflip_idx: [0, 2]\nnames: [cat, dog]",
    "keypoints missing": "train: images/train\nkpt_shape: [2, 3]\nnames: [cat, dog]",
}


@pytest.mark.parametrize("name", YAML)
def test_yolo_yaml(tmp_path: Path, name: str) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(YAML[name])
    message = check_refused(tmp_path / "data.yaml")
    assert ("labels/train/" if name == "keypoints missing" else "data.yaml: ") in message


VOC: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "not XML": lambda _: "<annotation><object>",
    "HTML": lambda _: "<html><annotation></annotation></html>",
    "no bndbox": lambda xml: xml.replace("bndbox", "box"),
    "no xmin": text("<xmin>4</xmin>", ""),
    "xmin as a word": text("<xmin>4</xmin>", "<xmin>left</xmin>"),
    "xmin NaN": text("<xmin>4</xmin>", "<xmin>nan</xmin>"),
    "xmin 1e400": text("<xmin>4</xmin>", "<xmin>1e400</xmin>"),
    "no name": text("<name>cat</name>", ""),
    "name empty": text("<name>cat</name>", "<name> </name>"),
    "width as a word": text("<width>64</width>", "<width>wide</width>"),
    "width negative": text("<width>64</width>", "<width>-64</width>"),
    "other proportions": text("<width>64</width>", "<width>48</width>"),
    "entities": lambda xml: f'<!DOCTYPE a [<!ENTITY b "{"c" * 50}">]>' + xml.replace("cat", "&b;", 1),
    "entity bomb": lambda xml: (
        '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
        + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
        + "]>" + xml.replace("cat", "&i;", 1)
    ),
    "external entity": lambda xml: (
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>' + xml.replace("cat", "&b;", 1)
    ),
    "deep": lambda _: "<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "<object/></annotation>",
}  # fmt: skip


@pytest.mark.parametrize("name", VOC)
def test_voc(tmp_path: Path, name: str) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations/a.xml").write_text(VOC[name](voc_of(TWO["a.png"])))
    assert "Annotations/a.xml: " in check_refused(tmp_path)


def test_voc_in_another_encoding(tmp_path: Path) -> None:
    write_voc(tmp_path)
    path = tmp_path / "Annotations/a.xml"
    xml = voc_of([Thing("k\u00e4fer", (1, 2, 30, 40))])
    path.write_bytes(xml.encode("latin-1"))
    assert "Annotations/a.xml: not an XML file" in check_refused(tmp_path)
    path.write_bytes(f'<?xml version="1.0" encoding="latin-1"?>{xml}'.encode("latin-1"))
    assert open_data(tmp_path).classes == ("dog", "k\u00e4fer")
    path.write_text(voc_of(TWO["a.png"]), encoding="utf-16")
    assert open_data(tmp_path).classes == ("cat", "dog")


def via(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Return a change of the first image."""
    return lambda data: change(next(iter(data.values())))


VIA: dict[str, Callable[[dict[str, Any]], Any]] = {
    "image as a list": lambda data: data.update(x=[]),
    "no filename": via(lambda image: image.pop("filename")),
    "regions as text": via(lambda image: image.update(regions="none")),
    "region as a number": via(lambda image: image.update(regions=[7])),
    "no shape": via(lambda image: image["regions"][0].pop("shape_attributes")),
    "unknown shape": via(lambda image: image["regions"][0]["shape_attributes"].update(name="star")),
    "shape without points": via(lambda image: image["regions"][0]["shape_attributes"].pop("all_points_x")),
    "more x than y": via(lambda image: image["regions"][0]["shape_attributes"]["all_points_x"].append(1)),
    "two points": via(lambda image: image["regions"][0]["shape_attributes"].update(
        all_points_x=[1, 2], all_points_y=[1, 2])),
    "NaN": via(lambda image: image["regions"][0]["shape_attributes"].update(all_points_x=[1, float("nan"), 3, 4])),
    "no class": via(lambda image: image["regions"][0].update(region_attributes={})),
    "attributes as a list": via(lambda image: image["regions"][0].update(region_attributes=[])),
    "rect without width": via(lambda image: image["regions"][0].update(
        shape_attributes={"name": "rect", "x": 1, "y": 2, "height": 3})),
}  # fmt: skip


@pytest.mark.parametrize("name", VIA)
def test_via(tmp_path: Path, name: str) -> None:
    path = write_via(tmp_path, version=2) / "via_region_data.json"
    data = json.loads(path.read_text())
    VIA[name](data["_via_img_metadata"])
    path.write_text(json.dumps(data))
    assert "via_region_data.json: " in check_refused(tmp_path)


TABLES: dict[str, str] = {
    "no file": "file,x1,y1,x2,y2,label\n,1,2,3,4,cat\n",
    "no column of files": "x1,y1,x2,y2,label\n1,2,3,4,cat\n",
    "a word": "file,x1,y1,x2,y2,label\na.png,one,2,3,4,cat\n",
    "NaN": "file,x1,y1,x2,y2,label\na.png,nan,2,3,4,cat\n",
    "1e400": "file,x1,y1,x2,y2,label\na.png,1e400,2,3,4,cat\n",
    "three of four": "file,x1,y1,x2,y2,label\na.png,1,2,3,,cat\n",
    "no label": "file,x1,y1,x2,y2,label\na.png,1,2,3,4,\n",
    "another split": "file,x1,y1,x2,y2,label,split\na.png,1,2,3,4,cat,x\n",
    "no rows": "file,x1,y1,x2,y2,label\n",
    "no header": "a.png,1,2,3,4,cat\n",
    "only empty images": "file,x1,y1,x2,y2,label\na.png,,,,,\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_boxes(images: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(images, tmp_path / "data")
    path = tmp_path / "data/boxes.csv"
    path.write_text(TABLES[name])
    assert "boxes.csv: " in check_refused(path)


BOXES_JSON: dict[str, str] = {
    "a list": '[{"bboxes": []}]',
    "boxes as a table": '{"bboxes": {}}',
    "box of three": '{"bboxes": [[1, 2, 3]]}',
    "more keypoints than boxes": '{"bboxes": [[1, 2, 3, 4]], "keypoints": []}',
    "keypoints as a number": '{"bboxes": [[1, 2, 3, 4]], "keypoints": [7]}',
    "keypoints of two": '{"bboxes": [[1, 2, 3, 4]], "keypoints": [[[1, 2]]]}',
    "visibility 3": '{"bboxes": [[1, 2, 3, 4]], "keypoints": [[[1, 2, 3]]]}',
    "label null": '{"bboxes": [[1, 2, 3, 4]], "labels": [null]}',
    "truncated": '{"bboxes": [[1, 2, 3',
}


@pytest.mark.parametrize("name", BOXES_JSON)
def test_one_json_file_for_each_image(tmp_path: Path, name: str) -> None:
    for stem in ("a", "b"):
        write_image(tmp_path / f"images/{stem}.png")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/{stem}.json").write_text('{"bboxes": [[1, 2, 30, 40]]}')
    (tmp_path / "annotations/b.json").write_text(BOXES_JSON[name])
    assert "annotations/b.json: " in check_refused(tmp_path)


def test_masks_that_are_no_ids(tmp_path: Path) -> None:
    write_id_masks(tmp_path, {"a.png": [Thing("object", (4, 6, 24, 30))]})
    mask = tmp_path / "masks/a_mask.png"
    write_image(mask)
    assert "masks/a_mask.png: a mask must have one channel of integers, got mode RGB" in check_refused(tmp_path)
    mask.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "masks/a_mask.png: " in check_refused(tmp_path)


def test_a_folder_of_unknown_annotations(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.json").write_text("{}")
    write_image(tmp_path / "images/a.png")
    assert "annotations/a.json: must be a JSON file of COCO or VIA" in check_refused(tmp_path)


def test_every_invalid_annotation_is_a_finding(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    data = json.loads(path.read_text())
    for each in data["annotations"][:2]:
        each["bbox"] = "x"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"annotation 1: bbox .*; 1 more problem; `convatlas data check .*` lists them"):
        open_data(path)
    (finding,) = [each for each in check_data(path, progress=False).findings if each.severity == "error"]
    assert (finding.kind, finding.count) == ("invalid_annotations", 2)


def test_there_are_enough_cases() -> None:
    cases: list[str] = [*COCO_FILES, *COCO, *YOLO, *YAML, *VOC, *VIA, *TABLES, *BOXES_JSON]
    assert len(cases) >= 60
