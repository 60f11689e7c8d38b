"""Annotations of every format, written as COCO and read back, are the same objects."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_files import (
    SIDE,
    TWO,
    Images,
    Thing,
    write_boxes_table,
    write_coco,
    write_id_masks,
    write_image,
    write_via,
    write_voc,
    write_yolo,
)
from commands import Command, check_refused
from convatlas.data.convert import convert_data
from convatlas.data.open import open_data
from convatlas.data.source import Source
from convatlas.errors import InputError
from convatlas.tasks.detection.objects import Objects

Writer = Callable[[Path, Images], Path]

WRITERS: dict[str, Writer] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "yolo polygons": lambda folder, images: write_yolo(folder, images, polygons=True),
    "via": write_via,
    "csv": write_boxes_table,
    "masks": write_id_masks,
}

width, height = SIDE
eighths = st.integers(0, 8 * 40).map(lambda value: value / 8)
boxes = st.tuples(eighths, eighths, st.integers(16, 200), st.integers(16, 200)).map(
    lambda box: (box[0], box[1], min(box[0] + box[2] / 8, width), min(box[1] + box[3] / 8, height))
)
things = st.builds(Thing, st.sampled_from(["cat", "dog", "k\u00e4fer"]), boxes)
data_sets = st.dictionaries(
    st.sampled_from(["a.png", "b.png", "c d.png"]), st.lists(things, max_size=4, unique_by=lambda each: each.box),
    min_size=1,
).filter(lambda images: any(images.values()))  # fmt: skip


def objects_by_name(source: Source) -> dict[str, Objects]:
    return {
        f"{split}/{Path(name).name}": objects
        for split, samples in source.splits.items()
        for name, objects in zip(samples.names, samples.targets["objects"], strict=True)
    }


def check_equal(source: Source, again: Source) -> None:
    """Check for equal classes, task and objects; areas that the first data does not state are those of its boxes."""
    assert (again.classes, again.task) == (source.classes, source.task)
    first, second = objects_by_name(source), objects_by_name(again)
    assert first.keys() == second.keys()
    for name, objects in first.items():
        for field in fields(Objects):
            value, other = getattr(objects, field.name), getattr(second[name], field.name)
            if field.name == "areas" and value is None:
                continue
            same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
            assert same, (name, field.name, value, other)


@pytest.mark.parametrize("format", WRITERS)
@settings(max_examples=4, deadline=None)
@given(images=data_sets)
def test_objects_are_the_same_after_conversion(format: str, images: Images) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if format == "masks":  # pixels, without overlap
            images = {
                file: [Thing("object", (8 * i, y := int(each.box[1]), 8 * i + 7, y + 1)) for i, each in enumerate(part)]
                for file, part in images.items()
            }
        source = open_data(WRITERS[format](folder / "data", images))
        convert_data(source.location, folder / "out")
        again = open_data(folder / "out")
    check_equal(source, again)
    boxes = {name: objects.boxes for name, objects in objects_by_name(again).items()}
    for file, part in images.items():
        expected = torch.tensor([each.box for each in part], dtype=torch.float32).reshape(-1, 4)
        torch.testing.assert_close(boxes[f"train/{file}"], expected, rtol=0, atol=1e-4)
    assert not [fault for fault in again.faults if fault.kind not in ("unused_categories", "repeated_points")]


@pytest.mark.parametrize(
    "name",
    [
        "glue_tubes_keypoints",
        "mmpose_skeletons/mpii",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "balloon_via",
                "bccd_voc",
                "rbc_coco",
                "coco_tiny",
                "coco_tiny/annotations/person_keypoints_train50.json",
            )
        ),
    ],
)
def test_real_data_is_the_same_after_conversion(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = open_data(shared_data / name)
    convert_data(shared_data / name, tmp_path)
    check_equal(source, open_data(tmp_path))


def test_one_file_or_one_for_each_split(tmp_path: Path, convatlas: Command) -> None:
    write_coco(tmp_path / "data", name="instances_train.json")
    outcome = convatlas("data", "convert", tmp_path / "data", "--to", "coco", "--out", tmp_path / "out/x.json")
    assert outcome.code == 0
    assert "x.json: 2 images, 3 objects" in outcome.out.replace("\n", " ")
    write_coco(tmp_path / "data", {"v.png": [Thing("cat", (1, 2, 30, 40))]}, name="instances_val.json")
    files = convert_data(tmp_path / "data", tmp_path / "out/y.json", copy_images=True)
    assert [each.path.name for each in files] == ["y_train.json", "y_val.json"]
    assert (tmp_path / "out/train/a.png").read_bytes() == (tmp_path / "data/a.png").read_bytes()
    assert json.loads(files[1].path.read_text())["images"][0]["file_name"] == "val/v.png"
    check_equal(open_data(tmp_path / "data"), open_data(tmp_path / "out/y_train.json"))


def test_copied_images_keep_folders_that_differ(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "data", {"x/a.png": TWO["a.png"], "y/a.png": TWO["b.png"]})
    (converted,) = convert_data(path, tmp_path / "out", copy_images=True)
    assert [each["file_name"] for each in json.loads(converted.path.read_text())["images"]] == [
        "../train/x/a.png", "../train/y/a.png",
    ]  # fmt: skip
    assert len(open_data(tmp_path / "out").splits["train"]) == 2


def test_unreadable_images_are_skipped(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "data")
    (tmp_path / "data/a.png").write_bytes(b"")
    (converted,) = convert_data(path, tmp_path / "out.json")
    assert (converted.images, converted.objects, converted.skipped) == (1, 1, 1)


def test_what_cannot_be_converted(tmp_path: Path, convatlas: Command) -> None:
    for label in ("cat", "dog"):
        write_image(tmp_path / "classes" / label / "a.png")
    out: list[Any] = ["--to", "coco", "--out", tmp_path / "out"]
    check_refused(convatlas("data", "convert", tmp_path / "classes", *out), "has no annotated objects")
    with pytest.raises(InputError, match="--to: must be one of coco, got yolo"):
        convert_data(tmp_path, tmp_path / "out", to="yolo")
    path = write_coco(tmp_path / "data")
    before = path.read_bytes()
    for data, place in ((path, path), (tmp_path / "data", path)):
        text = "instances.json is a file of the data itself; give another file or folder"
        check_refused(convatlas("data", "convert", data, "--to", "coco", "--out", place), text)
    assert path.read_bytes() == before
    (tmp_path / "file").write_text("")
    check_refused(convatlas("data", "convert", path, "--to", "coco", "--out", tmp_path / "file/x.json"), "file")
