"""What every kind of video gives: its properties and its stored frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convatlas.errors import DataError

Rgb = NDArray[np.uint8]
"""A frame: uint8 (height, width, 3)."""

MAX_FRAME_PIXELS = 2**26
"""Maximum number of pixels of a frame: twice 8K."""

MAX_FRAME_SECONDS = 600.0
"""Maximum time for which a frame is shown. Damaged timestamps would repeat a frame for years."""


@dataclass(frozen=True)
class VideoInfo:
    """The properties of a video.

    codec: such as "h264"; "frames" for a folder. height, width: in pixels, upright. rate: average number of frames per
    second. seconds: duration of the whole video, None if unknown. frames: number of stored frames, None if unknown.
    rotation: clockwise, in degrees, that makes stored frames upright. mirrored: whether they are mirrored left to
    right before that. variable_rate: whether the distances of frames differ by more than the rounding of containers.
    """

    codec: str
    height: int
    width: int
    rate: float
    seconds: float | None = None
    frames: int | None = None
    rotation: int = 0
    mirrored: bool = False
    variable_rate: bool = False


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    number: in the order of display, from 0. time: when it appears, in seconds after the first frame.
    rgb: uint8 (height, width, 3), upright.
    """

    number: int
    time: float
    rgb: Rgb


@dataclass(frozen=True)
class StoredFrame:
    """A decoded frame that is not RGB yet: most frames are dropped by sampling, and RGB costs as much as decoding."""

    number: int
    time: float
    rgb: Callable[[], Rgb]


class FrameSource(Protocol):
    """A video that is open."""

    @property
    def info(self) -> VideoInfo:
        """The properties of the video."""

    @property
    def end(self) -> float:
        """Seconds from the first frame to the end of the last one. Final once all frames are decoded."""

    def stored(self, start: float = 0.0) -> Iterator[StoredFrame]:
        """Yield the stored frames in the order of display, from the one that is shown at `start` seconds or before."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class VideoLimits:
    """Limits of videos that are opened: what is beyond them is refused before a frame is decoded.

    frame_pixels: maximum number of pixels of a frame. frames: of stored frames; None for any number.
    """

    frame_pixels: int = MAX_FRAME_PIXELS
    frames: int | None = None

    def check_size(self, height: int, width: int, name: object) -> None:
        """Raise DataError if a frame is empty or too large."""
        if height <= 0 or width <= 0:
            raise DataError(f"{name}: the frames are empty ({width} x {height} pixels)")
        if height * width > self.frame_pixels:
            raise DataError(f"{name}: a frame must have <= {self.frame_pixels:,} pixels, got {width} x {height}")

    def check_count(self, count: int, name: object) -> None:
        """Raise DataError if there are more frames."""
        if self.frames is not None and count > self.frames:
            raise DataError(f"{name}: must have <= {self.frames:,} frames, got more")


NO_LIMITS = VideoLimits()
"""Limits of videos on the machine itself."""
