"""Frames and clips of videos, as a network reads them; in memory, mapped from the cache, or decoded on access."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.pixels import frame_shape
from convatlas.data.frame_reader import open_reader, sampling_of
from convatlas.data.rng import BatchRandom, Purpose
from convatlas.data.threads import map_in_threads

SHORTER_CLIPS = "; lower --frames, raise --frame-rate, or leave the video out"
"""What to do about a video that is shorter than a clip, before training."""

VideoLike = str | Tensor
"""The name of a video, or its frames (frames, channels, h, w), one for each frame of the network's frame rate."""


def load_clips(video: VideoLike, preprocessing: Preprocessing, *, name: object = None) -> Tensor:
    """Return the evenly spaced clips by which a video is evaluated: (clips, frames, channels, h, w).

    name: of frames in memory. Raises DataError if the video is unreadable, or shorter than a clip.
    """
    with open_reader(video, preprocessing, name=name, fix=SHORTER_CLIPS) as reader:
        return reader.even_clips()


class Videos:
    """All frames of videos at the network's frame rate: (frames, channels, h, w) each, of different lengths.

    videos: tensors, or names of files, which are decoded when they are indexed and not kept in memory. counts: number
    of frames of each. for_random_crop: see `open_reader`.
    Indexing raises DataError if a file is no longer readable.
    """

    def __init__(
        self, videos: Sequence[VideoLike], counts: Sequence[int], preprocessing: Preprocessing, *, for_random_crop: bool
    ) -> None:
        self.videos, self.counts, self.preprocessing = videos, counts, preprocessing
        self.for_random_crop = for_random_crop

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, number: int) -> Tensor:
        """Return all frames of one video; they may be a view of the cache, and must not be changed."""
        return self.clip(number, 0, self.counts[number])

    def clip(self, number: int, first: int, count: int) -> Tensor:
        """Return `count` consecutive frames of a video, (count, channels, h, w)."""
        video = self.videos[number]
        if isinstance(video, Tensor):
            return video[first : first + count]
        with open_reader(video, self.preprocessing, for_random_crop=self.for_random_crop) as reader:
            return reader.clip(first, count)

    def subset(self, indices: Tensor) -> Videos:
        """Return the videos with these indices; files are not decoded."""
        rows = indices.tolist()
        return Videos(
            [self.videos[i] for i in rows], [self.counts[i] for i in rows], self.preprocessing,
            for_random_crop=self.for_random_crop,
        )  # fmt: skip

    def at_random(self, seed: int, epoch: int) -> RandomClips:
        """Return one clip of each video at a random place, which is a function of (seed, epoch, video)."""
        return RandomClips(self, seed, epoch)


class RandomClips:
    """One clip of each video, at a random place: temporal jitter. Indexing gives (n, frames, channels, h, w)."""

    def __init__(self, videos: Videos, seed: int, epoch: int) -> None:
        self.videos, self.seed, self.epoch = videos, seed, epoch
        self.frames = sampling_of(videos.preprocessing).frames

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, numbers: Tensor) -> Tensor:
        if not len(numbers):
            steps, crops = self.videos.preprocessing, self.videos.for_random_crop
            return torch.empty(0, self.frames, *frame_shape(steps, for_random_crop=crops), dtype=steps.dtype)
        places = BatchRandom(numbers, self.seed, self.epoch).uniform(Purpose.CLIP_START).double().tolist()
        items = list(zip(numbers.tolist(), places, strict=True))
        if all(isinstance(self.videos.videos[number], Tensor) for number, _ in items):
            return torch.stack([self._clip(item) for item in items])
        return torch.stack(list(map_in_threads(self._clip, items)))

    def _clip(self, item: tuple[int, float]) -> Tensor:
        number, place = item
        last = self.videos.counts[number] - self.frames
        return self.videos.clip(number, int(place * (last + 1)), self.frames)


def concatenate_videos(parts: Sequence[Videos]) -> Videos:
    """Return the videos of several splits as one."""
    first = parts[0]
    return Videos(
        [video for part in parts for video in part.videos], [count for part in parts for count in part.counts],
        first.preprocessing, for_random_crop=first.for_random_crop,
    )  # fmt: skip


def view_videos(flat: Tensor, counts: Sequence[int], shape: tuple[int, ...]) -> list[Tensor]:
    """Return the frames of videos, stored one after another in a flat tensor, as views. shape: of one frame."""
    size = shape[0] * shape[1] * shape[2]
    parts = flat[: sum(counts) * size].split([count * size for count in counts])
    return [part.view(count, *shape) for part, count in zip(parts, counts, strict=True)]
