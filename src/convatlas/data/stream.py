"""Pixels of a split: a tensor, or image files that are decoded when they are indexed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import tee
from typing import overload

import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs
from convatlas.data.decode.pixels import frame_shape, load_image
from convatlas.data.threads import map_ahead, map_in_threads
from convatlas.data.whole_images import WholeImages, concatenate_whole


class Streamed:
    """Pixels (n, channels, side, side) of image files, decoded when they are indexed and not kept in memory.

    Indexing raises DataError if a file is no longer readable.
    """

    def __init__(self, names: Sequence[str], preprocessing: Preprocessing, *, for_random_crop: bool = False) -> None:
        self.names, self.preprocessing, self.for_random_crop = names, preprocessing, for_random_crop

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, which: int | Tensor) -> Tensor:
        if not isinstance(which, Tensor):
            return load_image(self.names[which], self.preprocessing, for_random_crop=self.for_random_crop)[0]
        if not len(which):
            shape = frame_shape(self.preprocessing, for_random_crop=self.for_random_crop)
            return torch.empty(0, *shape, dtype=self.preprocessing.dtype)
        return torch.stack(list(map_in_threads(self.__getitem__, which.tolist())))

    def subset(self, indices: Tensor) -> Streamed:
        """Return the images with these indices, still not decoded."""
        return self.with_names([self.names[i] for i in indices.tolist()])

    def with_names(self, names: Sequence[str]) -> Streamed:
        """Return other image files, decoded in the same way."""
        return Streamed(names, self.preprocessing, for_random_crop=self.for_random_crop)


Pixels = Tensor | Streamed | WholeImages
"""Images by index: of one size, (n, channels, h, w), or whole."""


def take(pixels: Pixels, indices: Tensor) -> Pixels:
    """Return the pixels of the images with these indices; streamed ones are not decoded."""
    return pixels[indices] if isinstance(pixels, Tensor) else pixels.subset(indices)


def concatenate_pixels(parts: Sequence[Pixels], names: Sequence[str]) -> Pixels:
    """Return the pixels of several splits as one; all are streamed if one is. names: of the images of all parts."""
    whole = [part for part in parts if isinstance(part, WholeImages)]
    if whole:
        return concatenate_whole(whole)
    streamed = next((part for part in parts if isinstance(part, Streamed)), None)
    if streamed is not None:
        return streamed.with_names(names)
    return torch.cat([part for part in parts if isinstance(part, Tensor)])


@overload
def prefetch(pixels: Tensor | Streamed, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]: ...
@overload
def prefetch(pixels: Pixels, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Inputs]]: ...
def prefetch(pixels: Pixels, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Inputs]]:
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
