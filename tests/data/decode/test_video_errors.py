"""Videos that cannot be read: one line that says why, and no output of FFmpeg."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convatlas.data.decode.files import UnavailableError
from convatlas.data.decode.video import open_video
from convatlas.errors import DataError
from video_files import moving_square, write_frames, write_gif, write_sound, write_video

pytest.importorskip("av")

FRAMES = moving_square(30)


def read(name: object, **how: Any) -> int:
    with open_video(str(name), **how) as video:
        return sum(1 for _ in video.frames())


def problem(name: object, **how: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(name, **how)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(name))
    return message.removeprefix(str(name))


def test_what_is_no_video(tmp_path: Path) -> None:
    assert problem(tmp_path / "missing.mp4") == ": no such file"
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert problem(tmp_path / "empty.mp4") == ": the file is empty"
    assert problem("upload", data=b"") == ": the file is empty"
    for text in ("some words", "ffconcat version 1.0\nfile /etc/passwd\n", "#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"):
        (tmp_path / "text.mp4").write_text(text * 50)
        assert ": is damaged, truncated or not a video (" in problem(tmp_path / "text.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert problem(tmp_path / "pipe.mp4") == ": is neither a file nor a folder of frames"
    assert "no video stream, only audio" in problem(write_sound(tmp_path / "sound.mp4"))


def test_a_name_with_a_zero_byte_is_an_error() -> None:
    with pytest.raises(DataError, match="not the name of a file"):
        read("a\0b.mp4")


def test_odd_names_of_files(tmp_path: Path) -> None:
    for name in ("-a film.mp4", "http:film%03d.mp4", "a:b#c.mp4", os.fsdecode(b"\xff.mp4"), "film"):
        assert read(write_video(tmp_path / "film.mp4", FRAMES[:5]).rename(tmp_path / name)) == 5


def test_a_damaged_frame_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", FRAMES, codec="ffv1", gop=1)
    data = bytearray(path.read_bytes())
    place = len(data) * 2 // 3
    data[place : place + 200] = bytes(200)
    path.write_bytes(data)
    assert ": is damaged after 2" in problem(path)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    for name, codec, reason in (
        ("a.mkv", "libx264", r"is truncated: it ends after 0.\d\d of the 1.\d\d s"),
        ("a.avi", "mpeg4", r"is truncated: it has \d+ of the 30 frames"),
        ("a.mp4", "libx264", "is damaged, truncated or not a video"),
        ("a.flv", "libx264", r"is damaged after \d+ of \d+ frames"),
    ):
        path = write_video(tmp_path / name, noise, codec=codec)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        with pytest.raises(DataError, match=reason):
            read(path)


def test_a_frame_size_that_changes_is_an_error(tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.h264", FRAMES)
    two = write_video(tmp_path / "two.h264", moving_square(30, 32, 48))
    (tmp_path / "both.h264").write_bytes(one.read_bytes() + two.read_bytes())
    assert "the frame size changes from 64 x 48 to 48 x 32 after 30 frames; convert it" in problem(
        tmp_path / "both.h264"
    )


def test_a_codec_without_decoder_is_named(tmp_path: Path) -> None:
    for name, tag in (("a.mp4", b"avc1"), ("a.avi", b"FMP4")):
        path = write_video(tmp_path / name, FRAMES, codec="mpeg4" if name == "a.avi" else "libx264")
        path.write_bytes(path.read_bytes().replace(tag, b"ZZZZ"))
        assert "PyAV has no decoder for the codec 'ZZZZ'; convert it, for example with ffmpeg -i" in problem(path)


def test_a_missing_library_is_an_error_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film, gif = write_video(tmp_path / "a.mp4", FRAMES[:3]), write_gif(tmp_path / "a.gif", FRAMES[:3])
    folder = write_frames(tmp_path / "frames", FRAMES[:3])
    monkeypatch.setitem(sys.modules, "av", None)
    for path in (film, gif):
        with pytest.raises(UnavailableError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: av is not installed; pip install 'convatlas[video]'"
    assert read(folder) == 3
    monkeypatch.setitem(sys.modules, "av", SimpleNamespace(__version__="17.0.1"))
    with pytest.raises(UnavailableError, match=r"av must be >= 18, got 17.0.1; pip install -U 'convatlas\[video\]'"):
        read(film)


def test_frames_that_are_too_large_are_not_decoded(tmp_path: Path) -> None:
    gif = write_gif(tmp_path / "a.gif", FRAMES[:2])
    data = bytearray(gif.read_bytes())
    data[6:10] = struct.pack("<HH", 65535, 65535)
    with pytest.raises(DataError):
        read("a.gif", data=bytes(data))
    film = bytearray(write_video(tmp_path / "a.avi", FRAMES, codec="ffv1", pixel_format="bgr0").read_bytes())
    place = film.index(b"strf") + 12
    film[place : place + 8] = struct.pack("<ii", 60000, 60000)
    with pytest.raises(DataError):
        read("a.avi", data=bytes(film))


def test_a_frame_that_is_shown_for_years_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", FRAMES[:6], times=[0, 0.1, 0.2, 2e6, 2e6 + 1, 2e6 + 2])
    with open_video(path) as video, pytest.raises(DataError, match=r"frame 2 is shown for 2,000,000 s, must be <= 600"):
        list(video.sampled(10))


def truncated(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def with_header(data: bytes, head: bytes) -> bytes:
    return head + data[len(head) :]


def flip(data: bytes, seed: int, share: float) -> bytes:
    """Return data with a share of its bytes replaced."""
    random = np.random.default_rng(seed)
    values = np.frombuffer(data, np.uint8).copy()
    places = random.integers(0, len(values), max(1, int(len(values) * share)))
    values[places] = random.integers(0, 256, len(places))
    return values.tobytes()


HEADERS = {
    "MP4": b"\0\0\0\x20ftypisom\0\0\2\0", "Matroska": b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1f",
    "AVI": b"RIFF\xff\xff\xff\xffAVI LIST", "FLV": b"FLV\x01", "GIF": b"GIF89a\xff\xff\xff\xff\xf7\0\0",
    "MPEG": b"\0\0\1\xba", "TS": b"G@\0\x10" * 47, "YUV4MPEG": b"YUV4MPEG2 W64 H48 F0:0\n",
}  # fmt: skip

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    **{f"truncated to {share}": partial(truncated, share=share) for share in (0.02, 0.3, 0.7, 0.99)},
    **{f"bytes flipped, {share}": partial(flip, seed=1, share=share) for share in (0.0005, 0.01, 0.2)},
    "header flipped": lambda data: flip(data[:600], 2, 0.05) + data[600:],
    "end flipped": lambda data: data[:-600] + flip(data[-600:], 3, 0.05),
    "first bytes cut": lambda data: data[37:],
    "middle cut": lambda data: data[: len(data) // 3] + data[len(data) // 2 :],
    "middle repeated": lambda data: data[: len(data) // 2] + data[len(data) // 3 :],
    "large numbers": lambda data: data.replace(b"\0\0\0\x01", b"\x7f\xff\xff\xff"),
    "zeros": lambda data: data[:400] + bytes(len(data) - 400),
    **{f"header of {kind}": partial(with_header, head=head) for kind, head in HEADERS.items()},
}


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.gif", "a.flv", "a.webm", "a.h264"])
def test_damaged_files_end_in_one_line_or_are_decoded(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    codec = {"a.avi": "mpeg4", "a.webm": "libvpx-vp9"}.get(name, "libx264")
    path = write_gif(tmp_path / name, FRAMES) if name == "a.gif" else write_video(tmp_path / name, FRAMES, codec=codec)
    good = path.read_bytes()
    capfd.readouterr()  # of the encoder
    for what, damage in DAMAGE.items():
        data, problem = damage(good), ""
        count = 0
        try:
            with open_video(f"{what} {name}", data=data) as video:
                count = sum(1 for _ in video.frames())
                count += sum(1 for _ in video.sampled(5, first=2))
        except DataError as error:
            problem = str(error)
        assert problem or 0 < count < 500_000, what
        assert not problem or (problem.startswith(f"{what} {name}: ") and "\n" not in problem)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("seed", range(4))
def test_damage_that_decoders_hide_is_an_error(tmp_path: Path, seed: int) -> None:
    path = write_video(tmp_path / "a.mp4", moving_square(30, 96, 128), options={"crf": "5"})
    data = path.read_bytes()
    place = data.index(b"mdat") + len(data) // 4
    path.write_bytes(data[:place] + flip(data[place : place + 1000], seed, 0.02) + data[place + 1000 :])
    assert "damaged" in problem(path)


@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", {}), ("libx264", {"x264-params": "open-gop=1"}), ("mpeg2video", {})]
)
def test_frames_before_the_first_key_frame_are_left_out(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    path = write_video(tmp_path / "a.ts", FRAMES, codec=codec, options=options)
    data = path.read_bytes()
    with open_video(path) as video:
        whole = {frame.rgb.tobytes() for frame in video.frames()}
    with open_video("a.ts", data=data[len(data) // 2 // 188 * 188 :]) as video:
        frames = list(video.frames())
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert len(frames) in (6, 18)
    assert frames[0].time == 0
    assert {frame.rgb.tobytes() for frame in frames} <= whole


def test_an_encrypted_video_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", FRAMES)
    key = ["-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb",
           "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8"]  # fmt: skip
    executable = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    locked = tmp_path / "locked.mp4"
    subprocess.run([executable, "-v", "error", "-i", path, "-c", "copy", *key, locked], check=True)
    assert problem(locked) == ": is encrypted; decrypt it, or leave it out"


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.m4a")
    cover = write_frames(tmp_path / "cover", FRAMES[:1]) / "frame_1.png"
    executable = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    song = tmp_path / "song.m4a"
    command = [executable, "-v", "error", "-i", sound, "-i", cover, "-map", "0", "-map", "1", "-c", "copy"]
    subprocess.run([*command, "-disposition:v:0", "attached_pic", song], check=True)
    assert problem(song) == ": has no video stream, only audio"
