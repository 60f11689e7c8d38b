"""Tiny video files of every kind: encoded files, GIFs, folders of frames and sound. Needs PyAV, from the dev extra.

frames = moving_square(30)  # uint8 (t, h, w, 3), every frame different
write_video(folder / "film.mp4", frames)  # H.264 with B-frames, a key frame every 12 frames
write_video(folder / "uneven.mkv", frames, times=[0, 0.1, 0.15, ...])  # variable frame rate
write_video(folder / "film.avi", frames, codec="mjpeg")  # or "mpeg4"
write_video(folder / "deep.mp4", frames, pixel_format="yuv420p10le")
write_video(folder / "phone.mp4", frames); set_display_matrix(folder / "phone.mp4", rotation=90)
write_gif(folder / "film.gif", frames, seconds=[0.1, 0.05, ...])
write_frames(folder / "film", frames)  # film/frame_1.png, film/frame_2.png, ..., film/frame_10.png
write_sound(folder / "sound.mp4")
ffmpeg_frames(folder / "film.mp4", 48, 64)  # what the ffmpeg executable decodes
"""

from __future__ import annotations

import math
import struct
import subprocess
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]

TIME_BASE = Fraction(1, 1000)
"""Of the timestamps of videos with `times`."""

PIXEL_FORMATS = {"mjpeg": "yuvj420p", "ffv1": "bgr0", "libx264rgb": "rgb24", "png": "rgb24", "libvpx-vp9": "yuv420p"}
"""Of codecs that do not encode yuv420p, or for which another one is usual."""


def moving_square(count: int = 24, height: int = 48, width: int = 64, *, seed: int = 0, step: int = 2) -> Frames:
    """Return frames (count, height, width, 3): a bright square moves right over a colored background.

    A negative step moves it left. No two frames of fewer than `width` are equal, also after compression.
    """
    random = np.random.default_rng(seed)
    background = random.integers(0, 160, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    frames = np.broadcast_to(background[:height, :width], (count, height, width, 3)).astype(np.uint8)
    side = max(1, height // 3)
    for number, frame in enumerate(frames):
        columns = (number * step + np.arange(side)) % width
        frame[side : 2 * side, columns] = (255, 230, 40)
    return frames


def write_video(
    path: Path, frames: Frames, *, rate: float = 30, codec: str = "libx264", gop: int = 12, b_frames: int = 2,
    times: Sequence[float] | None = None, pixel_format: str | None = None, options: Mapping[str, str] | None = None,
    container: str | None = None,
) -> Path:  # fmt: skip
    """Encode frames (t, h, w, 3) and return the path.

    rate: frames per second. gop: distance of key frames. b_frames: between two others, where the codec has them.
    times: seconds of each frame, rounded to milliseconds, instead of the rate. options: of the encoder.
    container: name of the format, by default that of the suffix.
    """
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    fraction = Fraction(rate).limit_denominator(1001)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=fraction, options=dict(options or {}))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format or PIXEL_FORMATS.get(codec, "yuv420p")
        stream.codec_context.gop_size = gop
        if codec in ("libx264", "libx264rgb"):
            stream.options = {"preset": "veryfast", "bf": str(b_frames), "sc_threshold": "0", **stream.options}
        elif codec == "mpeg4":
            stream.codec_context.max_b_frames = b_frames
        stream.time_base = stream.codec_context.time_base = TIME_BASE if times is not None else 1 / fraction
        for number, values in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="rgb24")
            frame.pts = number if times is None else round(times[number] / TIME_BASE)
            frame.time_base = stream.codec_context.time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def set_display_matrix(path: Path, *, rotation: int = 0, mirrored: bool = False) -> Path:
    """Make an MP4 or MOV file say that its frames are shown rotated clockwise, mirrored left to right before that."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + (40 if data[data.index(b"tkhd") + 4] == 0 else 52)
    sine, cosine = round(math.sin(math.radians(rotation))), round(math.cos(math.radians(rotation)))
    sign = -1 if mirrored else 1
    one = 1 << 16
    matrix = (sign * cosine * one, sign * sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, place, *matrix)
    path.write_bytes(data)
    return path


def write_gif(path: Path, frames: Frames, *, seconds: float | Sequence[float] = 0.1) -> Path:
    """Write an animated GIF, whose palettes have few enough colors to be exact for `moving_square`; return the path.

    seconds: duration of every frame, or of each; GIF rounds to 10 ms.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(frame) for frame in frames]
    duration = round(seconds * 1000) if isinstance(seconds, (int, float)) else [round(s * 1000) for s in seconds]
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)
    return path


def write_frames(folder: Path, frames: Frames, *, suffix: str = ".png", first: int = 1) -> Path:
    """Write a folder of frames, numbered without leading zeros: frame_1, ..., frame_10; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / f"frame_{number}{suffix}")
    return folder


def write_sound(path: Path, *, seconds: float = 0.5) -> Path:
    """Write a file with sound and no video stream; return the path."""
    av: Any = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        tone = np.sin(np.arange(int(16000 * seconds)) / 8).astype(np.float32)[None]
        for start in range(0, tone.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def ffmpeg_frames(path: Path, height: int, width: int) -> Frames:
    """Return the frames of the first video stream that the ffmpeg executable writes as RGB, (t, h, w, 3)."""
    executable = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    command = [executable, "-v", "error", "-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough"]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=False)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
