"""Statistics of a training set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convatlas.data.decode.headers import Header, read_header
from convatlas.data.decode.pixels import Window
from convatlas.errors import DataError


def channels_and_depth(names: Sequence[str]) -> tuple[int, bool]:
    """Return the channels of most image files, but 3 where some have color, and whether most are deeper than 8 bits.

    Read from their headers; files that have none do not count. (3, False) where no file can be opened.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = [header for header in pool.map(_header_or_none, map(Path, names)) if header]
    if not headers:
        return 3, False
    channels = Counter(header.channels for header in headers)
    most = channels.most_common(1)[0][0]
    high_bit_depth = sum(header.high_bit_depth for header in headers) > len(headers) / 2
    return (3 if most == 1 and channels[3] else most), high_bit_depth


def _header_or_none(path: Path) -> Header | None:
    try:
        return read_header(path)
    except DataError:
        return None


@dataclass(frozen=True)
class Statistics:
    """What images that are not 8-bit gray or RGB hold: the window of their values, and mean and deviation in it.

    window: None for 8-bit images. mean, std: of each channel, where the window is 0 to 1.
    """

    window: Window | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def statistics(images: Sequence[Callable[[], Tensor]], *, high_bit_depth: bool, where: object) -> Statistics:
    """Measure images, each of which is read by its function as float shares (channels, h, w).

    Those that raise DataError do not count. Raises DataError if all values are equal.
    """

    def sums(read: Callable[[], Tensor]) -> Tensor | DataError:
        try:
            share = read().double()
        except DataError as error:
            return error
        axes = (1, 2)
        return torch.stack([share.amin(axes), share.amax(axes), share.mean(axes), share.var(axes, correction=0)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        told = list(pool.map(sums, images))
    rows = [row for row in told if isinstance(row, Tensor)]
    if not rows:
        raise DataError(f"{where}: no image can be read; the first one: {told[0]}")
    low, high, mean, variance = torch.stack(rows).unbind(1)
    window = (float(low.min()), float(high.max())) if high_bit_depth else (0.0, 1.0)
    if window[0] == window[1]:
        raise DataError(f"{where}: all pixels of all images have the value {window[0]:g}")
    extent = window[1] - window[0]
    center = mean.mean(0)
    # of each image and between them: a difference of squares would be lost where a type holds far more than is used
    deviation = (variance.mean(0) + (mean - center).square().mean(0)).sqrt() / extent
    center = (center - window[0]) / extent
    return Statistics(
        window if high_bit_depth else None, tuple(center.tolist()), tuple(deviation.clamp(min=1e-3).tolist())
    )  # fmt: skip
