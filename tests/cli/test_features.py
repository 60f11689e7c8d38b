"""The command `features`, and `Model.features` for images, videos and whole images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import convatlas as ca
from commands import Command, check_refused
from convatlas.errors import DataError, EngineError, InputError, SpecError
from convatlas.inference.export import export
from convatlas.inference.features import data_items
from convatlas.inference.inputs import IMAGES
from convatlas.inference.model import Model
from random_detectors import header_for, random_detector, smooth_image
from random_video_model import random_video_model
from tiny_detection import TINY_SPECS
from tiny_models import random_pixels, tiny_model
from tiny_networks import one_of_each_spec
from video_files import moving_square


def test_figure_and_text(convatlas: Command, model_file: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "figure.svg"
    outcome = convatlas(
        "features", model_file, images / "val/ant/00.jpg", "--layer", "stages.0", "--channel", 1, "--unit", "2,3",
        "--data", images, "--top", 3, "--maximize", "--steps", 2, "--out", out,
    )  # fmt: skip
    assert outcome.code == 0
    for text in ("stages.0, channel 1, unit 2, 3 of", "theoretical: ", "in 72 images", "Fourier", "seed 0"):
        assert text in outcome.out
    assert str(out) in outcome.out
    assert out.read_text().startswith("<?xml")


def test_json_is_the_plain_form_and_writes_no_figure(
    convatlas: Command, model_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = images / "val/ant/00.jpg"
    plain = json.loads(convatlas("features", model_file, image, "--json").out)
    assert plain == ca.load(model_file).features(image).to_plain()
    assert not list(tmp_path.glob("*.png"))
    assert plain["receptive_field"]["layer"] == plain["stages"][-1]["layer"]
    assert convatlas("features", model_file, image, "--maps", 2).code == 0
    assert (tmp_path / "00-features.png").is_file()


def test_a_folder_needs_no_classes_but_images(model_file: Path, images: Path, tmp_path: Path) -> None:
    model, image = ca.load(model_file), images / "val/ant/00.jpg"
    with pytest.raises(DataError, match="no images in this folder"):
        model.features(image, data=tmp_path)
    (tmp_path / "one.jpg").write_bytes(image.read_bytes())
    assert "in 1 image (" in model.features(image, data=tmp_path).text()


def test_unreadable_images_of_the_data_are_reported(
    convatlas: Command, model_file: Path, own_images: Path, tmp_path: Path
) -> None:
    (own_images / "val/ant/00.jpg").write_bytes(b"no image")
    outcome = convatlas("features", model_file, own_images / "val/bee/00.jpg", "--data", own_images, "--json")
    assert outcome.code == 2
    assert json.loads(outcome.out)["top_regions"]["images"] == 71
    assert "val/ant/00.jpg" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--layer", "stages.00"), ("features: layer", "stages.00", "did you mean stages.0")),
        (("--channel", "4000"), ("features: channel must be an integer in [0, ", "got 4000")),
        (("--unit", "900,0"), ("features: unit must be Y,X with Y in [0, ", "got 900,0")),
        (("--unit", "1,2,3"), ("features: unit must be Y,X", "got 1,2,3")),
        (("--unit", "1;2"), ("--unit: must be integers separated by commas",)),
        (("--class", "antt"), ("features: class must be a class of the model, got 'antt'", "did you mean ant?")),
        (("--data", "nowhere"), ("nowhere",)),
        (("--data", "nowhere/*.png"), ("nowhere/*.png: nothing matches",)),
        (("--out", "figure.gif"), ("figure.gif",)),
        (("--steps", "0"), ("--steps",)),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(
    convatlas: Command, model_file: Path, images: Path, arguments: tuple[str, ...], named: tuple[str, ...]
) -> None:
    check_refused(convatlas("features", model_file, images / "val/ant/00.jpg", *arguments), *named)


def test_exported_files_and_many_images_are_refused(
    convatlas: Command, model_file: Path, images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    file = tmp_path / "model.onnx"
    export(ca.load(model_file), "onnx", file, check=images)
    check_refused(convatlas("features", file, images / "val/ant/00.jpg"), "exported file", "use the model file")
    with pytest.raises(EngineError):
        ca.load(file).features(images / "val/ant/00.jpg")
    check_refused(convatlas("features", model_file, images / "val/ant"), "features: image must be one image, got 12")


@pytest.mark.slow
@pytest.mark.parametrize("name", one_of_each_spec())
def test_every_classifier(name: str) -> None:
    """No classifier needs to be told a layer; the figure of each can be drawn."""
    model = tiny_model(name)
    pixels = random_pixels(model, 1)[0]
    view = model.features(pixels, data=[pixels, pixels.flip(-1)], top=1, maximize=True, steps=1)
    assert view.filters is not None
    assert view.receptive_field is not None
    assert view.stages
    assert view.top_regions is not None
    assert len(view.top_regions.regions) == 1
    assert len(view._repr_png_()) > 10_000


def test_a_video_is_shown_by_its_middle_clip() -> None:
    model = random_video_model()
    video = moving_square()
    view = model.features(video, layer="stages.0", unit=(1, 2, 3), data=[video], top=2, label="jump", steps=1)
    assert view.view.shape == model.header.preprocessing.item_shape
    field, regions, maximized = view.receptive_field, view.top_regions, view.maximized
    assert field is not None
    assert regions is not None
    assert maximized is not None
    assert len(field.region) == 3
    assert field.gradient.shape == (4, 16, 16)
    assert next(each.source for each in regions.regions).startswith("video 0, clip ")
    assert regions.images == 3
    assert "clips" in regions.to_plain()
    assert maximized.pixels.shape == view.view.shape
    assert maximized.target == "logit of the class jump"
    assert view.figure().get_size_inches()[0] > 5
    with pytest.raises(InputError, match="unit must be T,Y,X"):
        model.features(video, unit=(0, 0))


def test_detectors_are_read_through_their_body() -> None:
    spec = TINY_SPECS["detect"]
    model = Model(random_detector(spec), header_for(spec))
    image, other = smooth_image(60, 90), smooth_image(70, 50, seed=1)
    view = model.features(image, layer="stages.1", data=[image, other], maximize=True, steps=1)
    field, regions = view.receptive_field, view.top_regions
    assert field is not None
    assert regions is not None
    assert view.maximized is not None
    assert field.gradient.shape == (60, 90)
    assert all(0 <= first <= last < size for (first, last), size in zip(field.view_region, (60, 90), strict=True))
    assert {each.source for each in regions.regions} == {"image 0", "image 1"}
    with pytest.raises(InputError, match="class must be of a classifier"):
        model.features(image, label="class 0")
    with pytest.raises(SpecError, match="did you mean stages"):
        model.features(image, layer="stages.11")


def test_data_of_every_kind(images: Path) -> None:
    """Data sets and folders of classes, plain folders, patterns, and images in memory."""
    assert len(list(data_items(str(images), IMAGES))) == 72
    assert len(list(data_items(images / "val/ant", IMAGES))) == 12
    assert len(list(data_items(str(images / "val/ant/*"), IMAGES))) == 12
    assert len(list(data_items([torch.zeros(3, 4, 4)] * 2, IMAGES))) == 2
    assert next(iter(data_items("digits", IMAGES))).shape == (1, 8, 8)
    with pytest.raises(DataError, match="did you mean digits"):
        data_items("digitz", IMAGES)
