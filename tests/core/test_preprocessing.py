"""Preprocessing equals torchvision and plain formulas, and is the same in training, evaluation and prediction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from convatlas.core.preprocessing import Interpolation, Preprocessing
from convatlas.errors import DataError, SpecError
from convatlas.inference.load import load
from convatlas.models.catalog import CATALOG
from convatlas.tasks.classification.single_label import ClassificationResult
from convatlas.train.run import Run

MODES: dict[Interpolation, v2.InterpolationMode] = {
    "nearest": v2.InterpolationMode.NEAREST,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}
RGB = Preprocessing(
    resize=40,
    crop=33,
    pad=3,
    fill=7,
    interpolation="bicubic",
    antialias=False,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 1.0, 3.0),
)


def random_image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", MODES)
@given(data=st.data())
def test_resize_and_crop_equal_torchvision(interpolation: Interpolation, antialias: bool, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    resize = data.draw(st.integers(2, 40))
    crop, pad = data.draw(st.integers(1, resize)), data.draw(st.integers(0, 3))
    channels = data.draw(st.sampled_from([1, 2, 3, 4]))
    ours = Preprocessing(
        resize=resize, crop=crop, pad=pad, fill=9, interpolation=interpolation, antialias=antialias,
        mean=(0.5,) * channels, std=(0.5,) * channels,
    )  # fmt: skip
    theirs = v2.Compose(
        [v2.Resize(resize, MODES[interpolation], antialias=antialias), v2.CenterCrop(crop), v2.Pad(pad, fill=9)]
    )
    image = random_image(channels, height, width)
    assert torch.equal(ours.resize_and_crop(image), theirs(image))


def test_a_batch_is_resized_and_cropped_as_its_images_are() -> None:
    batch = random_image(4, 3, 31, 57)
    assert torch.equal(RGB.resize_and_crop(batch), torch.stack([RGB.resize_and_crop(image) for image in batch]))


@pytest.mark.parametrize("height", [33, 40, 90])
def test_the_output_has_the_resolution(height: int) -> None:
    assert RGB.resize_and_crop(random_image(3, height, 50)).shape == (3, RGB.resolution, RGB.resolution) == (3, 39, 39)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(3, 40, 40), r"pixels are torch\.uint8 from 0 to 255, got torch\.float32"),
        (torch.zeros(3, 40, 40, dtype=torch.int64), r"pixels are torch\.uint8 from 0 to 255, got torch\.int64"),
        (torch.zeros(40, 40, dtype=torch.uint8), r"got shape \(40, 40\)"),
        (torch.zeros(1, 1, 3, 40, 40, dtype=torch.uint8), r"got shape \(1, 1, 3, 40, 40\)"),
        (torch.zeros(1, 40, 40, dtype=torch.uint8), r"reads 3 channel\(s\), the image has 1"),
        (torch.zeros(40, 40, 3, dtype=torch.uint8), r"reads 3 channel\(s\), the image has 40"),
        (torch.zeros(3, 0, 40, dtype=torch.uint8), r"the image is empty \(40 x 0 pixels\)"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, torch.Tensor) else "",
)
def test_resize_and_crop_refuse_other_tensors(pixels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RGB.resize_and_crop(pixels)


def test_normalize_is_the_naive_formula() -> None:
    pixels = random_image(2, 3, 4, 5)
    inputs = RGB.normalize(pixels)
    assert inputs.dtype == torch.float32
    for b, c, y, x in torch.cartesian_prod(*(torch.arange(n) for n in pixels.shape)).tolist():
        expected = (pixels[b, c, y, x].item() / 255 - RGB.mean[c]) / RGB.std[c]
        assert inputs[b, c, y, x].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalize_leaves_its_input_alone(dtype: torch.dtype) -> None:
    pixels = random_image(2, 3, 4, 5).to(dtype)
    before = pixels.clone()
    RGB.normalize(pixels)
    assert torch.equal(pixels, before)


def test_rotation_turns_the_normalized_input() -> None:
    pixels = random_image(2, 3, 4, 5)
    rotated = dataclasses.replace(RGB, rotation=180)
    assert torch.equal(rotated.normalize(pixels), RGB.normalize(pixels).rot90(2, (-2, -1)))
    assert torch.equal(rotated.resize_and_crop(pixels), RGB.resize_and_crop(pixels))
    with pytest.raises(SpecError, match="rotation must be one of 0, 180, got 90"):
        RGB.replaced({"rotation": 90})


@pytest.mark.parametrize("row", CATALOG.values(), ids=list(CATALOG))
def test_normalize_has_the_range_of_the_papers(row: Any) -> None:
    steps = row.preprocessing
    values = torch.tensor([0, 255], dtype=torch.uint8).view(2, *[1] * len(steps.item_shape))
    ends = steps.normalize(values.expand(*[-1] * (values.ndim - 3), steps.channels, 1, 1))
    for channel, (mean, std) in enumerate(zip(steps.mean, steps.std, strict=True)):
        assert ends[:, channel].flatten().tolist() == pytest.approx([-mean / std, (1 - mean) / std], abs=1e-6)


@pytest.mark.parametrize(
    "steps",
    [*(row.preprocessing for row in CATALOG.values()), RGB, Preprocessing(resize=8, crop=8, mean=(0,), std=(1,))],
    ids=[*CATALOG, "every field", "integers"],
)
def test_plain_data_round_trips_through_json(steps: Preprocessing) -> None:
    assert Preprocessing.from_plain(json.loads(json.dumps(steps.to_plain()))) == steps


@pytest.mark.parametrize("name", CATALOG)
@given(resolution=st.integers(8, 300))
def test_for_resolution_has_that_resolution(name: str, resolution: int) -> None:
    steps = CATALOG[name].preprocessing
    resized = steps.for_resolution(resolution)
    assert resized.resolution == resolution
    assert resized.pad / resolution == pytest.approx(steps.pad / steps.resolution, abs=0.501 / resolution)
    assert (resized.mean, resized.std, resized.fill) == (steps.mean, steps.std, steps.fill)
    assert steps.for_resolution(steps.resolution) is steps


def test_for_resolution_keeps_the_share_that_is_cropped_away() -> None:
    assert Preprocessing(resize=256, crop=224).for_resolution(112) == Preprocessing(resize=128, crop=112)


def test_for_channels_has_the_average_in_each_channel() -> None:
    gray = Preprocessing(resize=8, crop=8, mean=(0.1,), std=(0.3,))
    assert gray.for_channels(3).mean == (0.1,) * 3
    assert gray.for_channels(3).std == (0.3,) * 3
    assert gray.for_channels(3).for_channels(1) == gray
    assert RGB.for_channels(3) is RGB
    assert min(RGB.mean) <= RGB.for_channels(1).mean[0] <= max(RGB.mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 0, "crop": 0}, "resize must be an integer >= 1, got 0"),
        ({"crop": 0}, "crop must be an integer >= 1, got 0"),
        ({"crop": 41}, "crop must be <= resize, got 41 > 40"),
        ({"pad": -1}, "pad must be an integer >= 0, got -1"),
        ({"fill": 256}, r"fill must be an integer in \[0, 255\], got 256"),
        ({"interpolation": "lanczos"}, "interpolation must be one of nearest, bilinear, bicubic, got 'lanczos'"),
        ({"mean": [], "std": []}, "mean and std must have one value for each channel"),
        ({"mean": [0.5]}, "mean and std must have one value for each channel"),
        ({"std": [0.2, 0.0, 3.0]}, r"std\[1\] must be a number > 0, got 0\.0"),
        ({"mean": [0.5, float("nan"), 0.5]}, r"mean\[1\] must be a number, got nan"),
        ({"std": [0.2, 0.2, float("inf")]}, r"std\[2\] must be a number > 0, got inf"),
        ({"resize": "40"}, "resize must be an integer >= 1, got '40'"),
        ({"resize": 40.0}, r"resize must be an integer >= 1, got 40\.0"),
        ({"pad": True}, "pad must be an integer >= 0, got True"),
        ({"antialias": 1}, "antialias must be true or false, got 1"),
        ({"mean": 0.5}, r"mean must be a list, each item a number, got 0\.5"),
        ({"mean": ["0.5"] * 3}, r"mean\[0\] must be a number, got '0\.5'"),
        ({"std": [True] * 3}, r"std\[0\] must be a number > 0, got True"),
        ({"window": [0.1]}, "window must be a list of 2 items or null, got"),
        ({"window": [0.5, 0.5]}, r"window must be \(low, high\) with low < high"),
        ({"window": [0.0, float("inf")]}, "window must be a list of 2 items or null, got"),
        ({"rotate": 1}, "rotate is not a field of Preprocessing"),
    ],
)
def test_bad_fields_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"Preprocessing: {message}"):
        Preprocessing.from_plain(RGB.to_plain() | change)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "resize is missing"),
        ({"resize": 8}, "crop is missing"),
        ([], r"must be a table of fields, got \[\]"),
        (None, "must be a table of fields, got None"),
        ("resize", "must be a table of fields, got 'resize'"),
    ],
    ids=repr,
)
def test_missing_fields_are_named(data: Any, message: str) -> None:
    with pytest.raises(SpecError, match=f"Preprocessing: {message}"):
        Preprocessing.from_plain(data)


def test_training_evaluation_and_prediction_give_the_same_probabilities(colored: Run, images: Path) -> None:
    val, in_training = colored.dataset.val, colored.results["val"]
    assert val is not None
    assert isinstance(in_training, ClassificationResult)
    model = load(colored.model_file)
    split, evaluated, *_ = model.evaluate(images)
    predictions: list[Any] = model.predict([Path(name) for name in val.names])
    assert split == "val"
    assert isinstance(evaluated, ClassificationResult)
    assert torch.allclose(evaluated.probabilities, in_training.probabilities, rtol=0, atol=1e-6)
    predicted = torch.tensor([[p.probabilities[name] for name in model.classes] for p in predictions])
    assert torch.allclose(predicted, in_training.probabilities, rtol=0, atol=1e-6)
    assert model.header.metrics["val"]["accuracy"] == evaluated.accuracy
