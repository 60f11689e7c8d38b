"""Videos that are predicted: of any kind, read from anywhere, as the clips that a network takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.video_info import NO_LIMITS, VideoLimits
from convatlas.data.frame_reader import FrameReader, Part, open_reader, sampling_of
from convatlas.errors import DataError, foreign_errors
from convatlas.inference.contents import EncodedFile, naming_errors, read_contents
from convatlas.inference.images import Views
from convatlas.inference.options import PredictOptions

VideoLike = str | os.PathLike[str] | EncodedFile | bytes | bytearray | memoryview | IO[bytes] | NDArray[Any] | Tensor
"""A video file or a folder of frames, by name; the bytes of a file, an open one; or uint8 frames: arrays (frames,
height, width, channels), tensors (frames, channels, height, width). Color is in the order red, green, blue.

The name may end with a fragment, `film.mp4#t=10,20`; see `VideoName`. Frames in memory have no timestamps: each is
taken as a frame at the network's frame rate.
"""


def views_of(part: Part) -> Views:
    """Return all clips of a part as the views of one video."""
    return Views(part.pixels, ((0, 0),) * len(part.pixels), part.seconds)


def single_clips(part: Part) -> list[Views]:
    """Return each clip of a part on its own."""
    return [Views(clip, ((0, 0),)) for clip in part.pixels.split(1)]


@contextmanager
def open_frames(video: Any, name: str, steps: Preprocessing, limits: VideoLimits = NO_LIMITS) -> Iterator[FrameReader]:
    """Open a video, what `read_contents` returns, and close it at the end. Raises DataError that begins with `name`."""
    with naming_errors(name):
        if isinstance(video, EncodedFile | str | os.PathLike):
            text, data = (video.name, video.data) if isinstance(video, EncodedFile) else (os.fspath(video), None)
            if not text:
                raise DataError(f"{name}: the name of the file is empty")
            path = text if data is not None else os.path.expanduser(text)
            opened = open_reader(path, steps, data=data, name=name, limits=limits)
        else:
            opened = open_reader(_frames_in_memory(video, name), steps, name=name)
        with opened as reader:
            yield reader


def _frames_in_memory(video: Any, name: str) -> NDArray[np.uint8]:
    """Return an array, or a tensor (frames, channels, h, w), as (frames, h, w, channels) uint8."""
    with foreign_errors(name, DataError, "is not an array of frames"):
        values = video.numpy(force=True) if isinstance(video, Tensor) else np.asarray(video)
    if values.dtype == object:
        raise DataError(f"{name}: is not a video, but {type(video).__name__}")
    axes = "(frames, channels, height, width)" if isinstance(video, Tensor) else "(frames, height, width, channels)"
    if values.ndim != 4 or values.dtype != np.uint8:
        raise DataError(f"{name}: frames must be uint8 {axes}, got {values.dtype} {tuple(values.shape)}")
    return np.moveaxis(values, 1, -1) if isinstance(video, Tensor) else values


def check_every(every: float, steps: Preprocessing) -> None:
    """Raise DataError if clips would begin more often than frames."""
    rate = sampling_of(steps).rate
    if every * rate < 0.999:
        raise DataError(
            f"predict: every must be >= {1 / rate:.3f} s, one frame at {rate:g} per second, got {every:g} s"
        )


def load_clips(
    video: VideoLike, name: str, preprocessings: Sequence[Preprocessing], options: PredictOptions
) -> list[Views]:
    """Return the evenly spaced clips of a video for each preprocessing, those by which it is evaluated.

    Raises DataError that names the video if it is unreadable or shorter than a clip.
    """
    with naming_errors(name):
        contents = read_contents(video, name, "video", fetch=options.fetch)
    views = []
    for steps in preprocessings:
        with open_frames(contents, name, steps) as reader:
            (part,) = reader.parts(None, 1)
            views.append(views_of(part))
    return views
