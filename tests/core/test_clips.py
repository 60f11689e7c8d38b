"""Which frames of a video a network reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convatlas.core.clips import ClipSampling, clip_starts
from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import SpecError
from shown_frames import sample_numbers

STEPS = Preprocessing(
    resize=16, width=21, crop=14, antialias=False, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
    sampling=ClipSampling(frames=4, rate=15, clips=3),
)  # fmt: skip


@given(st.integers(1, 400), st.integers(1, 64), st.integers(1, 20))
def test_clips_are_inside_and_evenly_spaced(extra: int, frames: int, clips: int) -> None:
    count = frames + extra - 1
    starts = clip_starts(count, frames, clips)
    assert len(starts) == clips
    assert starts == sorted(starts)
    assert starts[0] >= 0
    assert starts[-1] + frames <= count
    if clips > 1:
        assert (starts[0], starts[-1]) == (0, count - frames)
        # torchvision's UniformClipSampler, whose linspace of float32 may be rounded down
        uniform = torch.linspace(0, count - frames, clips, dtype=torch.float64)
        assert all(abs(a - b) < 1 for a, b in zip(starts, uniform.tolist(), strict=True))


def test_a_video_shorter_than_a_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="count must be >= 8 frames, got 7"):
        clip_starts(7, 8, 1)


@pytest.mark.parametrize(("own", "rate"), [(30, 15), (30, 10), (25, 5), (60000 / 1001, 30000 / 1001), (24, 24)])
def test_a_rate_that_divides_the_video_takes_every_second_or_third_frame(own: float, rate: float) -> None:
    times = [i / own for i in range(100)]
    step = round(own / rate)
    assert sample_numbers(times, 100 / own, rate) == list(range(0, 100, step))


def test_timestamps_in_milliseconds_take_the_same_frames() -> None:
    times = [round(i / 30, 3) for i in range(100)]
    assert sample_numbers(times, 3.333, 15) == list(range(0, 100, 2))


@given(st.lists(st.floats(0.001, 0.5), min_size=1, max_size=40), st.floats(1, 60), st.floats(0, 1))
@settings(deadline=None)
def test_the_frame_that_is_shown_at_a_time_is_taken(gaps: list[float], rate: float, start: float) -> None:
    times = np.concatenate([[0], np.cumsum(gaps)])
    end = float(times[-1]) + 0.05
    numbers = sample_numbers(times.tolist(), end, rate, start=start)
    wanted = start + np.arange(len(numbers)) / rate
    for number, time in zip(numbers, wanted, strict=True):
        assert times[number] <= time + 1.01e-3
        assert number + 1 == len(times) or times[number + 1] > time
    assert start + len(numbers) / rate >= end - 1.01e-3


def test_frames_of_a_clip_are_resized_to_height_and_width() -> None:
    frames = torch.randint(0, 256, (4, 3, 30, 90), dtype=torch.uint8)
    pixels = STEPS.resize_and_crop(frames)
    assert pixels.shape == (4, 3, 14, 14)
    assert STEPS.item_shape == (4, 3, 14, 14)
    inputs = STEPS.normalize(pixels[None])
    assert inputs.shape == (1, 3, 4, 14, 14)
    assert torch.equal(STEPS.denormalize(inputs)[0], pixels)
    mean, std = torch.tensor(STEPS.mean).view(3, 1, 1, 1), torch.tensor(STEPS.std).view(3, 1, 1, 1)
    expected = (pixels.transpose(0, 1).float() / 255 - mean) / std
    torch.testing.assert_close(inputs[0], expected, rtol=1e-5, atol=1e-5)


def test_other_sizes_and_plain_data() -> None:
    assert Preprocessing.from_plain(STEPS.to_plain(), where="steps") == STEPS
    half = STEPS.for_resolution(7)
    assert (half.resize, half.width, half.crop) == (8, 10, 7)
    assert STEPS.reads == "clips"
    assert STEPS.input_text == "3 x 14 px, 4 frames at 15 per second"
    assert not STEPS.misfit((3, 4, 14, 14))
    assert STEPS.misfit((3, 8, 14, 14)) == "must give the network's clips of 8 frames, got clips of 4 frames"
    assert STEPS.misfit((3, 14, 14)) == "must give the network's images, got clips of 4 frames"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"width": 13}, "crop must be <= width"),
     ({"sampling": {"frames": 0, "rate": 15}}, "frames must be an integer >= 1"),
     ({"sampling": {"frames": 4, "rate": 0}}, r"rate must be a number in \(0, 1000\]"),
     ({"sampling": {"frames": 4, "rate": 1e9}}, r"rate must be a number in \(0, 1000\]"),
     ({"sampling": {"frames": 4, "rate": 15, "clips": 1001}}, r"clips must be an integer in \[1, 1000\]")],
)  # fmt: skip
def test_invalid_clips_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        STEPS.replaced(changes)
