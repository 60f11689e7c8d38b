"""Clips: which frames of a video a network reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from convatlas.core.record import Bounds, Record, at_least, between

FrameRate = Annotated[float, Bounds(0, 1000, low_open=True)]
"""Frames per second at which a video is read; without a limit, a short video would have any number of frames."""
ClipCount = Annotated[int, between(1, 1000)]
"""A number of clips of a video."""

LATE = 1e-3
"""Seconds by which a frame may appear after the time at which it is sampled: Matroska rounds timestamps to 1 ms."""


@dataclass(frozen=True)
class ClipSampling(Record):
    """How clips are cut from a video.

    frames: number of frames of a clip. rate: of the clip, in frames per second: the video is read as it is displayed at
    this rate, whatever its own. clips: number of evenly spaced clips of a video in evaluation and prediction, whose
    probabilities are averaged.
    """

    frames: Annotated[int, at_least(1)]
    rate: FrameRate
    clips: ClipCount = 1

    @property
    def seconds(self) -> float:
        """Duration of a clip."""
        return self.frames / self.rate

    @property
    def text(self) -> str:
        """The clip in a few words, such as "16 frames at 15 per second"."""
        return f"{self.frames} frames at {self.rate:g} per second"

    def starts(self, count: int) -> list[int]:
        """Return the first frame of each of the clips of a video with `count` frames at `rate`; see `clip_starts`."""
        return clip_starts(count, self.frames, self.clips)


def clip_starts(count: int, frames: int, clips: int) -> list[int]:
    """Return the first frame of `clips` evenly spaced clips of `frames` frames among `count` frames.

    One clip is in the middle. Several are from the first to the last possible place, as torchvision's
    `UniformClipSampler` has them; they overlap, or are equal, in a short video.
    """
    last = count - frames
    if last < 0:
        raise ValueError(f"clip_starts: count must be >= {frames} frames, got {count}")
    return [last // 2] if clips == 1 else [i * last // (clips - 1) for i in range(clips)]


def tolerance(rate: float) -> float:
    """Return by how many seconds a frame may appear after the time at which it is sampled, at frames per second."""
    return min(LATE, 0.25 / rate)


def count_samples(seconds: float, rate: float) -> int:
    """Return the number of frames of a video of this duration at frames per second."""
    return max(0, math.ceil((seconds - tolerance(rate)) * rate))
