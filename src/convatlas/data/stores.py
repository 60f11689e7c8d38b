"""How the prepared pixels of a split are stored: in one tensor, of images or clips of one size, or of whole items."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.pixels import frame_shape, load_image
from convatlas.data.frame_reader import FrameReader, open_reader, sampling_of
from convatlas.data.pixel_cache import Notes
from convatlas.data.stream import Pixels, Streamed
from convatlas.data.threads import MAX_ITEMS_PER_TASK
from convatlas.data.videos import SHORTER_CLIPS, Videos, load_clips, view_videos
from convatlas.data.whole_images import Size, WholeImages, check_size, count_values, view_images


@dataclass(frozen=True)
class Loaded:
    """The pixels of a file, as they are stored, and the width over the height of the image, or of the frames.

    parts: the pixels of an image, or of clips; or blocks of all frames of a video, which may be decoded as they are
    taken: an iterator that raises DataError if the video is unreadable.
    """

    parts: Iterable[Tensor]
    aspect: float


@dataclass(frozen=True)
class Store(ABC):
    """How the pixels of these files are stored in one tensor.

    names: of the files. for_random_crop: whole images, or frames, resized to squares. files_per_task: maximum number
    that a thread decodes before their pixels are written. has_frames: whether all frames of videos are stored.
    """

    files_per_task: ClassVar[int] = MAX_ITEMS_PER_TASK
    has_frames: ClassVar[bool] = False

    preprocessing: Preprocessing
    names: Sequence[str]
    for_random_crop: bool = False

    def key(self) -> object:
        """Return everything on which pixels depend besides the contents of the files."""
        return [self.preprocessing.to_plain(), self.for_random_crop]

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of an image or a frame of one size: (channels, h, w)."""
        return frame_shape(self.preprocessing, for_random_crop=self.for_random_crop)

    @abstractmethod
    def shape(self, notes: Notes | None) -> tuple[int, ...] | None:
        """Return the shape of the tensor; None if it depends on the notes of preparation, and there are none yet."""

    def shape_of(self, notes: Notes) -> tuple[int, ...]:
        """Return the shape of the tensor of an entry with these notes."""
        shape = self.shape(notes)
        assert shape is not None
        return shape

    @abstractmethod
    def load(self, number: int, data: bytes | None) -> Loaded:
        """Return the pixels of a file. data: its contents, if they are in memory.

        Raises DataError if it is unreadable.
        """

    def check(self, loaded: Loaded, number: int) -> None:
        """Raise DataError if a file does not fit its annotations: no training starts."""
        return

    @abstractmethod
    def images(self, pixels: Tensor | None, kept: Sequence[int], notes: Notes) -> Pixels:
        """Return the readable images, which come first; without pixels they are decoded when they are indexed.

        kept: their numbers among the files.
        """

    def kept_names(self, kept: Sequence[int]) -> list[str]:
        return [self.names[i] for i in kept]


@dataclass(frozen=True)
class ImageStore(Store):
    """Images of one size: (n, channels, h, w)."""

    def shape(self, notes: Notes | None) -> tuple[int, ...]:
        return len(self.names), *self.item_shape

    def load(self, number: int, data: bytes | None) -> Loaded:
        name = self.names[number]
        pixels, aspect = load_image(name, self.preprocessing, for_random_crop=self.for_random_crop, data=data)
        return Loaded((pixels,), aspect)

    def images(self, pixels: Tensor | None, kept: Sequence[int], notes: Notes) -> Pixels:
        if pixels is not None:
            return pixels[: len(kept)]
        load = partial(_load_pixels, preprocessing=self.preprocessing, for_random_crop=self.for_random_crop)
        return Streamed(self.kept_names(kept), load, self.item_shape, self.preprocessing.dtype)


def _load_pixels(name: str, *, preprocessing: Preprocessing, for_random_crop: bool) -> Tensor:
    return load_image(name, preprocessing, for_random_crop=for_random_crop)[0]


