"""Pixels of a split: a tensor, or image files that are decoded when they are indexed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import tee
from typing import overload

import torch
from torch import Tensor

from convatlas.core.ragged import Inputs
from convatlas.data.threads import map_ahead, map_in_threads
from convatlas.data.videos import RandomClips, Videos, concatenate_videos
from convatlas.data.whole_images import WholeImages, concatenate_whole


class Streamed:
    """Pixels (n, *shape) of files, decoded when they are indexed and not kept in memory.

    load: returns the pixels of a file. shape, dtype: of the pixels of one.
    Indexing raises DataError if a file is no longer readable.
    """

    def __init__(
        self, names: Sequence[str], load: Callable[[str], Tensor], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.names, self.load, self.shape, self.dtype = names, load, shape, dtype

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, which: int | Tensor) -> Tensor:
        if not isinstance(which, Tensor):
            return self.load(self.names[which])
        if not len(which):
            return torch.empty(0, *self.shape, dtype=self.dtype)
        return torch.stack(list(map_in_threads(self.__getitem__, which.tolist())))

    def subset(self, indices: Tensor) -> Streamed:
        """Return the images with these indices, still not decoded."""
        return self.with_names([self.names[i] for i in indices.tolist()])

    def with_names(self, names: Sequence[str]) -> Streamed:
        """Return other files, decoded in the same way."""
        return Streamed(names, self.load, self.shape, self.dtype)


Pixels = Tensor | Streamed | WholeImages | Videos
"""Images by index: of one size, (n, channels, h, w), or whole; clips (n, clips, frames, channels, h, w); or videos."""


Indexed = Tensor | Streamed | WholeImages | RandomClips
"""Pixels from which batches can be taken."""


def count_clips(pixels: Tensor | Streamed) -> int:
    """Return the number of clips of each video; 0 for images."""
    shape = pixels.shape[1:] if isinstance(pixels, Tensor) else pixels.shape
    return shape[0] if len(shape) == 5 else 0


def take(pixels: Pixels, indices: Tensor) -> Pixels:
    """Return the pixels of the images with these indices; streamed ones are not decoded."""
    return pixels[indices] if isinstance(pixels, Tensor) else pixels.subset(indices)


def concatenate_pixels(parts: Sequence[Pixels], names: Sequence[str]) -> Pixels:
    """Return the pixels of several splits as one; all are streamed if one is. names: of the images of all parts."""
    whole = [part for part in parts if isinstance(part, WholeImages)]
    if whole:
        return concatenate_whole(whole)
    videos = [part for part in parts if isinstance(part, Videos)]
    if videos:
        return concatenate_videos(videos)
    streamed = next((part for part in parts if isinstance(part, Streamed)), None)
    if streamed is not None:
        return streamed.with_names(names)
    return torch.cat([part for part in parts if isinstance(part, Tensor)])


@overload
def prefetch(pixels: Tensor | Streamed | RandomClips, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]: ...
@overload
def prefetch(pixels: Indexed, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Inputs]]: ...
def prefetch(pixels: Indexed, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Inputs]]:
    """Yield (indices, pixels) of each batch; of streamed images the next batch is decoded in the background.

    The pixels of whole images are lists.
    """
    if isinstance(pixels, WholeImages):
        first, second = tee(batches)
        yield from zip(first, map_ahead(pixels.image, (indices.tolist() for indices in second)), strict=True)
        return
    if isinstance(pixels, Tensor):
        for indices in batches:
            yield indices, pixels.index_select(0, indices)
        return
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for indices in batches:
            submission = (indices, pool.submit(pixels.__getitem__, indices.cpu()))
            if pending:
                yield pending[0], pending[1].result()
            pending = submission
        if pending:
            yield pending[0], pending[1].result()
