"""The frames of one video, and the clips that are cut from them: in training, evaluation and prediction alike."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.core.clips import ClipSampling, count_samples
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.files import memory_errors
from convatlas.data.decode.pixels import frame, frame_pixels
from convatlas.data.decode.video import open_video
from convatlas.data.decode.video_info import NO_LIMITS, VideoInfo, VideoLimits
from convatlas.errors import DataError

KEPT_BYTES = 2**26
"""Memory for all prepared frames of a video. Of longer ones only the frames of clips are decoded, after seeking."""

BLOCK_FRAMES = 64
"""Number of frames of a block; see `FrameReader.blocks`."""


def sampling_of(preprocessing: Preprocessing) -> ClipSampling:
    """Return which frames of a video are read, of preprocessing that reads clips."""
    assert preprocessing.sampling is not None
    return preprocessing.sampling


def check_length(count: int, sampling: ClipSampling, name: object, fix: str = "") -> None:
    """Raise DataError unless a video of `count` frames at the network's frame rate is as long as a clip."""
    if count < sampling.frames:
        raise DataError(
            f"{name}: a video must be at least as long as a clip, {sampling.text} ({sampling.seconds:.2f} s), got "
            f"{count} ({count / sampling.rate:.2f} s){fix}"
        )


class Part(NamedTuple):
    """Clips of a video, (n, frames, channels, size, size).

    starts: the first frame of each, at the network's frame rate. seconds: duration of the video, in its last part,
    which has the evenly spaced clips; None in parts along time.
    """

    starts: Sequence[int]
    pixels: Tensor
    seconds: float | None = None


@dataclass(frozen=True)
class FrameReader:
    """Reads the frames of one video at the network's frame rate.

    frames: yields frames from `first` on, at most `count`; a frame is what `prepare` turns into pixels (channels, size,
    size). seconds: returns the duration, which is final once all frames were read. info: of the whole video; None for
    frames in memory. offset: time of the first frame, in seconds from the start of the file. aspect: width / height of
    frames as the network's evaluation shows them. fix: of the error of a video that is shorter than a clip.
    """

    frames: Callable[[int, int | None], Iterator[Any]]
    prepare: Callable[[Any], Tensor]
    seconds: Callable[[], float]
    steps: Preprocessing
    name: object
    info: VideoInfo | None = None
    offset: float = 0.0
    aspect: float = 1.0
    fix: str = ""

    @property
    def sampling(self) -> ClipSampling:
        """Which frames are read."""
        return sampling_of(self.steps)

    @property
    def count(self) -> int:
        """Number of frames, before they are read: by the timestamps of the file."""
        return count_samples(self.seconds(), self.sampling.rate)

    @property
    def is_long(self) -> bool:
        """Whether the memory is not enough for all prepared frames."""
        return self.count * math.prod(self.steps.item_shape[1:]) * self.steps.dtype.itemsize > KEPT_BYTES

    def count_frames(self) -> int:
        """Return the number of frames that can be read; all are decoded if the last one is not where it should be.

        Raises DataError if the video is damaged there.
        """
        is_there = any(True for _ in self.frames(max(0, self.count - 1), 1))
        return self.count if is_there else sum(1 for _ in self.frames(0, None))

    def times(self, start: int) -> tuple[float, float]:
        """Return start and end of the clip that begins with frame `start`, in seconds from the start of the file."""
        first = self.offset + start / self.sampling.rate
        return round(first, 6), round(first + self.sampling.seconds, 6)

    def blocks(self) -> Iterator[Tensor]:
        """Yield all frames in their order, at most `BLOCK_FRAMES` at once: (frames, channels, size, size).

        Raises DataError if the video is unreadable or, at its end, if it is shorter than a clip.
        """
        count = 0
        block: list[Tensor] = []
        for each in self.frames(0, None):
            block.append(self.prepare(each))
            count += 1
            if len(block) == BLOCK_FRAMES:
                yield torch.stack(block)
                block = []
        check_length(count, self.sampling, self.name, self.fix)
        if block:
            yield torch.stack(block)

    def all_frames(self) -> Tensor:
        """Return all frames, (frames, channels, size, size); raises DataError as `blocks` does."""
        return torch.cat(list(self.blocks()))

    def clip(self, start: int, count: int | None = None) -> Tensor:
        """Return the clip that begins with frame `start`, or as many frames as given: (frames, channels, size, size).

        Raises DataError if the video is unreadable or ends before.
        """
        count = self.sampling.frames if count is None else count
        frames = [self.prepare(each) for each in self.frames(start, count)]
        if len(frames) < count:
            end = self.offset + (start + count) / self.sampling.rate
            raise DataError(f"{self.name}: ends before {end:.2f} s, its duration when its timestamps were read")
        return torch.stack(frames)

    def even_clips(self) -> Tensor:
        """Return the evenly spaced clips by which a video is evaluated: (clips, frames, channels, size, size).

        Raises DataError as `parts` does.
        """
        (part,) = self.parts(None, 1)
        return part.pixels

    def parts(self, every: float | None, size: int) -> Iterator[Part]:
        """Yield the clips along time, at most `size` in a part, while the video is decoded; then evenly spaced ones.

        every: seconds from the start of one clip to that of the next; None for the evenly spaced clips alone.
        The memory does not depend on the duration of the video. Raises DataError if the video is unreadable or shorter
        than a clip.
        """
        kept: list[Tensor] | None = None if self.is_long else []
        count = 0
        if kept is None and every is None:
            count = self.count_frames()
        else:
            windows = _WindowCutter(self.sampling.frames, None if every is None else every * self.sampling.rate)
            clips: list[Tensor] = []
            starts: list[int] = []
            for each in self.frames(0, None):
                if kept is not None or count >= windows.start:
                    pixels = self.prepare(each)
                    if kept is not None:
                        kept.append(pixels)
                    if (clip := windows.add(count, pixels)) is not None:
                        clips.append(clip)
                        starts.append(count + 1 - len(clip))
                    if len(clips) == size:
                        yield Part(starts, torch.stack(clips))
                        starts, clips = [], []
                count += 1
            if clips:
                yield Part(starts, torch.stack(clips))
        check_length(count, self.sampling, self.name, self.fix)
        places = self.sampling.starts(count)
        even = [self.clip(at) if kept is None else torch.stack(kept[at : at + self.sampling.frames]) for at in places]
        yield Part(places, torch.stack(even), round(self.seconds(), 6))


