"""Prediction with detectors: whole images of any size, tiles, options, and files of objects."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convatlas.core.ragged import Inputs
from convatlas.core.tiles import cut_tiles, tile_starts
from convatlas.engines.evaluation import compute_outputs, eager_forward
from convatlas.errors import DataError, EngineError, InputError
from convatlas.inference.model import Model
from convatlas.inference.prediction_files import PredictionFiles, _captioned, image_ids
from convatlas.tasks.detection.prediction import DetectionPrediction
from convatlas.tasks.prediction import Prediction, Predictions
from square_detector import CLASSES, SquareEngine, draw_squares, save_squares, square_model, tiny_detector

TWO = draw_squares(40, 60, (0, 5, 5, 15, 15), (2, 30, 20, 50, 30))


def detection(prediction: Prediction) -> DetectionPrediction:
    assert isinstance(prediction, DetectionPrediction)
    return prediction


def boxes(prediction: Prediction) -> list[tuple[str, tuple[float, ...]]]:
    found = detection(prediction)
    return sorted(zip(found.labels, found.boxes, strict=True))


# --- images of any size


def test_images_of_different_sizes_share_a_batch() -> None:
    model = square_model()
    empty = torch.zeros(3, 7, 9, dtype=torch.uint8)
    predictions = model.predict([TWO, empty, TWO.transpose(1, 2)], batch=4)
    assert model.engine.sizes == [[(40, 60), (7, 9), (60, 40)]]  # type: ignore[attr-defined]
    assert boxes(predictions[0]) == [("blue", (30, 20, 50, 30)), ("red", (5, 5, 15, 15))]
    assert predictions[1].to_plain() == {"source": "image 1", "width": 9, "height": 7, "objects": [], "error": None}
    assert boxes(predictions[2]) == [("blue", (20, 30, 30, 50)), ("red", (5, 5, 15, 15))]
    assert predictions[0].text == "1 red, 1 blue"


def test_whole_images_are_predicted_one_by_one_unless_a_batch_is_given() -> None:
    model = square_model()
    model.predict([TWO] * 3)
    assert [len(sizes) for sizes in model.engine.sizes] == [1, 1, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(1, 1), (2, 100), (100, 2), (20, 400), (300, 15)], ids=str)
def test_extreme_sizes(size: tuple[int, int]) -> None:
    image = torch.full((3, *size), 128, dtype=torch.uint8)
    found = detection(tiny_detector().predict(image, threshold=0.0)[0]).objects
    assert found is not None
    assert found.size == size
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([size[1], size[0]] * 2)).all()


def test_an_image_that_is_too_narrow_is_its_own_error() -> None:
    narrow, good = tiny_detector().predict([torch.zeros(3, 1, 1000, dtype=torch.uint8), TWO])
    assert "too narrow (1000 x 1 pixels)" in narrow.error
    assert not good.error


def test_boxes_refer_to_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # to be rotated by 90 degrees clockwise
    Image.fromarray(np.ascontiguousarray(TWO.permute(1, 2, 0).numpy())).save(tmp_path / "a.png", exif=exif)
    (prediction,) = square_model().predict(tmp_path / "a.png")
    assert (prediction.to_plain()["width"], prediction.to_plain()["height"]) == (40, 60)
    assert boxes(prediction) == [("blue", (10, 30, 20, 50)), ("red", (25, 5, 35, 15))]


@pytest.mark.parametrize("kind", ["gray", "16 bit", "cmyk"])
def test_other_kinds_of_pixels(kind: str, tmp_path: Path) -> None:
    gray = np.zeros((40, 60), np.uint8)
    gray[10:20, 10:30] = 255
    if kind == "16 bit":
        Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "a.png")
    elif kind == "cmyk":
        Image.fromarray(gray).convert("RGB").convert("CMYK").save(tmp_path / "a.tif")
    else:
        Image.fromarray(gray).save(tmp_path / "a.png")
    (prediction,) = square_model().predict(tmp_path)
    assert boxes(prediction) == [(name, (10, 10, 30, 20)) for name in sorted(CLASSES)]


def test_an_image_does_not_depend_on_the_others() -> None:
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((30, 200), (90, 70), (64, 64))]
    forward, back = (tiny_detector().predict(order, threshold=0.0) for order in (images, images[::-1]))
    for first, second in zip(forward, back[::-1], strict=True):
        left, right = detection(first).objects, detection(second).objects
        assert left is not None
        assert right is not None
        assert torch.equal(left.boxes, right.boxes)


# --- failures


class SmallMemory(SquareEngine):
    """Has memory for 4,000 pixels."""

    def outputs(self, pixels: Inputs) -> list[dict[str, Tensor]]:
        if sum(image[0].numel() for image in pixels) > 4000:
            raise EngineError("engine torch: out of memory for a batch")
        return super().outputs(pixels)


def test_too_little_memory_is_the_error_of_the_image() -> None:
    model = dataclasses.replace(square_model(), engine_override=SmallMemory("boxes"))
    large = draw_squares(80, 80, (1, 10, 10, 20, 20))
    small, failed, other = model.predict([TWO, large, TWO], batch=3)
    assert boxes(small) == boxes(other) == boxes(square_model().predict(TWO)[0])
    assert failed.error == "image 1: engine torch: out of memory for a batch"


class Damaged(SquareEngine):
    def outputs(self, pixels: Inputs) -> list[dict[str, Tensor]]:
        outputs = super().outputs(pixels)
        outputs[0]["boxes"][0, 0] = torch.nan
        return outputs


def test_outputs_that_are_not_finite_are_the_error_of_the_image() -> None:
    model = dataclasses.replace(square_model(), engine_override=Damaged("boxes"))
    bad, good = model.predict([TWO, TWO], batch=2)
    assert bad.error == "image 0: the network computes NaN or infinity for this image"
    assert not good.error


# --- options


def test_threshold_classes_and_nms() -> None:
    model = square_model()
    assert [len(detection(model.predict(TWO, threshold=t)[0]).labels) for t in (0.5, 0.895, 0.95)] == [2, 1, 0]
    assert boxes(model.predict(TWO, classes=["blue"])[0]) == [("blue", (30, 20, 50, 30))]
    assert boxes(model.predict(TWO, classes="green")[0]) == []
    with pytest.raises(DataError, match=r"classes must be classes of the model.*, got 'blu'"):
        model.predict(TWO, classes=["blu"])
    assert len(boxes(model.predict(TWO, nms=0.01)[0])) == 2  # of other classes


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"tta": "flip"}, "tta must not be given, because the model is for object detection"),
        ({"top": 2}, "top must not be given, because the model is for object detection"),
        ({"nms": -0.1}, "nms must be a number in"),
        ({"nms": 1.5}, "nms must be a number in"),
        ({"tile": 10}, "tile must be an integer >= 32"),
        ({"overlap": 0.95}, "overlap must be a number in"),
        ({"overlap": 0.5}, "overlap needs the size of tiles"),
    ],
)
def test_options_of_classifiers_and_impossible_ones_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        square_model().predict(TWO, **how)


def test_detectors_cannot_be_averaged() -> None:
    import convatlas as ca

    model = square_model()
    with pytest.raises(DataError, match="ensemble must not be given"):
        ca.Ensemble((model, model)).predict(TWO)


@pytest.mark.parametrize("how", [{"tile": 64}, {"nms": 0.3}, {"classes": ["0"]}, {"overlap": 0.5}], ids=str)
def test_options_of_detectors_are_refused_for_classifiers(model: Model, how: dict[str, Any]) -> None:
    (name,) = how
    with pytest.raises(DataError, match=f"{name} must not be given, because the model is for classification"):
        model.predict(np.zeros((8, 8), np.uint8), **how)


# --- tiles


@pytest.mark.parametrize(("length", "tile", "overlap"), [(100, 40, 0.2), (101, 40, 0.0), (41, 40, 0.5), (999, 64, 0.9)])
def test_tiles_cover_an_axis_and_overlap(length: int, tile: int, overlap: float) -> None:
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - tile
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert steps.max() <= max(1, round(tile * (1 - overlap)))


def test_an_image_that_is_not_larger_than_a_tile_is_one_view() -> None:
    image = torch.zeros(3, 64, 50)
    (view,), corners = cut_tiles(image, 64, 0.2)
    assert view is image
    assert corners == ((0, 0),)
    views, corners = cut_tiles(torch.zeros(3, 50, 100), 64, 0.2)
    assert [tuple(view.shape[1:]) for view in views] == [(50, 100), (50, 64), (50, 64)]
    assert corners == ((0, 0), (0, 0), (36, 0))


@pytest.mark.parametrize("predicts", ["boxes", "masks", "keypoints"])
def test_tiles_give_each_object_once(predicts: str) -> None:
    """One is inside of a tile, one is in the overlap of two, one is cut, and one is larger than a tile."""
    squares = ((0, 3, 3, 20, 20), (1, 55, 10, 62, 22), (2, 50, 50, 80, 75), (0, 60, 85, 195, 95))
    image = draw_squares(100, 200, *squares)
    model = square_model(predicts)
    (tiled,) = model.predict(image, tile=64, overlap=0.25, batch=4)
    assert [len(sizes) for sizes in model.engine.sizes] == [4, 4, 1]  # type: ignore[attr-defined]
    (whole,) = square_model(predicts).predict(image)
    assert boxes(tiled) == boxes(whole)
    left, right = (sorted(each.to_plain()["objects"], key=lambda o: o["box"]) for each in (tiled, whole))
    for one, other in zip(left, right, strict=True):
        assert one.get("mask") == other.get("mask")
        assert one.get("keypoints") == other.get("keypoints")


def test_small_images_have_the_same_objects_with_tiles() -> None:
    model, image = tiny_detector(), torch.randint(0, 256, (3, 60, 64), dtype=torch.uint8)
    first, second = (detection(model.predict(image, threshold=0.0, **how)[0]).objects for how in ({}, {"tile": 64}))
    assert first is not None
    assert second is not None
    assert torch.equal(first.boxes, second.boxes)
    assert first.scores is not None
    assert second.scores is not None
    assert torch.equal(first.scores, second.scores)


# --- files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images of the same name and one that is unreadable."""
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    save_squares(images / "a.jpg", torch.zeros(3, 40, 60, dtype=torch.uint8))
    save_squares(images / "more" / "a.png", TWO)
    (images / "bad.png").write_text("no image")
    return images


