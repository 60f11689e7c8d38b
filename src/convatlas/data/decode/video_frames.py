"""Videos that image decoders read: folders of frames, and animated WebP, PNG and AVIF.

GIFs are read by FFmpeg as other video files are: it shows frames with a delay of 0 for 100 ms, as browsers do, and
clears frames as the ffmpeg executable does; Pillow gives the delays as stored. FFmpeg does not decode animated WebP,
and ignores the transparency of PNG, which Pillow keeps and images of this package have on white.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from itertools import accumulate

import numpy as np
from PIL import Image

from convatlas.data.decode.convert import to_values
from convatlas.data.decode.files import EXTENSIONS, UnavailableError
from convatlas.data.decode.pillow import ignore_warnings, open_image, pillow_layout, pillow_samples
from convatlas.data.decode.pixels import read_image
from convatlas.data.decode.video_info import NO_LIMITS, Rgb, StoredFrame, VideoInfo, VideoLimits
from convatlas.data.decode.video_name import FRAMES_PER_SECOND
from convatlas.errors import DataError, brief, foreign_errors

ANIMATED = re.compile(rb"\x89PNG\r\n\x1a\n|RIFF.{4}WEBP|.{4}ftypavis", re.DOTALL)
"""First bytes of the image files that Pillow reads as videos."""

DEFAULT_DELAY = 0.1
"""Seconds for which a frame with a delay of 0 is shown, as browsers do."""


class FolderSource:
    """A folder of frames, in the natural order of their names: frame_2.png is before frame_10.png."""

    def __init__(self, folder: str, fps: float | None) -> None:
        """List the images directly in a folder, and read the first one. fps: frames per second.

        Raises DataError.
        """
        self._rate = FRAMES_PER_SECOND if fps is None else fps
        self._paths = [os.path.join(folder, name) for name in list_frames(folder)]
        if not self._paths:
            raise DataError(f"{folder}: is a folder without frames: it must directly contain images")
        self._size: tuple[int, ...] = ()
        first = self._read(0)
        self._size = first.shape
        height, width, _ = first.shape
        self.info = VideoInfo("frames", height, width, self._rate, self.end, len(self._paths))

    @property
    def end(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        return len(self._paths) / self._rate

    def stored(self, start: float = 0.0) -> Iterator[StoredFrame]:
        """Yield the frames, from the one that is shown at `start` seconds or before."""
        for number in range(max(0, int(start * self._rate * (1 - 1e-9))), len(self._paths)):
            yield StoredFrame(number, number / self._rate, partial(self._read, number))

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _read(self, number: int) -> Rgb:
        path = self._paths[number]
        rgb = read_image(path, 3).permute(1, 2, 0).contiguous().numpy()
        size = self._size or rgb.shape
        if rgb.shape != size:
            raise DataError(
                f"{path}: the frames of a folder must have one size, got {rgb.shape[1]} x {rgb.shape[0]} after "
                f"{number:,} of {size[1]} x {size[0]}"
            )
        NO_LIMITS.check_size(rgb.shape[0], rgb.shape[1], path)
        return rgb


def list_frames(folder: str) -> list[str]:
    """Return the names of the images directly in a folder, in natural order; hidden files are skipped."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.is_dir()]
    except OSError as error:
        raise UnavailableError(f"{folder}: cannot be read: {error.strerror or brief(error)}") from error
    frames = [n for n in names if not n.startswith(".") and os.path.splitext(n)[1].lower() in EXTENSIONS]
    return sorted(frames, key=natural_order)


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts names by the numbers in them: a2 is before a10."""
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


class AnimationSource:
    """An animated WebP, PNG or AVIF, with transparency on white."""

    def __init__(self, data: bytes, name: object, limits: VideoLimits) -> None:
        """Open an animation. Raises DataError that begins with `name`; also if it is a single image."""
        self._data, self._name, self._limits = data, name, limits
        with foreign_errors(name, DataError, "cannot be read"):
            image, self._first = self._open()
            self._count = getattr(image, "n_frames", 1) - self._first
        if self._count < 2:
            raise DataError(f"{name}: is an image and not a video: it has one frame")
        limits.check_count(self._count, name)
        delays = [delay for _, delay in self._decoded()]
        self._times = [0.0, *accumulate(delays)]
        self.info = VideoInfo(
            str(image.format).lower(), image.height, image.width, self._count / self.end, self.end, self._count
        )

    @property
    def end(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        return self._times[-1]

    def stored(self, start: float = 0.0) -> Iterator[StoredFrame]:
        """Yield the frames; every one is decoded from the first on, because it may show parts of those before."""
        for number, (image, _) in enumerate(self._decoded()):
            if self._times[number + 1] > start:
                yield StoredFrame(number, self._times[number], partial(self._rgb, image))

    def close(self) -> None:
        """Do nothing: the file is in memory."""

    def _open(self) -> tuple[Image.Image, int]:
        image = open_image(self._data, self._name)
        self._limits.check_size(image.height, image.width, self._name)
        return image, int(bool(image.info.get("default_image")))  # an image for readers without animation

    def _decoded(self) -> Iterator[tuple[Image.Image, float]]:
        """Yield the frames and their delays in seconds."""
        image, _ = self._open()
        for number in range(self._count):
            problem = f"is damaged after {number:,} of {self._count:,} frames"
            with foreign_errors(self._name, DataError, problem), ignore_warnings():
                image.seek(self._first + number)
                image.load()
                delay = float(image.info.get("duration", 0)) / 1000
                frame = image.copy()
            yield frame, delay if delay > 0 else DEFAULT_DELAY

    def _rgb(self, image: Image.Image) -> Rgb:
        with foreign_errors(self._name, DataError):
            samples, layout = pillow_samples(image, pillow_layout(image, 1), 3)
        values: Rgb = to_values(samples, layout, 3, self._name)[0]
        return values if values.ndim == 3 else np.repeat(values[..., None], 3, 2)
