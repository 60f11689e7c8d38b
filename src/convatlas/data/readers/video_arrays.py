"""Videos in memory: arrays of frames with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convatlas.data.pixel_cache import MEMORY_LIMIT
from convatlas.data.readers.array_labels import read_labels
from convatlas.data.readers.arrays import task_of
from convatlas.data.readers.items import labels_array, to_array
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.errors import DataError, foreign_errors

FORMS = "uint8 (frames, height, width, 3) or (frames, 3, height, width)"


def are_videos(part: Any) -> bool:
    """Return whether a split consists of videos and labels: (n, frames, h, w, 3), a list of videos, or a data set."""
    if isinstance(part, tuple | list) and len(part) == 2:
        first = part[0]
        if getattr(first, "ndim", 0) == 5:
            return True
        if isinstance(first, tuple | list) and len(first):
            return getattr(first[0], "ndim", 0) == 4
    return getattr(_first_item(part), "ndim", 0) == 4


def video_array_source(name: str, location: str, splits: Mapping[str, Any]) -> Source:
    """Return the source of splits for which `are_videos` is true.

    A video is uint8 (frames, height, width, 3) or (frames, 3, height, width); its frames are used one after another,
    as if they had the network's frame rate. Labels: see `array_source`. Raises DataError for others, in one line.
    """
    pixels: dict[str, list[Tensor]] = {}
    labels: dict[str, Any] = {}
    for split, part in splits.items():
        where = f"{name}: {split}"
        if isinstance(part, tuple | list) and len(part) == 2 and not isinstance(part[0], tuple):
            videos, targets = part
        else:
            videos, targets = _read_items(part, where)
        labels[split] = to_array(targets, where, "labels")
        if labels[split].dtype == object:
            labels[split] = labels_array(labels[split].tolist(), where)
        pixels[split] = [_frames(video, f"{where}: video {i}") for i, video in enumerate(videos)]
        if labels[split].shape[:1] != (len(pixels[split]),):
            raise DataError(
                f"{where}: must hold one label for each of {len(pixels[split])} videos, got {labels[split].dtype} "
                f"{labels[split].shape}"
            )
    numbers, classes = read_labels(labels, None, name)
    task, rows = task_of(name, numbers, classes, reads="clips")
    samples = {
        split: Samples([f"{split}/{i}" for i in range(len(part))], rows[split], part) for split, part in pixels.items()
    }
    note = "frames of arrays are used one after another: they must have the network's frame rate"
    return Source(name, location, task, samples, 3, notes=(note,))


def _first_item(part: Any) -> Any:
    """Return the first video of a data set; None if it has no items of two values."""
    known = isinstance(part, np.ndarray | Tensor | str | bytes | Mapping)
    if known or not (hasattr(part, "__getitem__") and hasattr(part, "__len__")) or not len(part):
        return None
    try:
        item = part[0]
    except Exception:  # whatever a data set raises is told when its items are read
        return None
    return item[0] if isinstance(item, tuple | list) and len(item) == 2 else None


def _read_items(part: Any, where: str) -> tuple[list[Any], list[Any]]:
    """Return the videos and the labels of the items of a data set."""
    videos: list[Any] = []
    labels: list[Any] = []
    size = 0
    for i in range(len(part)):
        with foreign_errors(f"{where}: item {i}", DataError):
            item: Sequence[Any] = part[i]
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise DataError(f"{where}: item {i} must be (video, label)")
        video = to_array(item[0], f"{where}: item {i}", "the video")
        size += video.nbytes
        if size > MEMORY_LIMIT:
            raise DataError(
                f"{where}: the videos take more than {MEMORY_LIMIT / 2**30:.0f} GiB of memory ({i + 1} of "
                f"{len(part)}); save them as files and give their folder"
            )
        videos.append(video)
        labels.append(item[1])
    return videos, labels


def _frames(video: Any, where: str) -> Tensor:
    """Return a video as uint8 (frames, 3, height, width); gray frames are repeated."""
    array = to_array(video, where, "the video")
    if array.ndim == 4 and array.dtype == np.uint8 and 0 not in array.shape:
        if array.shape[-1] in (1, 3):
            array = np.moveaxis(array, -1, 1)
        if array.shape[1] in (1, 3):
            return torch.from_numpy(array.copy()).expand(-1, 3, -1, -1)
    raise DataError(f"{where}: must be {FORMS}, got {array.dtype} {array.shape}")
