"""Videos that this test encodes: frames, times, sampling, seeking, orientation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from convatlas.data.decode.video import Video, open_video
from convatlas.data.decode.video_info import Frame
from convatlas.data.decode.video_name import VideoName
from convatlas.data.decode.video_rgb import RgbConverter
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError
from shown_frames import sample_numbers
from video_files import ffmpeg_frames, moving_square, set_display_matrix, write_sound, write_video

pytest.importorskip("av")

COUNT = 30
FRAMES = moving_square(COUNT)
ODD = moving_square(10, 47, 61)
UNEVEN = np.cumsum([0.0] + [0.03, 0.1, 0.2] * 9 + [0.03, 0.03]).round(3).tolist()

Write = Callable[[Path], Path]

KINDS: dict[str, Write] = {
    "H.264 with B-frames in MP4": lambda folder: write_video(folder / "a.mp4", FRAMES),
    "H.264 without a rate in a stream": lambda folder: write_video(folder / "a.h264", FRAMES),
    "H.264 in a transport stream": lambda folder: write_video(folder / "a.ts", FRAMES),
    "H.264 in FLV": lambda folder: write_video(folder / "a.flv", FRAMES),
    "H.264 of 10 bits": lambda folder: write_video(folder / "deep.mp4", FRAMES, pixel_format="yuv420p10le"),
    "H.264 of 4:4:4": lambda folder: write_video(folder / "full.mp4", FRAMES, pixel_format="yuv444p"),
    "H.264 of an odd size": lambda folder: write_video(
        folder / "odd.mkv", ODD, codec="libx264", pixel_format="yuv444p"
    ),
    "FFV1 of an odd size": lambda folder: write_video(folder / "odd2.mkv", ODD, codec="ffv1", pixel_format="yuv420p"),
    "MPEG-4 with B-frames in AVI": lambda folder: write_video(folder / "a.avi", FRAMES, codec="mpeg4"),
    "motion JPEG in AVI": lambda folder: write_video(folder / "jpeg.avi", FRAMES, codec="mjpeg"),
    "VP9 in WebM": lambda folder: write_video(folder / "a.webm", ODD, codec="libvpx-vp9"),
    "H.264 of variable rate": lambda folder: write_video(folder / "uneven.mkv", FRAMES, times=UNEVEN),
    "MPEG-2": lambda folder: write_video(folder / "a.mpg", FRAMES, codec="mpeg2video"),
    "H.264 turned, of an odd size": lambda folder: set_display_matrix(
        write_video(folder / "turned.mp4", ODD, pixel_format="yuv420p", codec="mpeg4"), rotation=90
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[request.param](tmp_path_factory.mktemp("film"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H.264 with a key frame every 12 frames, 30 frames per second."""
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", FRAMES)


def read(name: object, **how: Any) -> list[Frame]:
    with open_video(str(name), **how) as video:
        return list(video.frames())


def test_frames_equal_those_of_the_ffmpeg_executable(film: Path) -> None:
    with open_video(film) as video:
        expected = ffmpeg_frames(film, video.info.height, video.info.width)
        frames = list(video.frames())
    assert len(frames) == len(expected) == video.info.frames
    for frame, rgb in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame.rgb, rgb)


def test_contents_in_memory_give_the_same_video(film: Path) -> None:
    with open_video(film) as video:
        frames, info = list(video.frames()), video.info
    with open_video(film.name, data=film.read_bytes()) as video:
        assert video.info == info
        for frame, other in zip(video.frames(), frames, strict=True):
            assert (frame.number, frame.time) == (other.number, other.time)
            np.testing.assert_array_equal(frame.rgb, other.rgb)