def write(files: PredictionFiles, predictions: Predictions) -> list[str]:
    files.prepare()
    for prediction in predictions:
        files.add(prediction.source, prediction)
    return files.finish()


def test_files_of_predictions(folder: Path, tmp_path: Path) -> None:
    predictions = square_model("keypoints").predict(folder)
    out = tmp_path / "out"
    files = PredictionFiles(CLASSES, out / "sheet.png", out / "drawn", out / "objects.json", out / "labels")
    lines = write(files, predictions)
    assert sorted(path.name for path in (out / "drawn").iterdir()) == ["a-2.png", "a.jpg"]
    assert Image.open(out / "drawn" / "a.jpg").format == "JPEG"
    drawn = np.asarray(Image.open(out / "drawn" / "a-2.png"))
    assert drawn.shape[:2] == (280, 420)  # enlarged, for the labels
    assert {path.name: path.read_text() for path in (out / "labels").iterdir()} == {
        "classes.txt": "red\ngreen\nblue\n", "a.txt": "",
        "a-2.txt":
            "0 0.166667 0.250000 0.166667 0.250000 0.083333 0.125000 5.000000 0.250000 0.375000 5.000000 0.900000\n"
            "2 0.666667 0.625000 0.333333 0.250000 0.500000 0.500000 5.000000 0.833333 0.750000 5.000000 0.890000\n",
    }  # fmt: skip
    results = json.loads((out / "objects.json").read_text())
    assert [(each["image_id"], each["category_id"], each["bbox"]) for each in results] == [
        (3, 1, [5, 5, 10, 10]), (3, 3, [30, 20, 20, 10])
    ]  # fmt: skip
    assert lines == [
        f"{out / 'sheet.png'}", f"{out / 'drawn'}: 2 images", f"{out / 'labels'}: 2 files of YOLO, and classes.txt",
        f"{out / 'objects.json'}: 2 objects; image ids: 1, 2, 3, ... in the order of the images; category ids: from 1 "
        "(red) on",
    ]  # fmt: skip


