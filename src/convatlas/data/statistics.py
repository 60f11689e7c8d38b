"""Statistics of training images: their channels, bit depth, range of values, mean and deviation."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from convatlas.data.decode.pixels import Window, in_channels, read_shares, shares
from convatlas.data.manifest import Manifest
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError, RunError
from convatlas.system.cache import LruFolder, cache_folder
from convatlas.system.files import write_text
from convatlas.system.progress import Progress

VERSION = 1
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
class Statistics:
    """Statistics of images other than 8-bit grayscale and RGB.

    window: the smallest and largest value; None for 8-bit images. mean, std: of each channel, with the window scaled to
    [0, 1].
    """

    window: Window | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def array_statistics(pixels: Tensor, channels: int, *, high_bit_depth: bool, where: str) -> Statistics:
    """Return the statistics of images (n, channels, h, w); raises DataError if all values are equal."""
    moments = [_moments(in_channels(shares(image), channels, where)) for image in pixels]
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
    if statistics := _read(path):
        cache.mark_used(path)
        return statistics
    results = list(map_in_threads(partial(_file_moments, manifest, channels), names))
    moments = [result for result in results if isinstance(result, Tensor)]
    if not moments:
        raise DataError(f"{where}: no image is readable; the first one: {results[0]}")
    statistics = _combine(moments, high_bit_depth=high_bit_depth, where=where)
    text = json.dumps(asdict(statistics))
    with suppress(OSError, RunError):
        cache.make_room(len(text))
        write_text(path, text)
    return statistics


def _read(path: Path) -> Statistics | None:
    """Return cached statistics; None if there are none, or they are damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        plain = json.loads(path.read_text(encoding="utf-8"))
        window = plain["window"] and (float(plain["window"][0]), float(plain["window"][1]))
        return Statistics(window, tuple(map(float, plain["mean"])), tuple(map(float, plain["std"])))
    return None


def _file_moments(manifest: Manifest, channels: int, name: str) -> Tensor | DataError:
    try:
        return _moments(read_shares(name, channels, data=manifest.contents(name)))
    except DataError as error:
        return error


def _moments(image: Tensor) -> Tensor:
    """Return minimum, maximum, mean and variance (4, channels) of an image (channels, h, w)."""
    image = image.double()
    axes = (1, 2)
    return torch.stack([image.amin(axes), image.amax(axes), image.mean(axes), image.var(axes, correction=0)])


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
