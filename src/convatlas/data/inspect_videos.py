"""Inspect the videos of a split: their size, frame rate, duration and contents, and whether training can read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from convatlas.core.clips import ClipSampling
from convatlas.data.decode.files import UnavailableError, memory_errors
from convatlas.data.decode.video import open_video
from convatlas.data.inspect_images import CheckedImage
from convatlas.data.samples import Samples
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError, printable
from convatlas.system.extras import is_installed

DEFAULT_SAMPLING = ClipSampling(16, 15.0)
"""Clips of the networks in Tran et al. (2018), table 1, as they are trained by default."""


@dataclass(frozen=True)
class CheckedVideo(CheckedImage):
    """The properties of one video, or of the part that its name means.

    mode: its codec. digest: sha256 of the frames at the rate of `DEFAULT_SAMPLING`. frames: their number. seconds: its
    duration. rate: stored frames per second, on average. variable_rate: whether their distances differ. The last three
    are 0 or false for arrays.
    """

    frames: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    variable_rate: bool = False

    @property
    def is_short(self) -> bool:
        """Whether it is shorter than a clip."""
        return not self.unreadable and self.frames < DEFAULT_SAMPLING.frames


def inspect_videos(samples: Samples, split: str, labels: Sequence[tuple[int, ...]]) -> Iterator[CheckedVideo]:
    """Decode the videos of a split, as training does by default, or look at those in memory.

    Raises UnavailableError if there is no decoder.
    """
    if samples.pixels is not None:
        for name, classes, video in zip(samples.names, labels, samples.pixels, strict=True):
            yield _inspect_array(name, split, classes, video)
        return

    def inspect(number: int) -> CheckedVideo:
        name, classes = samples.names[number], labels[number]
        try:
            return _inspect_file(name, split, classes)
        except DataError as error:
            if isinstance(error, UnavailableError) and not is_installed("av"):
                raise
            return CheckedVideo(name, split, classes, unreadable=str(error).removeprefix(printable(f"{name}: ")))

    yield from map_in_threads(inspect, range(len(samples)))


def _inspect_file(name: str, split: str, labels: tuple[int, ...]) -> CheckedVideo:
    digest = hashlib.sha256()
    count = 0
    with memory_errors(name), open_video(name) as video:
        info = video.info
        for frame in video.sampled(DEFAULT_SAMPLING.rate):
            digest.update(np.ascontiguousarray(frame).data)
            count += 1
        return CheckedVideo(
            name, split, labels, (info.width, info.height), info.codec, info.rotation != 0 or info.mirrored,
            digest=digest.hexdigest(), frames=count, seconds=video.seconds, rate=info.rate,
            variable_rate=info.variable_rate,
        )  # fmt: skip


def _inspect_array(name: str, split: str, labels: tuple[int, ...], video: Tensor) -> CheckedVideo:
    height, width = video.shape[-2:]
    digest = hashlib.sha256(video.contiguous().numpy().data).hexdigest()
    return CheckedVideo(name, split, labels, (width, height), "array", digest=digest, frames=len(video))