def test_a_notebook_shows_the_image_with_its_objects(folder: Path) -> None:
    blank, shown, unreadable = sorted(square_model().predict(folder), key=lambda each: len(each.error + each.text))
    (image,) = re.findall(r'<img alt="" src="data:image/png;base64,([^"]+)">', shown._repr_html_())
    assert Image.open(io.BytesIO(base64.b64decode(image))).size == (420, 280)
    assert "1 red, 1 blue" in shown._repr_html_()
    assert "<img" in blank._repr_html_()
    assert "<img" not in unreadable._repr_html_()
    assert "<img" not in square_model().predict(TWO)[0]._repr_html_()


def test_image_ids_are_the_numbers_of_coco() -> None:
    assert image_ids(["x/000000397133.jpg", "7.png"])[0] == [397133, 7]
    assert image_ids(["x/1.jpg", "y/1.jpg"])[0] == [1, 2]
    assert image_ids(["1.jpg", "a.jpg"])[0] == [1, 2]


def test_images_are_not_overwritten(folder: Path) -> None:
    before = (folder / "a.jpg").read_bytes()
    with pytest.raises(InputError, match="is the folder of the images, which would be overwritten"):
        write(PredictionFiles(CLASSES, images=folder), square_model().predict(folder))
    assert (folder / "a.jpg").read_bytes() == before


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(InputError, match="cannot be a folder"):
        PredictionFiles(CLASSES, images=folder / "a.jpg").prepare()
    with pytest.raises(InputError, match="must be a file, got a folder"):
        PredictionFiles(CLASSES, coco=folder).prepare()