class _WindowCutter:
    """Cuts clips that start every `step` frames, a number that need not be whole; none if it is None."""

    def __init__(self, frames: int, step: float | None) -> None:
        self.frames, self.step = frames, step
        self.start: float = math.inf if step is None else 0
        self._number = 0
        self._recent: deque[Tensor] = deque(maxlen=frames)

    def add(self, number: int, frame: Tensor) -> Tensor | None:
        """Take frame `number`, and return the clip that ends with it, if any; those before `start` may be left out."""
        if self.step is None:
            return None
        self._recent.append(frame)
        if number < self.start + self.frames - 1:
            return None
        self._number += 1
        self.start = math.floor(self._number * self.step + 0.5)
        return torch.stack(list(self._recent))


@contextmanager
def open_reader(
    video: str | Tensor | NDArray[np.uint8], preprocessing: Preprocessing, *, data: bytes | None = None,
    for_random_crop: bool = False, name: object = None, fix: str = "", limits: VideoLimits = NO_LIMITS,
) -> Iterator[FrameReader]:  # fmt: skip
    """Open a video to read its frames as a network does, and close it at the end.

    video: its name, or its frames, one for each frame of the network's frame rate: tensors (frames, channels, height,
    width), arrays (frames, height, width, channels). data: contents of the file, if they are in memory.
    for_random_crop: whole frames, resized to squares. name: begins errors, by default the video's own. fix: see
    `FrameReader`. limits: of files. Raises DataError if the video is unreadable.
    """
    steps, rate = preprocessing, sampling_of(preprocessing).rate
    name = video if name is None and isinstance(video, str) else name

    def prepare(rgb: NDArray[Any]) -> Tensor:
        return frame(frame_pixels(rgb, steps.channels, name, steps.window), steps, for_random_crop=for_random_crop)

    def aspect(height: int, width: int) -> float:
        return width / max(1, height) if steps.width is None else steps.width / steps.resize

    with memory_errors(name):
        if isinstance(video, str):
            with open_video(video, data=data, limits=limits) as opened:
                yield FrameReader(
                    lambda first, count: opened.sampled(rate, first=first, count=count), prepare,
                    lambda: opened.seconds, steps, name, opened.info, opened.name.start,
                    aspect(opened.info.height, opened.info.width), fix,
                )  # fmt: skip
        else:
            frames = video.permute(0, 2, 3, 1).numpy() if isinstance(video, Tensor) else video
            yield FrameReader(
                lambda first, count: iter(frames[first : None if count is None else first + count]), prepare,
                lambda: len(frames) / rate, steps, name, aspect=aspect(*frames.shape[1:3]), fix=fix,
            )  # fmt: skip