@dataclass(frozen=True)
class WholeStore(Store):
    """Whole images, one after another: (values,). sizes: (height, width) of each, as its annotations state it."""

    sizes: Sequence[Size] = ()

    def key(self) -> object:
        return [self.preprocessing.channels, self.preprocessing.window, self.sizes]

    def shape(self, notes: Notes | None) -> tuple[int, ...]:
        return (count_values(self.sizes, self.preprocessing.channels),)

    def load(self, number: int, data: bytes | None) -> Loaded:
        pixels, aspect = load_image(self.names[number], self.preprocessing, for_random_crop=False, data=data)
        return Loaded((pixels,), aspect)

    def check(self, loaded: Loaded, number: int) -> None:
        (pixels,) = loaded.parts
        check_size(pixels, self.sizes[number], self.names[number])

    def images(self, pixels: Tensor | None, kept: Sequence[int], notes: Notes) -> Pixels:
        sizes, names = [self.sizes[i] for i in kept], self.kept_names(kept)
        views = names if pixels is None else view_images(pixels, sizes, self.preprocessing.channels)
        return WholeImages(views, sizes, self.preprocessing)


@dataclass(frozen=True)
class ClipStore(Store):
    """The clips by which videos are evaluated: (n, clips, frames, channels, h, w)."""

    files_per_task: ClassVar[int] = 1

    def key(self) -> object:
        return [super().key(), _decoder_version()]

    @property
    def _video_shape(self) -> tuple[int, ...]:
        sampling = sampling_of(self.preprocessing)
        return sampling.clips, sampling.frames, *self.item_shape

    def shape(self, notes: Notes | None) -> tuple[int, ...]:
        return len(self.names), *self._video_shape

    def load(self, number: int, data: bytes | None) -> Loaded:
        return Loaded((load_clips(self.names[number], self.preprocessing),), 1.0)

    def images(self, pixels: Tensor | None, kept: Sequence[int], notes: Notes) -> Pixels:
        if pixels is not None:
            return pixels[: len(kept)]
        load = partial(load_clips, preprocessing=self.preprocessing)
        return Streamed(self.kept_names(kept), load, self._video_shape, self.preprocessing.dtype)


@dataclass(frozen=True)
class VideoStore(Store):
    """All frames of videos, one after another: (values,). Random clips are cut from them in training."""

    files_per_task: ClassVar[int] = 1
    has_frames: ClassVar[bool] = True

    def key(self) -> object:
        rate = float(sampling_of(self.preprocessing).rate)
        steps = replace(self.preprocessing, sampling=None)
        frames = sampling_of(self.preprocessing).frames  # shorter videos are unreadable
        return ["frames", steps.to_plain(), rate, frames, self.for_random_crop, _decoder_version()]

    def shape(self, notes: Notes | None) -> tuple[int, ...] | None:
        return None if notes is None else (sum(notes["frames"]) * math.prod(self.item_shape),)

    def load(self, number: int, data: bytes | None) -> Loaded:
        with self._open(number) as reader:
            return Loaded(self._blocks(number) if reader.is_long else tuple(reader.blocks()), reader.aspect)

    def _open(self, number: int) -> AbstractContextManager[FrameReader]:
        return open_reader(
            self.names[number], self.preprocessing, for_random_crop=self.for_random_crop, fix=SHORTER_CLIPS
        )

    def _blocks(self, number: int) -> Iterator[Tensor]:
        with self._open(number) as reader:
            yield from reader.blocks()

    def images(self, pixels: Tensor | None, kept: Sequence[int], notes: Notes) -> Pixels:
        counts = notes["frames"]
        videos = self.kept_names(kept) if pixels is None else view_videos(pixels, counts, self.item_shape)
        return Videos(videos, counts, self.preprocessing, for_random_crop=self.for_random_crop)


def store_of(
    preprocessing: Preprocessing, names: Sequence[str], *, for_random_crop: bool, for_random_clips: bool,
    sizes: Sequence[Size] | None,
) -> Store:  # fmt: skip
    """Return how images or videos are stored. for_random_clips: all frames of videos. sizes: of whole images."""
    if sizes is not None:
        return WholeStore(preprocessing, names, sizes=sizes)
    if preprocessing.sampling is None:
        return ImageStore(preprocessing, names, for_random_crop)
    return VideoStore(preprocessing, names, for_random_crop) if for_random_clips else ClipStore(preprocessing, names)


def _decoder_version() -> str:
    """Return the version of the video decoder, on which pixels may depend."""
    try:
        return version("av")
    except PackageNotFoundError:
        return ""