def test_a_sheet_has_no_score_of_an_image_without_objects(folder: Path) -> None:
    captions = {
        (shown.caption, shown.note) for each in square_model().predict(folder) if not each.error
        for shown in [_captioned(each.source, each)]
    }  # fmt: skip
    assert captions == {("no objects", "a.jpg"), ("1 red, 1 blue", "90.0%  a.png")}


# --- outputs of a split


def test_outputs_of_whole_images_are_collected(folder: Path) -> None:
    from convatlas.data.dataset import Images
    from convatlas.data.whole_images import WholeImages
    from convatlas.tasks.targets import Targets
    from square_detector import PREPROCESSING

    model, tensors = tiny_detector(), [TWO, TWO[:, :20], TWO[:, :, :30], TWO, TWO]
    sizes = [(each.shape[1], each.shape[2]) for each in tensors]
    images = Images(WholeImages(tensors, sizes, PREPROCESSING), Targets(x=torch.zeros(5)), list("abcde"))
    forward = eager_forward(model.module.train(), PREPROCESSING)
    found = compute_outputs(forward, images, collect=model.header.task.collect)
    assert model.module.training
    assert [each.size for each in found] == sizes
    again = compute_outputs(forward, images, collect=model.header.task.collect, batch=1)
    assert [len(each) for each in again] == [len(each) for each in found]
