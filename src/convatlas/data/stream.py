"""Pictures that fit neither the cache nor the memory: decoded whenever they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.pixels import read_picture


def readied(path: Path, steps: Preprocessing, *, roomy: bool) -> tuple[Tensor, float]:
    """Return a picture as the network reads it, or with `roomy` whole, in a square, and its width over its height.

    Raises DataError if it cannot be read.
    """
    picture = read_picture(path, steps.channels, steps.window)
    aspect = picture.shape[-1] / picture.shape[-2]
    return (steps.squeezed(picture[None])[0] if roomy else steps.geometry(picture)), aspect


class Streamed:
    """Pixels (n, channels, side, side) of picture files, decoded when they are indexed; nothing is kept.

    A file that cannot be read any more is a DataError.
    """

    def __init__(self, names: Sequence[str], steps: Preprocessing, *, roomy: bool = False) -> None:
        self.names, self.steps, self.roomy = names, steps, roomy

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, which: int | Tensor) -> Tensor:
        if not isinstance(which, Tensor):
            return readied(Path(self.names[which]), self.steps, roomy=self.roomy)[0]
        if not len(which):
            side = self.steps.resize if self.roomy else self.steps.size
            return torch.empty(0, self.steps.channels, side, side, dtype=self.steps.dtype)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.stack(list(pool.map(self.__getitem__, which.tolist())))

    def subset(self, indices: Tensor) -> Streamed:
        """Return the pictures with these numbers, not decoded either."""
        return Streamed([self.names[i] for i in indices.tolist()], self.steps, roomy=self.roomy)


Pixels = Tensor | Streamed
"""Pictures of one size (n, channels, h, w), by number: held, or decoded when they are asked for."""


def gathered(pixels: Pixels, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (numbers, their pixels) of each batch; of streamed pictures the next batch is decoded meanwhile."""
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
