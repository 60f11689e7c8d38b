"""Videos of requests: decoded in threads, a part at a time, while the network computes the clips of the part before."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.video_info import VideoInfo
from convatlas.data.frame_reader import FrameReader, Part
from convatlas.errors import DataError
from convatlas.inference.contents import EncodedFile
from convatlas.inference.images import Views
from convatlas.inference.serve.limits import FRAME_FACTOR, Limits
from convatlas.inference.serve.pixel_budget import PixelBudget
from convatlas.inference.videos import open_frames, single_clips, views_of
from convatlas.system.cores import count_cores


class PredictedVideo(NamedTuple):
    """The decoded outputs of a video, its duration in seconds, and (start, end, outputs) of clips along time."""

    row: Any
    seconds: float | None
    windows: list[tuple[float, float, Any]]


class _TimedPart(NamedTuple):
    part: Part
    times: list[tuple[float, float]]


@dataclass
class VideoReader:
    """Decodes the videos of requests; at most as many as there are cores are open at the same time.

    compute: returns the decoded outputs of a video or clip. readers: threads. pixels: limits the memory for decoding.
    """

    preprocessing: Preprocessing
    limits: Limits
    compute: Callable[[Views], Awaitable[Any]]
    readers: ThreadPoolExecutor
    pixels: PixelBudget

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(count_cores())

    async def predict(self, video: EncodedFile, every: float | None) -> PredictedVideo:
        """Return the outputs of a video; every: see `PredictOptions`. Raises DataError if it cannot be read."""
        loop = asyncio.get_running_loop()
        windows: list[tuple[float, float, Any]] = []
        async with self._slots:
            parts = self._parts(video, every)
            following = loop.run_in_executor(self.readers, _next, parts)
            try:
                while (timed := await following) is not None:
                    following = loop.run_in_executor(self.readers, _next, parts)
                    part = timed.part
                    if part.seconds is not None:
                        row, seconds = await self.compute(views_of(part)), part.seconds
                        continue
                    rows = await asyncio.gather(*map(self.compute, single_clips(part)))
                    windows += [(*time, row) for time, row in zip(timed.times, rows, strict=True)]
            finally:
                with suppress(RuntimeError):  # the server has stopped
                    await asyncio.gather(following, return_exceptions=True)
                    await loop.run_in_executor(self.readers, parts.close)
        return PredictedVideo(row, seconds, windows)

    def _parts(self, video: EncodedFile, every: float | None) -> Generator[_TimedPart, None, None]:
        with open_frames(video, video.name, self.preprocessing, self.limits.of_videos) as reader:
            assert reader.info is not None
            self._check(reader, reader.info, every)
            pixels = reader.info.height * reader.info.width * FRAME_FACTOR
            self.pixels.take(pixels)
            try:
                for part in self._limited(reader).parts(every, self.limits.batch):
                    yield _TimedPart(part, [reader.times(start) for start in part.starts])
            finally:
                self.pixels.give_back(pixels)

    def _check(self, reader: FrameReader, info: VideoInfo, every: float | None) -> None:
        """Raise DataError if a video is too long: by the data in the file, whatever its header states."""
        limits = self.limits
        if (info.seconds or 0) > limits.video_seconds:
            raise DataError(f"{reader.name}: must be at most {limits.video_seconds:g} s long, got {info.seconds:.1f} s")
        clips = 0 if every is None else math.ceil(reader.seconds() / every)
        if clips > limits.video_clips:
            raise DataError(
                f"{reader.name}: must have at most {limits.video_clips:,} clips along time, got {clips:,}; raise every"
            )

    def _limited(self, reader: FrameReader) -> FrameReader:
        """Return a reader that stops while decoding, where a video turns out to be longer than it seemed."""
        most = math.ceil(self.limits.video_seconds * reader.sampling.rate) + 1

        def frames(first: int, count: int | None) -> Iterator[Any]:
            for number, frame in enumerate(reader.frames(first, count), first):
                if number > most:
                    raise DataError(f"{reader.name}: must be at most {self.limits.video_seconds:g} s long")
                yield frame

        return replace(reader, frames=frames)


def _next(parts: Iterator[_TimedPart]) -> _TimedPart | None:
    return next(parts, None)
