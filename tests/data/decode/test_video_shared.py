"""The real clips beside the checkout: read as their tables say, equal to ffmpeg, and seeked without a difference."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convatlas.data.decode.video import open_video
from convatlas.errors import DataError
from shown_frames import sample_numbers
from video_files import ffmpeg_frames

pytest.importorskip("av")

UNREADABLE = {
    "corrupted.mp4": r"is damaged after 28 of 50 frames \(Invalid data found when processing input\)",
    "sample_audio_only.mp4": "has no video stream, only audio",
    "full_blocks.mkv": "has no video stream, only subtitle",
}
BY_NUMBER = ("sample-with-large-length.avi", "count.h264")
LARGE = 200_000


def odd_clips(shared_data: Path) -> list[dict[str, Any]]:
    clips: list[dict[str, Any]] = json.loads((shared_data / "odd_clips/clips.json").read_text())["clips"]
    return clips


def readable(shared_data: Path) -> list[Path]:
    paths = [p for folder in ("odd_clips", "video_clips") for p in sorted((shared_data / folder).iterdir())]
    return [p for p in paths if p.suffix not in (".json", ".csv", ".md") and p.name not in UNREADABLE]


def check_clip(path: Path, clip: dict[str, Any]) -> None:
    """Compare a clip with what its table says."""
    with open_video(path) as video:
        info, means, times = video.info, [], []
        for frame in video.frames():
            times.append(frame.time)
            if frame.number < 3:
                means.append(frame.rgb.mean((0, 1)))
            assert frame.rgb.shape == (info.height, info.width, 3)
            assert frame.rgb.dtype == np.uint8
    assert len(times) == clip["frames_decoded"]
    assert sorted((info.height, info.width)) == sorted(clip["size"])
    assert (info.width, info.height) == tuple(clip["size"][:: -1 if info.rotation % 180 else 1])
    if not info.mirrored:
        assert info.rotation == -clip["rotation"] % 360
    assert info.codec == {"libdav1d": "av1"}.get(clip["codec"], clip["codec"])
    # the table's colors are those of another interpolation of chroma, which changes 10 bits and odd sizes
    atol = 1.0 if "10" in clip["pixel_format"] else 0.1 if info.height % 2 else 0.02
    np.testing.assert_allclose(means, clip["mean_rgb_first_frames"], atol=atol)
    assert times[0] == 0
    assert all(a < b for a, b in pairwise(times))
    if path.name in BY_NUMBER:
        assert times == pytest.approx([number / info.rate for number in range(len(times))])
    elif clip["last_pts_s"] is not None:
        assert times[-1] == pytest.approx(clip["last_pts_s"] - clip["first_pts_s"], abs=1e-3)
        gaps = [b - a for a, b in pairwise(times)]
        assert min(gaps) == pytest.approx(clip["frame_gap_min_s"], abs=1e-3)
        assert max(gaps) == pytest.approx(clip["frame_gap_max_s"], abs=1e-3)
    assert info.seconds == pytest.approx(times[-1] + 1 / info.rate, rel=0.3)


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_odd_clips_are_read_as_their_table_says(shared_data: Path, large: bool) -> None:
    for clip in odd_clips(shared_data):
        path = shared_data / "odd_clips" / clip["file"]
        if (clip["bytes"] > LARGE) != large:
            continue
        if clip["file"] in UNREADABLE:
            with pytest.raises(DataError, match=UNREADABLE[clip["file"]]), open_video(path) as video:
                list(video.frames())
        else:
            check_clip(path, clip)


@pytest.mark.slow
def test_frames_of_all_clips_equal_those_of_ffmpeg(shared_data: Path) -> None:
    with (shared_data / "gestures_ego/labels.csv").open() as file:
        gestures = {shared_data / "gestures_ego" / row["file"]: int(row["frames"]) for row in csv.DictReader(file)}
    for path in [*readable(shared_data), *gestures]:
        with open_video(path) as video:
            expected = ffmpeg_frames(path, video.info.height, video.info.width)
            count = 0
            for frame, rgb in zip(video.frames(), expected, strict=True):
                np.testing.assert_array_equal(frame.rgb, rgb, err_msg=f"{path} {frame.number}")
                count += 1
        assert count == gestures.get(path, count)


@pytest.mark.slow
def test_parts_of_all_clips_equal_sequential_decoding(shared_data: Path) -> None:
    seeked = 0
    for path in readable(shared_data):
        with open_video(path) as video:
            frames, seconds = list(video.frames()), video.seconds
        for part in (0.2, 0.45, 0.7, 0.95):
            start = round(part * seconds, 3)
            with open_video(f"{path}#t={start}") as video:
                numbers = sample_numbers([f.time for f in frames], seconds, 15, start=start)[:5]
                rgb = list(video.sampled(15, count=5))
                seeked += next(video._source.stored(start)).number > 0
            assert len(rgb) == len(numbers)
            for values, number in zip(rgb, numbers, strict=True):
                np.testing.assert_array_equal(values, frames[number].rgb, err_msg=f"{path} {start}")
    assert seeked >= 20
