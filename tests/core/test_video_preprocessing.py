"""Preprocessing of frames equals torchvision's `VideoClassification`: to the bit before normalization."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv
from torchvision.transforms._presets import VideoClassification

from convatlas.core.clips import ClipSampling
from convatlas.core.preprocessing import Preprocessing
from convatlas.models.catalog import CATALOG

STEPS = CATALOG["r3d_18"].preprocessing
PRESET = VideoClassification(crop_size=(112, 112), resize_size=(128, 171), mean=STEPS.mean, std=STEPS.std)

MAX_ROUNDING = 5e-7
"""Of normalized inputs, which are up to 2.7: torchvision divides by 255 and then by std, here one factor does both."""

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "video_clips"


def check_equal(frames: Tensor) -> None:
    """Compare frames (t, c, h, w) with torchvision: exactly before normalization, and up to rounding after it."""
    pixels, expected = STEPS.resize_and_crop(frames), PRESET(frames)
    values = tv.center_crop(tv.resize(frames, [128, 171], antialias=False), [112, 112])
    assert torch.equal(pixels, values)
    assert torch.equal(STEPS.denormalize(expected[None])[0], values)
    assert (STEPS.normalize(pixels[None])[0] - expected).abs().max() <= MAX_ROUNDING


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.integers(0, 99))
@example(128, 171, False, 0)
@example(64, 86, False, 0)
@example(37, 91, True, 0)
def test_frames_of_any_size(height: int, width: int, channels_last: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    check_equal(frames if channels_last else frames.contiguous())


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (3, 1000), (720, 1280), (1280, 720)])
def test_tall_wide_and_thin_frames_are_resized_as_a_whole(size: tuple[int, int]) -> None:
    check_equal(torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


def test_a_width_that_is_many_times_the_height_is_not_a_thin_image() -> None:
    steps = Preprocessing(resize=12, width=99, crop=10, antialias=False, sampling=ClipSampling(2, 10.0))
    frames = torch.randint(0, 256, (2, 1, 30, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = tv.center_crop(tv.resize(frames, [12, 99], antialias=False), [10, 10])
    assert torch.equal(steps.resize_and_crop(frames), expected)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_other_interpolations_of_frames(mode: str, antialias: bool) -> None:
    steps = STEPS.replaced({"interpolation": mode, "antialias": antialias})
    frames = torch.randint(0, 256, (2, 3, 90, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resized = tv.resize(frames, [128, 171], InterpolationMode(mode), antialias=antialias)
    assert torch.equal(steps.resize_and_crop(frames), tv.center_crop(resized, [112, 112]))


def test_every_value_is_normalized_to_the_nearest_number() -> None:
    """The inputs are closer to the exact ones than torchvision's."""
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).expand(1, 1, 3, 16, 16)
    mean, std = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1, 1) for each in (STEPS.mean, STEPS.std))
    exact = (pixels[0].transpose(0, 1).double() / 255 - mean) / std
    theirs = tv.normalize(tv.convert_image_dtype(pixels[0]), STEPS.mean, STEPS.std).transpose(0, 1)
    ours = STEPS.normalize(pixels)[0]
    assert (ours - exact).abs().max() < 2e-7 < (theirs - exact).abs().max() < MAX_ROUNDING


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the shared clips are not here")
@pytest.mark.parametrize("name", ["high_jump.mp4", "flipping_pancake.mkv", "apply_eye_makeup.avi"])
def test_frames_of_real_videos(name: str) -> None:
    pytest.importorskip("av")
    from convatlas.data.decode.video import open_video

    with open_video(str(CLIPS / name)) as video:
        frames = [torch.from_numpy(rgb).permute(2, 0, 1) for rgb in video.sampled(15.0, count=4)]
    check_equal(torch.stack(frames))
