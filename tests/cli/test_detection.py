"""Detectors on the command line: predict, evaluate, show and bench."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import Command, check_refused
from convatlas.weights.modelfile import write_model_file
from square_detector import CLASSES, draw_squares, save_squares, tiny_detector


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a detector with random weights."""
    path = tmp_path_factory.mktemp("detector") / "tiny.safetensors"
    model = tiny_detector("maskrcnn")
    write_model_file(path, model.module, model.header)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of COCO with masks: four images, one of them without objects."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(4):
        save_squares(folder / "images" / f"{i}.png", draw_squares(48 + i, 64, *[(i % 3, 8, 8, 24, 30)] * (i < 3)))
        images.append({"id": i, "file_name": f"{i}.png", "height": 48 + i, "width": 64})
        if i < 3:
            annotations.append({
                "id": i + 1, "image_id": i, "category_id": i + 1, "bbox": [8, 8, 16, 22], "area": 352, "iscrowd": 0,
                "segmentation": [[8, 8, 24, 8, 24, 30, 8, 30]],
            })  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    plain = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(plain))
    return folder


def test_predict_prints_objects(convatlas: Command, detector: Path, data: Path) -> None:
    images = data / "images"
    shown = convatlas("predict", detector, images, "--threshold", 0)
    assert shown.code == 0
    assert shown.out.splitlines()[0].split() == ["image", "objects", "highest", "score"]
    printed = convatlas("predict", detector, images, "--json", "--threshold", 0).out
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [(line["width"], line["height"]) for line in lines] == [(64, 48 + i) for i in range(4)]
    assert {key for each in lines[0]["objects"] for key in each} == {"label", "score", "box", "mask"}
    rows = list(csv.DictReader(io.StringIO(convatlas("predict", detector, images, "--csv", "--threshold", 0).out)))
    assert [row["label"] for row in rows] == [each["label"] for line in lines for each in line["objects"]]
    printed = convatlas("predict", detector, images, "--csv", "--threshold", 1).out
    assert len(printed.splitlines()) == 5  # the header, and one for each image without objects


def test_predict_writes_files(convatlas: Command, detector: Path, data: Path, tmp_path: Path) -> None:
    outcome = convatlas(
        "predict", detector, data / "images", "--threshold", 0, "--save", tmp_path / "drawn", "--coco",
        tmp_path / "objects.json", "--yolo", tmp_path / "labels", "--sheet", tmp_path / "sheet.png", "--classes",
        "red,blue", "--nms", 0.3, "--tile", 40, "--overlap", "10%",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
    results = json.loads((tmp_path / "objects.json").read_text())
    assert {each["category_id"] for each in results} <= {1, 3}
    assert {each["image_id"] for each in results} <= {0, 1, 2, 3}
    assert "the numbers in the names of the files" in outcome.err
    assert len(list((tmp_path / "labels").iterdir())) == 5
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["--tta", "flip"], "tta must not be given"), (["--top", 2], "top must not be given"),
        (["--classes", "cat"], "got 'cat'"), (["--classes", "red,"], "got ''"), (["--tile", 5], "tile"),
        (["--nms", 2], "nms"), (["--overlap", "50%"], "overlap needs the size of tiles"),
        (["--coco", "."], "must be a file, got a folder"),
        (["--engine", "compile"], "cannot run a detector"), (["--save", "."], "would be overwritten"),
    ],
    ids=lambda value: str(value[0]),
)  # fmt: skip
def test_predict_refuses(
    convatlas: Command, detector: Path, data: Path, option: list[object], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data / "images")
    check_refused(convatlas("predict", detector, "0.png", *option), named)


@pytest.mark.parametrize("option", ["--save", "--coco", "--yolo", "--tile", "--nms", "--classes"])
def test_options_of_detectors_are_refused_for_classifiers(
    convatlas: Command, model_file: Path, images: Path, option: str, tmp_path: Path
) -> None:
    value = {"--tile": 64, "--nms": 0.5, "--classes": "ant"}.get(option, tmp_path / "x")
    outcome = convatlas("predict", model_file, images / "val" / "bee" / "01.png", option, value)
    check_refused(outcome, f"{option.strip('-')} must not be given, because the model is for classification")


