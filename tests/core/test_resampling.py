"""A part of a resized image equals that part of the whole resized image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convatlas.core.preprocessing import Interpolation, Preprocessing
from convatlas.core.resampling import resize, resize_part

EXACT = [("nearest", False), ("bilinear", True), ("bicubic", True)]
ROUNDED = [("bilinear", False), ("bicubic", False)]


def random_image(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize(("interpolation", "antialias"), EXACT + ROUNDED)
@settings(max_examples=25)
@given(data=st.data())
def test_a_part_is_that_of_the_whole(
    interpolation: Interpolation, antialias: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    short, long = data.draw(st.integers(1, 30)), data.draw(st.integers(31, 300))
    side = data.draw(st.integers(2, 40))
    batch, channels = data.draw(st.sampled_from([(), (2,)])), data.draw(st.sampled_from([1, 3, 5]))
    size = (side, int(side * long / short))
    pixels = random_image(*batch, channels, short, long).to(dtype)
    if data.draw(st.booleans()):
        pixels, size = pixels.mT, (size[1], size[0])
    start = data.draw(st.integers(0, max(size) - side))
    whole = resize(pixels, size, interpolation, antialias=antialias)
    expected = whole.narrow(-2 if size[0] > size[1] else -1, start, side)
    part = resize_part(pixels, size, start, side, interpolation, antialias=antialias)
    assert part.dtype == dtype
    exact = dtype == torch.uint8 and (interpolation, antialias) in EXACT
    assert (part.float() - expected.float()).abs().max() <= (0 if exact else 2 if dtype == torch.uint8 else 0.1)


@pytest.mark.parametrize("shape", [(2, 31, 1), (2, 1, 31), (3, 31, 1), (3, 1, 31)])
def test_strides_do_not_change_the_result(shape: tuple[int, int, int]) -> None:
    pixels = random_image(*shape)
    for order in itertools.permutations(range(3)):
        strided = pixels.permute(order).contiguous().permute(np.argsort(order).tolist())
        size = (shape[1] * 4, shape[2] * 4)
        assert torch.equal(*(resize(each, size, "bilinear", antialias=True) for each in (pixels, strided)))


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (3, 4_000), (4_000, 3)])
@pytest.mark.parametrize(("interpolation", "antialias"), EXACT)
def test_ten_crops_of_thin_images_are_those_of_the_whole(
    shape: tuple[int, int], interpolation: Interpolation, antialias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Preprocessing(resize=16, crop=12, pad=1, interpolation=interpolation, antialias=antialias)
    image = random_image(1, *shape)
    views = steps.tta_views(image, "ten-crop")
    assert torch.equal(views[4], steps.resize_and_crop(image))
    monkeypatch.setattr("convatlas.core.preprocessing.THIN", 10**6)
    assert torch.equal(views, steps.tta_views(image, "ten-crop"))


@pytest.mark.parametrize("window", [None, (0.0, 1.0)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(1, 10**6), (10**6, 1)])
def test_memory_does_not_follow_the_long_side(
    shape: tuple[int, int], interpolation: Interpolation, window: tuple[float, float] | None
) -> None:
    steps = Preprocessing(resize=256, crop=224, interpolation=interpolation, window=window)
    image = torch.full((1, *shape), 7, dtype=steps.dtype)
    assert steps.resize_and_crop(image).unique().tolist() == [7]  # of a resized image of 65 billion pixels
