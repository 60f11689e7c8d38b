"""Statistics of training images: their channels, bit depth, range of values, mean and deviation."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from convatlas.core.preprocessing import Finite
from convatlas.core.record import Record, above
from convatlas.data.decode.files import memory_errors, read_bytes
from convatlas.data.decode.headers import read_header
from convatlas.data.decode.pixels import FRACTIONS, in_channels, read_masked_shares, shares
from convatlas.data.manifest import Manifest
from convatlas.data.threads import map_in_threads
from convatlas.errors import ConvatlasError, DataError, RunError
from convatlas.system.cache import LruFolder, cache_folder
from convatlas.system.files import write_text
from convatlas.system.progress import Progress

VERSION = 3
"""Changes with the computation, so that cached statistics are computed again."""

CACHE_LIMIT = 16 * 2**20
"""Maximum bytes of statistics in the cache."""


def channels_and_depth(
    names: Sequence[str], manifest: Manifest, *, progress: Progress | None = None
) -> tuple[int, bool]:
    """Return the channels of most image files, or 3 if most are grayscale and some are not, and whether most have
    more than 8 bits.

    Unreadable files do not count. (3, False) if no file is readable.
    """
    info = manifest.look_up(names, progress=progress, task="reading files")
    readable = info.channels > 0
    if not readable.any():
        return 3, False
    channels = Counter(info.channels[readable].tolist())
    most = channels.most_common(1)[0][0]
    return (3 if most == 1 and channels[3] else most), bool(info.high_bit_depth[readable].mean() > 0.5)


@dataclass(frozen=True)
class Statistics(Record):
    """Statistics of images other than 8-bit grayscale and RGB.

    window: the smallest and largest value; None for 8-bit images. mean, std: of each channel, with the window scaled to
    [0, 1].
    """

    error = DataError

    window: tuple[Finite, Finite] | None
    mean: tuple[Finite, ...]
    std: tuple[Annotated[float, above(0)], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and self.window[0] >= self.window[1]:
            raise DataError(f"Statistics: window must be (low, high) with low < high, got {self.window}")


def array_statistics(
    pixels: Tensor | Sequence[Tensor], channels: int, *, high_bit_depth: bool, where: str
) -> Statistics:
    """Return the statistics of images (n, channels, h, w); raises DataError if all values are equal."""
    moments = [_moments_of(in_channels(shares(image), channels, where)) for image in pixels]
    return _combine(moments, high_bit_depth=high_bit_depth, where=where)


def file_statistics(
    names: Sequence[str], channels: int, manifest: Manifest, *, high_bit_depth: bool, where: str
) -> Statistics:
    """Return the statistics of image files, from the cache if their contents are known; unreadable ones do not count.

    Raises DataError if none is readable, or all values are equal.
    """
    key = json.dumps([VERSION, channels, high_bit_depth]).encode() + manifest.look_up(names).digests.tobytes()
    cache = LruFolder(cache_folder() / "statistics", ".json", CACHE_LIMIT)
    path = cache.path / f"{hashlib.sha256(key).hexdigest()[:32]}.json"
    if statistics := _read(path, channels):
        cache.mark_used(path)
        return statistics
    results = list(map_in_threads(partial(_file_moments, manifest, channels), names))
    moments = [result for result in results if isinstance(result, _Moments)]
    if not moments:
        raise DataError(f"{where}: no image is readable; the first one: {results[0]}")
    statistics = _combine(_on_one_scale(moments), high_bit_depth=high_bit_depth, where=where)
    text = json.dumps(statistics.to_plain())
    with suppress(OSError, RunError):
        cache.make_room(len(text))
        write_text(path, text)
    return statistics


def _read(path: Path, channels: int) -> Statistics | None:
    """Return cached statistics; None if there are none, or they are damaged."""
    with suppress(OSError, ValueError, RecursionError, ConvatlasError):
        statistics = Statistics.from_plain(json.loads(path.read_text(encoding="utf-8")))
        if len(statistics.mean) == len(statistics.std) == channels:
            return statistics
    return None


@dataclass(frozen=True)
class _Moments:
    """values: minimum, maximum, mean and variance (4, channels) of an image file.

    floats: whether its samples are floats. whole: whether they are whole numbers from 0 to 255.
    """

    values: Tensor
    floats: bool
    whole: bool


def _file_moments(manifest: Manifest, channels: int, name: str) -> _Moments | DataError:
    try:
        data = manifest.contents(name) or read_bytes(name)
        with memory_errors(name):
            image, missing = read_masked_shares(name, channels, data=data)
            floats = read_header(name, data=data).floats
            whole = floats and bool(((image == image.round()) & (image >= 0) & (image <= 255)).all())
            return _Moments(_moments_of(image, missing), floats, whole)
    except DataError as error:
        return error


def _on_one_scale(images: Sequence[_Moments]) -> list[Tensor]:
    """Return the moments of images of the same scale.

    Floats that are all whole numbers from 0 to 255 become fractions of 255. Other floats that are not fractions do not
    count beside integers, or the integers beside them, whichever are fewer: training refuses those files.
    """
    floats = [image for image in images if image.floats]
    integers = [image for image in images if not image.floats]
    low = min((float(image.values[0].min()) for image in floats), default=0)
    high = max((float(image.values[1].max()) for image in floats), default=0)
    if high > 1 and all(image.whole for image in floats):
        scale = torch.tensor([255, 255, 255, 255**2], dtype=torch.float64)[:, None]
        return [image.values / scale if image.floats else image.values for image in images]
    if FRACTIONS[0] <= low and high <= FRACTIONS[1]:
        return [image.values for image in images]
    return [image.values for image in (floats if len(floats) > len(integers) else integers)]


def _moments_of(image: Tensor, missing: Tensor | None = None) -> Tensor:
    """Return minimum, maximum, mean and variance (4, channels) of an image (channels, h, w), without missing data.

    A channel without any data has the moments of the other channels together.
    """
    image = image.double()
    if missing is None:
        axes = (1, 2)
        return torch.stack([image.amin(axes), image.amax(axes), image.mean(axes), image.var(axes, correction=0)])
    channels = [values[~hidden] for values, hidden in zip(image, missing, strict=True)]
    present = [values if len(values) else torch.cat(channels) for values in channels]
    moments = [torch.stack([v.min(), v.max(), v.mean(), v.var(correction=0)]) for v in present]
    return torch.stack(moments, dim=1)


def _combine(moments: Sequence[Tensor], *, high_bit_depth: bool, where: str) -> Statistics:
    low, high, mean, variance = torch.stack(list(moments)).unbind(1)
    window = (float(low.min()), float(high.max())) if high_bit_depth else (0.0, 1.0)
    if window[0] == window[1]:
        raise DataError(f"{where}: all pixels of all images have the value {window[0]:g}")
    extent = window[1] - window[0]
    center = mean.mean(0)
    # the variance within images plus that between them; a difference of squares would lose it if the type's range is
    # far larger than that of the values
    deviation = (variance.mean(0) + (mean - center).square().mean(0)).sqrt() / extent
    center = (center - window[0]) / extent
    std = tuple(deviation.clamp(min=1e-3).tolist())
    return Statistics(window if high_bit_depth else None, tuple(center.tolist()), std)