def test_evaluate(convatlas: Command, detector: Path, data: Path, tmp_path: Path) -> None:
    outcome = convatlas("evaluate", detector, data, "--csv", tmp_path / "a.csv", "--report", tmp_path / "a.html")
    assert outcome.code == 0, outcome.err
    assert "mask AP" in outcome.out
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["target"] for row in rows] == ["1 red", "1 green", "1 blue", ""]
    page = (tmp_path / "a.html").read_text()
    assert "<h2>Precision and recall" in page
    plain = json.loads(convatlas("evaluate", detector, data, "--json").out)
    assert {f"{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50", "ap75", "ar100")} <= set(plain)
    assert list(plain["classes"]) == list(CLASSES)


def test_evaluate_refuses_images_with_labels(convatlas: Command, detector: Path, images: Path) -> None:
    check_refused(convatlas("evaluate", detector, images), "segment")


def test_show_and_bench(convatlas: Command, detector: Path) -> None:
    shown = convatlas("show", detector)
    assert shown.code == 0, shown.err
    assert "instance segmentation, 3 classes" in shown.out
    rows = json.loads(convatlas("bench", detector, "--json", "--duration", "10ms", "--batches", 1, "--engines", "torch",
                                "--image-size", "80x50").out)  # fmt: skip
    assert [(row["image_px"], row["engine"]) for row in rows] == [("80 x 50", "torch")]
    assert rows[0]["objects"] >= 0
    check_refused(convatlas("bench", detector, "--image-size", "80"), "WIDTHxHEIGHT")


def test_an_image_that_cannot_be_read_does_not_stop_the_others(
    convatlas: Command, detector: Path, tmp_path: Path
) -> None:
    save_squares(tmp_path / "a.png", torch.zeros(3, 1, 2000, dtype=torch.uint8))
    save_squares(tmp_path / "b.png", draw_squares(30, 30))
    outcome = convatlas("predict", detector, tmp_path, "--json")
    assert outcome.code == 2
    first, second = map(json.loads, outcome.out.splitlines())
    assert "too narrow" in first["error"]
    assert second["error"] is None


def test_fit_a_detector_on_a_chosen_body(convatlas: Command, data: Path, tmp_path: Path) -> None:
    """--task drops the masks that the network does not need; the printed command repeats the training."""
    run = tmp_path / "run"
    options = ["--resolution", 32, "--weights", "none", "--epochs", 1, "--set", "min_steps=0", "--val-share", "25%"]
    outcome = convatlas(
        "fit", data, "--task", "detect", "--model", "fasterrcnn", "--body", "mobilenet_v3_small", *options,
        "--batch", 2, "--out", run,
    )  # fmt: skip
    assert "task: detect" in outcome.out
    assert "fasterrcnn-mobilenet_v3_small" in outcome.out
    assert "box AP" in outcome.out
    shown = convatlas("show", run).out
    assert "object detection" in shown


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model", "fasterrcnn"], "fasterrcnn needs a body, such as --body resnet18"),
        (["--model", "resnet18"], "choose maskrcnn_resnet18_fpn"),
        (["--model", "resnet50", "--body", "resnet18"], "--body: needs a detector"),
        (["--model", "keypointrcnn_resnet18_fpn"], "keypoints"),
        (["--model", "fasterrcnn_resnet18_fpn", "--task", "segment"], "segment"),
        (["--model", "fasterrcnn", "--body", "lenet5"], "body: must have"),
        (["--model", "fasterrcnn_resnet18_fpn", "--set", "mixup=0.2"], "mixup"),
    ],
)
def test_data_task_and_network_that_do_not_fit_are_refused(
    convatlas: Command, data: Path, tmp_path: Path, options: list[str], named: str
) -> None:
    outcome = convatlas("fit", data, *options, "--weights", "none", "--out", tmp_path / "run")
    check_refused(outcome, named)
    assert not (tmp_path / "run").exists()
