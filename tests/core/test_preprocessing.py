"""Preprocessing against torchvision and plain formulae, and the same image on every way through the library."""

from __future__ import annotations

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
from convatlas.inference.model import load
from convatlas.models.catalog import CATALOG
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
def test_geometry_equals_torchvision(interpolation: Interpolation, antialias: bool, data: st.DataObject) -> None:
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


def test_geometry_of_a_batch_is_that_of_its_images() -> None:
    batch = random_image(4, 3, 31, 57)
    assert torch.equal(RGB.resize_and_crop(batch), torch.stack([RGB.resize_and_crop(image) for image in batch]))


@pytest.mark.parametrize("height", [33, 40, 90])
def test_geometry_gives_the_size_it_announces(height: int) -> None:
    assert RGB.resize_and_crop(random_image(3, height, 50)).shape == (3, RGB.resolution, RGB.resolution) == (3, 39, 39)


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (torch.zeros(3, 40, 40), "uint8"),
        (torch.zeros(3, 40, 40, dtype=torch.int64), "uint8"),
        (torch.zeros(40, 40, dtype=torch.uint8), "shape"),
        (torch.zeros(1, 1, 3, 40, 40, dtype=torch.uint8), "shape"),
        (torch.zeros(1, 40, 40, dtype=torch.uint8), "3 channel"),
        (torch.zeros(40, 40, 3, dtype=torch.uint8), "3 channel"),
        (torch.zeros(3, 0, 40, dtype=torch.uint8), "empty|0"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, torch.Tensor) else "",
)
def test_geometry_refuses_what_is_no_image(pixels: torch.Tensor, named: str) -> None:
    with pytest.raises(DataError, match=named):
        RGB.resize_and_crop(pixels)


def test_normalize_is_the_naive_formula() -> None:
    pixels = random_image(2, 3, 4, 5)
    inputs = RGB.normalize(pixels)
    assert inputs.dtype == torch.float32
    for b, c, y, x in torch.cartesian_prod(*(torch.arange(n) for n in pixels.shape)).tolist():
        expected = (pixels[b, c, y, x].item() / 255 - RGB.mean[c]) / RGB.std[c]
        assert inputs[b, c, y, x].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("row", CATALOG.values(), ids=list(CATALOG))
def test_normalize_spans_the_range_that_the_papers_name(row: Any) -> None:
    steps = row.preprocessing
    ends = steps.normalize(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(-1, steps.channels, 1, 1))
    for channel, (mean, std) in enumerate(zip(steps.mean, steps.std, strict=True)):
        assert ends[:, channel].flatten().tolist() == pytest.approx([-mean / std, (1 - mean) / std], abs=1e-6)


@pytest.mark.parametrize(
    "steps",
    [*(row.preprocessing for row in CATALOG.values()), RGB, Preprocessing(resize=8, crop=8, mean=(0,), std=(1,))],
    ids=[*CATALOG, "every field", "whole numbers"],
)
def test_plain_data_round_trips_through_json(steps: Preprocessing) -> None:
    assert Preprocessing.from_plain(json.loads(json.dumps(steps.to_plain()))) == steps


@pytest.mark.parametrize("name", CATALOG)
@given(size=st.integers(8, 300))
def test_for_size_gives_that_size(name: str, size: int) -> None:
    steps = CATALOG[name].preprocessing
    resized = steps.for_resolution(size)
    assert resized.resolution == size
    assert resized.pad / size == pytest.approx(steps.pad / steps.resolution, abs=0.501 / size)
    assert (resized.mean, resized.std, resized.fill) == (steps.mean, steps.std, steps.fill)
    assert steps.for_resolution(steps.resolution) is steps


def test_for_size_keeps_the_margin_that_is_cropped_away() -> None:
    assert Preprocessing(resize=256, crop=224).for_resolution(112) == Preprocessing(resize=128, crop=112)


def test_for_channels_gives_each_channel_the_average() -> None:
    gray = Preprocessing(resize=8, crop=8, mean=(0.1,), std=(0.3,))
    assert gray.for_channels(3).mean == (0.1,) * 3
    assert gray.for_channels(3).std == (0.3,) * 3
    assert gray.for_channels(3).for_channels(1) == gray
    assert RGB.for_channels(3) is RGB
    assert min(RGB.mean) <= RGB.for_channels(1).mean[0] <= max(RGB.mean)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"resize": 0, "crop": 0}, "crop"),
        ({"crop": 41}, "crop"),
        ({"pad": -1}, "pad"),
        ({"fill": 256}, "fill"),
        ({"interpolation": "lanczos"}, "interpolation"),
        ({"mean": [], "std": []}, "mean"),
        ({"mean": [0.5]}, "mean"),
        ({"std": [0.2, 0.0, 3.0]}, "std"),
        ({"resize": "40"}, "resize"),
        ({"resize": 40.0}, "resize"),
        ({"pad": True}, "pad"),
        ({"antialias": 1}, "antialias"),
        ({"mean": 0.5}, "mean"),
        ({"mean": ["0.5"] * 3}, "mean"),
        ({"std": [True] * 3}, "std"),
        ({"rotate": 1}, "fields"),
    ],
)
def test_bad_fields_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SpecError, match=named):
        Preprocessing.from_plain(RGB.to_plain() | change)


@pytest.mark.parametrize("data", [{}, {"resize": 8}, [], None, "resize"], ids=repr)
def test_missing_fields_are_refused(data: Any) -> None:
    with pytest.raises(SpecError, match="fields"):
        Preprocessing.from_plain(data)


def test_a_image_gets_the_same_answer_in_training_evaluation_and_prediction(colored: Run, images: Path) -> None:
    val, in_training = colored.dataset.val, colored.results["val"]
    assert val is not None
    model = load(colored.model_file)
    split, evaluated, _ = model.evaluate(images)
    predicted = model.predict([Path(name) for name in val.names])
    assert split == "val"
    assert torch.allclose(evaluated.probabilities, in_training.probabilities, rtol=0, atol=1e-6)
    answers = torch.tensor([[p.probabilities[name] for name in model.classes] for p in predicted])
    assert torch.allclose(answers, in_training.probabilities, rtol=0, atol=1e-6)
    assert model.header.metrics["val"]["accuracy"] == evaluated.accuracy