def test_sampling_takes_frames_by_time(film: Path) -> None:
    with open_video(film) as video:
        frames = list(video.frames())
        seconds = video.seconds
        for rate in (7.3, 15, 30, 55):
            numbers = sample_numbers([frame.time for frame in frames], seconds, rate)
            for first in (0, len(numbers) // 2, len(numbers) - 2, len(numbers)):
                check(list(video.sampled(rate, first=first)), frames, numbers[first:])


def check(rgb: list[NDArray[np.uint8]], frames: list[Frame], numbers: list[int]) -> None:
    assert len(rgb) == len(numbers)
    for values, number in zip(rgb, numbers, strict=True):
        np.testing.assert_array_equal(values, frames[number].rgb)


@given(
    rate=st.floats(1, 90), first=st.integers(0, 60), count=st.none() | st.integers(0, 20),
    start=st.floats(0, 0.95), length=st.none() | st.floats(0.01, 1),
)  # fmt: skip
def test_parts_of_a_video_equal_sequential_decoding(
    plain: Path, rate: float, first: int, count: int | None, start: float, length: float | None
) -> None:
    frames = read(plain)
    start = round(start, 6)
    end = None if length is None else round(start + length, 6)
    name = str(VideoName(str(plain), start, end))
    numbers = sample_numbers([f.time for f in frames], 1.0 if end is None else min(end, 1.0), rate, start=start)
    with open_video(name) as video:
        rgb = list(video.sampled(rate, first=first, count=count))
    check(rgb, frames, numbers[first : None if count is None else first + count])


@pytest.mark.parametrize(
    ("write", "first"),
    [
        (lambda path: write_video(path / "a.mp4", FRAMES), 24),
        (lambda path: write_video(path / "a.ts", FRAMES), 24),
        (lambda path: write_video(path / "a.webm", FRAMES, codec="libvpx-vp9"), 24),
        (lambda path: write_video(path / "a.mp4", FRAMES, gop=100), 0),  # one key frame
        (lambda path: write_video(path / "a.avi", FRAMES, codec="mpeg4"), 0),  # no timestamps
        (lambda path: write_video(path / "a.h264", FRAMES), 0),
        # recovery points, from which frames become right slowly
        (lambda path: write_video(path / "a.mp4", FRAMES, options={"x264-params": "intra-refresh=1"}), 0),
    ],
)
def test_decoding_starts_at_a_key_frame_where_that_is_safe(tmp_path: Path, write: Write, first: int) -> None:
    with open_video(write(tmp_path)) as video:
        expected = list(video.frames())
        for _ in range(2):
            stored = list(video._source.stored(0.9))
            assert stored[0].number == first
            for frame in stored:
                assert frame.time == expected[frame.number].time
                np.testing.assert_array_equal(frame.rgb(), expected[frame.number].rgb)


def test_one_pass_at_a_time_has_a_decoder(plain: Path) -> None:
    with open_video(plain) as video:
        source: Any = video._source
        for first in (20, 0, 15, 3):
            frames = video.sampled(25, first=first, count=2)
            next(frames)
            assert len(source._open) == 1
            assert len(list(frames)) == 1
            assert not source._open


def test_only_frames_that_are_asked_for_become_rgb(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []
    rgb = RgbConverter.rgb
    monkeypatch.setattr(RgbConverter, "rgb", lambda self, frame: converted.append(frame.pts) or rgb(self, frame))
    with open_video(plain) as video:
        assert len(list(video.sampled(10))) == 10
        assert len(converted) == 10
        repeated = list(video.sampled(120, count=8))
    assert len(converted) == 12
    assert repeated[0] is repeated[3]


def test_times_are_those_of_the_file(tmp_path: Path) -> None:
    uneven = write_video(tmp_path / "uneven.mkv", FRAMES, times=UNEVEN)
    assert [frame.time for frame in read(uneven)] == pytest.approx(UNEVEN)
    late = write_video(tmp_path / "late.mkv", FRAMES, times=[10 + number / 30 for number in range(COUNT)])
    assert [frame.time for frame in read(late)] == pytest.approx([number / 30 for number in range(COUNT)], abs=1e-3)
    with open_video(uneven) as video:
        assert video.info.rate == pytest.approx(COUNT / video.info.seconds)
        assert video.info.variable_rate


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"), [("avi", "mpeg4", 30), ("avi", "mjpeg", 12.5), ("h264", "libx264", 25)]
)
def test_frames_without_timestamps_are_at_the_average_rate(
    tmp_path: Path, suffix: str, codec: str, rate: float
) -> None:
    path = write_video(tmp_path / f"a.{suffix}", FRAMES, codec=codec, rate=rate)
    assert [frame.time for frame in read(path)] == pytest.approx([number / rate for number in range(COUNT)])
    with open_video(path) as video:
        assert video.info.rate == rate
        assert video.info.seconds == pytest.approx(COUNT / rate)


def test_lossless_frames_are_exact(tmp_path: Path) -> None:
    for path in (
        write_video(tmp_path / "a.mkv", FRAMES, codec="ffv1"),
        write_video(tmp_path / "a.mp4", FRAMES, codec="libx264rgb", options={"crf": "0"}),
    ):
        frames = read(path)
        np.testing.assert_array_equal(np.stack([frame.rgb for frame in frames]), FRAMES)
        assert [frame.number for frame in frames] == list(range(COUNT))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_frames_are_upright(tmp_path: Path, rotation: int, mirrored: bool) -> None:
    path = write_video(tmp_path / "a.mp4", ODD, codec="libx264rgb", options={"crf": "0"})
    set_display_matrix(path, rotation=rotation, mirrored=mirrored)
    upright = np.rot90(ODD[:, :, ::-1] if mirrored else ODD, -rotation // 90, (1, 2))
    with open_video(path) as video:
        assert (video.info.rotation, video.info.mirrored) == (rotation, mirrored)
        assert (video.info.height, video.info.width) == upright.shape[1:3]
        np.testing.assert_array_equal(np.stack([frame.rgb for frame in video.frames()]), upright)
    np.testing.assert_array_equal(ffmpeg_frames(path, *upright.shape[1:3]), upright)


def test_videos_are_decoded_in_parallel(plain: Path) -> None:
    expected = read(plain)

    def decode(number: int) -> bool:
        with open_video(f"{plain}#t={number / 40}", threads=number % 2) as video:
            rgb = list(video.sampled(30, count=3))
        numbers = sample_numbers([f.time for f in expected], 1.0, 30, start=number / 40)
        return all((a == expected[b].rgb).all() for a, b in zip(rgb, numbers[:3], strict=True))

    assert all(map_in_threads(decode, range(32)))


def test_properties_of_a_video(plain: Path) -> None:
    with open_video(f"{plain}#t=0.25,0.75") as video:
        assert isinstance(video, Video)
        info = video.info
        assert (info.codec, info.height, info.width, info.rate, info.frames) == ("h264", 48, 64, 30, COUNT)
        assert info.seconds == pytest.approx(1)
        assert video.seconds == pytest.approx(0.5)
        assert not info.variable_rate
        assert len(list(video.frames())) == COUNT  # of the whole video
        assert len(list(video.sampled(10))) == 5


def test_the_first_video_stream_is_read(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    sound = write_sound(tmp_path / "sound.mp4")
    one, two = write_video(tmp_path / "one.mp4", FRAMES), write_video(tmp_path / "two.mp4", FRAMES[::-1])
    with av.open(str(tmp_path / "all.mkv"), "w") as file:
        inputs = [av.open(str(path)) for path in (sound, one, two)]
        streams = [file.add_stream_from_template(each.streams[0]) for each in inputs]
        for source, stream in zip(inputs, streams, strict=True):
            for packet in source.demux(source.streams[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    file.mux(packet)
    got, expected = read(tmp_path / "all.mkv"), read(one)
    for frame, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(frame.rgb, other.rgb)


def test_a_fragment_that_starts_after_the_end_is_an_error(plain: Path) -> None:
    with pytest.raises(DataError, match=r"starts after the end of the video \(1.00 s\)"), open_video(f"{plain}#t=3"):
        pass
