"""Images that fit neither the cache nor the memory: decoded whenever they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.pixels import read_image


def load_image(path: Path, steps: Preprocessing, *, for_random_crop: bool) -> tuple[Tensor, float]:
    """Return an image as the network reads it, or with `for_random_crop` whole, in a square, and its width over its height.

    Raises DataError if it cannot be read.
    """
    image = read_image(path, steps.channels, steps.window)
    aspect = image.shape[-1] / image.shape[-2]
    return (steps.squeezed(image[None])[0] if for_random_crop else steps.geometry(image)), aspect


class Streamed:
    """Pixels (n, channels, side, side) of image files, decoded when they are indexed; nothing is kept.

    A file that cannot be read any more is a DataError.
    """

    def __init__(self, names: Sequence[str], steps: Preprocessing, *, for_random_crop: bool = False) -> None:
        self.names, self.steps, self.for_random_crop = names, steps, for_random_crop

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, which: int | Tensor) -> Tensor:
        if not isinstance(which, Tensor):
            return load_image(Path(self.names[which]), self.steps, for_random_crop=self.for_random_crop)[0]
        if not len(which):
            side = self.steps.resize if self.for_random_crop else self.steps.size
            return torch.empty(0, self.steps.channels, side, side, dtype=self.steps.dtype)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.stack(list(pool.map(self.__getitem__, which.tolist())))

    def subset(self, indices: Tensor) -> Streamed:
        """Return the images with these numbers, not decoded either."""
        return Streamed([self.names[i] for i in indices.tolist()], self.steps, for_random_crop=self.for_random_crop)


Pixels = Tensor | Streamed
"""Images of one size (n, channels, h, w), by number: held, or decoded when they are asked for."""


def prefetch(pixels: Pixels, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (numbers, their pixels) of each batch; of streamed images the next batch is decoded meanwhile."""
    if isinstance(pixels, Tensor):
        for numbers in batches:
            yield numbers, pixels.index_select(0, numbers)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for numbers in batches:
            coming = (numbers, pool.submit(pixels.__getitem__, numbers.cpu()))
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting:
            yield waiting[0], waiting[1].result()
