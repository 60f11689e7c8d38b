"""Videos: one interface to video files, folders of frames and animated images."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

from convatlas.core.clips import tolerance
from convatlas.data.decode.files import HEAD_BYTES, SIGNATURE, VIDEO_EXTENSIONS, UnavailableError, file_errors
from convatlas.data.decode.video_frames import ANIMATED, AnimationSource, FolderSource
from convatlas.data.decode.video_info import (
    MAX_FRAME_SECONDS,
    NO_LIMITS,
    Frame,
    FrameSource,
    Rgb,
    StoredFrame,
    VideoInfo,
    VideoLimits,
)
from convatlas.data.decode.video_name import VideoName
from convatlas.data.decode.video_pyav import FileSource
from convatlas.errors import DataError


class Video:
    """A video that is open: its properties and its frames."""

    def __init__(self, source: FrameSource, name: VideoName) -> None:
        self._source, self.name = source, name

    @property
    def info(self) -> VideoInfo:
        """The properties of the whole video."""
        return self._source.info

    @property
    def seconds(self) -> float:
        """Duration of the part that the name means."""
        end = self._source.end
        return max(0.0, min(end, end if self.name.end is None else self.name.end) - self.name.start)

    def frames(self) -> Iterator[Frame]:
        """Yield every stored frame of the whole video, in the order of display.

        Raises DataError where a frame cannot be decoded.
        """
        for frame in self._stored(0.0):
            yield Frame(frame.number, frame.time, frame.rgb())

    def sampled(self, rate: float, *, first: int = 0, count: int | None = None) -> Iterator[Rgb]:
        """Yield the frames that are shown at start + k / rate for k = first, first + 1, ...

        start: of the part that the name means; frames end where that part ends, or after `count` frames. They are uint8
        (height, width, 3), and may appear `core.clips.tolerance` late; a frame that is shown again is the same array.
        Raises DataError where a frame cannot be decoded.
        """
        start, late = self.name.start, tolerance(rate)
        k, stop = first, None if count is None else first + count

        def is_over(end: float | None) -> bool:
            return (stop is not None and k >= stop) or (end is not None and start + k / rate >= end - late)

        rgb: Rgb | None = None
        shown: StoredFrame | None = None
        if is_over(self.name.end):
            return
        for frame in self._stored(start + first / rate):
            while shown is not None and start + k / rate < frame.time - late:
                rgb = shown.rgb() if rgb is None else rgb
                yield rgb
                k += 1
                if is_over(self.name.end):
                    return
            shown, rgb = frame, None
        end = self._source.end if self.name.end is None else min(self._source.end, self.name.end)
        while shown is not None and not is_over(end):
            rgb = shown.rgb() if rgb is None else rgb
            yield rgb
            k += 1

    def _stored(self, start: float) -> Iterator[StoredFrame]:
        before: StoredFrame | None = None
        for frame in self._source.stored(start):
            if before is not None:
                self._check_gap(before.number, frame.time - before.time)
            yield frame
            before = frame
        if before is not None:
            self._check_gap(before.number, self._source.end - before.time)

    def _check_gap(self, number: int, seconds: float) -> None:
        if seconds > MAX_FRAME_SECONDS:
            raise DataError(
                f"{self.name}: its timestamps are damaged: frame {number} is shown for {seconds:,.0f} s, "
                f"must be <= {MAX_FRAME_SECONDS:.0f} s"
            )


@contextmanager
def open_video(
    name: str | os.PathLike[str], *, data: bytes | None = None, threads: int = 1, limits: VideoLimits = NO_LIMITS
) -> Iterator[Video]:
    """Open a video; see `VideoName.parse` for its name.

    data: the contents of the file, if they are in memory; `name` is then only its name, but for the fragment.
    threads: of the decoder, 0 for all cores. One is fastest where many videos are decoded at the same time.
    limits: of files.
    Raises DataError in one line if the video cannot be read; UnavailableError if a library that it needs is missing.
    """
    parsed = VideoName.parse(name)
    source = _open_source(parsed, data, threads, limits)
    try:
        if parsed.start > 0 and parsed.start >= source.end:
            raise DataError(f"{parsed}: starts after the end of the video ({source.end:.2f} s)")
        yield Video(source, parsed)
    finally:
        source.close()


def _open_source(name: VideoName, data: bytes | None, threads: int, limits: VideoLimits) -> FrameSource:
    path = name.path
    if data is None and _is_folder(path):
        return FolderSource(path, name.fps)
    if name.fps is not None:
        raise DataError(f"{path}: fps is for folders of frames; a video file has its own frame rate")
    if data is None:
        with _open_file(path) as file:
            head = file.read(HEAD_BYTES)
            if ANIMATED.match(head):
                data = head + file.read()
    else:
        head = data[:HEAD_BYTES]
    if not head:
        raise DataError(f"{path}: the file is empty")
    if data is not None and ANIMATED.match(head):
        return AnimationSource(data, path, limits)
    open_file = partial(_open_file, path) if data is None else partial(_NamedBytes, data, path)
    try:
        return FileSource(open_file, path, threads, limits)
    except UnavailableError:
        raise
    except DataError:
        if SIGNATURE.match(head) and os.path.splitext(path)[1].lower() not in VIDEO_EXTENSIONS | {".gif"}:
            raise DataError(f"{path}: is an image and not a video") from None
        raise


class _NamedBytes(io.BytesIO):
    """The contents of a file: FFmpeg recognizes some formats by the suffix of the name."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def _is_folder(path: str) -> bool:
    try:
        return os.path.isdir(path)
    except ValueError:  # a zero byte in the name
        return False


def _open_file(path: str) -> IO[bytes]:
    """Open a file; raises DataError if it is missing or not a file, else UnavailableError."""
    with file_errors(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: is neither a file nor a folder of frames")
        return open(path, "rb")
