"""The items (image, label) of a data set in memory, and their images as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convatlas.data.decode.array_values import channels_last, full_scale
from convatlas.data.decode.pixels import decode
from convatlas.data.pixel_cache import MEMORY_LIMIT
from convatlas.errors import DataError, foreign_errors
from convatlas.system.progress import Progress

Array = NDArray[Any]

GRAY_MODES = ("1", "L", "LA", "La")
"""Modes of 8-bit PIL images that become one channel."""

DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Modes of PIL images of more than 8 bits."""

CHECKED_ITEMS = 4
"""Number of items that are read twice, to notice random transforms."""


def read_items(data: Any, where: str, progress: Progress | None = None) -> tuple[list[Array], Array, tuple[str, ...]]:
    """Read every item of a map-style data set once; return its images, its labels and notes.

    Raises DataError that names the item for what is not (image, label), for what the data set raises, and if the
    images take more than 8 GiB of memory.
    """
    with foreign_errors(where, DataError, "has no length"):
        count = len(data)
    images: list[Array] = []
    labels: list[Any] = []
    size = 0
    for number in range(count):
        image, label = _read_item(data, number, where)
        images.append(image)
        labels.append(label)
        size += image.nbytes
        if size > MEMORY_LIMIT:
            raise DataError(
                f"{where}: the images take more than {MEMORY_LIMIT / 2**30:.0f} GiB of memory ({number + 1} of "
                f"{count}); save them as files and give their folder"
            )
        if progress:
            progress(f"reading {where}", number + 1, count)
    notes: tuple[str, ...] = ()
    again = [_read_item(data, number, where)[0] for number in range(min(count, CHECKED_ITEMS))]
    if not all(map(np.array_equal, again, images)):
        notes = (
            "the data set returns other pixels each time (random transforms); those of the first time are used: leave "
            "augmentation to the recipe",
        )
    return images, labels_array(labels, where), notes


def _read_item(data: Any, number: int, where: str) -> tuple[Array, Any]:
    name = f"{where}: item {number}"
    with foreign_errors(name, DataError):
        item = data[number]
    if isinstance(item, Mapping) and {"image", "label"} <= item.keys():
        item = (item["image"], item["label"])
    if not (isinstance(item, tuple | list) and len(item) == 2):
        shown = f"{len(item)} values" if isinstance(item, tuple | list) else type(item).__name__
        raise DataError(f"{name} must be (image, label), got {shown}")
    return image_array(item[0], name), item[1]


def image_array(image: Any, name: str) -> Array:
    """Return a PIL image, an array or a tensor as an array (height, width[, channels])."""
    if isinstance(image, Image.Image):
        if image.mode in DEEP_MODES:
            with foreign_errors(name, DataError):
                return np.asarray(image)
        pixels = decode(image, 1 if image.mode in GRAY_MODES else 3, name)
        return np.moveaxis(pixels.numpy(), 0, -1)
    if not isinstance(image, np.ndarray | Tensor):
        raise DataError(f"{name}: the image must be a PIL image, an array or a tensor, got {type(image).__name__}")
    array = to_array(image, name, "the image")
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "buif":
        raise DataError(
            f"{name}: the image must be numbers (height, width[, channels]) or (1 or 3, height, width), got "
            f"{array.dtype} {array.shape}"
        )
    return channels_last(array) if array.ndim == 3 else array[..., None]


def to_array(values: Any, where: str, what: str) -> Array:
    """Return a tensor of any type and device, an array or a list as an array."""
    with foreign_errors(where, DataError, f"{what} cannot be read as an array"):
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())
        return np.asarray(values)


def labels_array(labels: Sequence[Any], where: str) -> Array:
    """Return the labels of items as an array: numbers, names, or rows of 0 and 1."""
    rows = [label.detach().cpu().numpy() if isinstance(label, Tensor) else label for label in labels]
    known = (bool, int, float, str, bytes, np.generic, np.ndarray, list, tuple)
    wrong = next((i for i, row in enumerate(rows) if not isinstance(row, known)), None)
    if wrong is not None:
        raise DataError(
            f"{where}: item {wrong}: the label must be a class number, a name, or 0 and 1 for each class, got "
            f"{type(rows[wrong]).__name__}"
        )
    texts = sum(isinstance(row, str | bytes) for row in rows)
    if texts not in (0, len(rows)):
        raise DataError(f"{where}: labels must be all names or all numbers, got {texts} names of {len(rows)}")
    with foreign_errors(where, DataError, "labels are not all of the same kind"):
        return np.array(rows)


def stacked_or_none(images: Sequence[Array]) -> Array | None:
    """Return images of the same shape and type as one array; None if they differ or there are none."""
    kinds = {(image.shape, image.dtype) for image in images}
    return np.stack(images) if len(kinds) == 1 else None


def to_pixels(splits: Mapping[str, Sequence[Array]], where: str) -> dict[str, list[Tensor]]:
    """Return images of different sizes as uint8 (channels, height, width), gray ones in color if any is in color.

    Raises DataError that begins with `where` for images of more than 8 bits, whose sizes must be equal.
    """
    flat = [image if image.ndim == 3 else image[..., None] for part in splits.values() for image in part]
    if not flat:
        raise DataError(f"{where}: has no images")
    scaled = full_scale(flat, where, eight_bit=True)
    deep = next((image for image in scaled if image.dtype != np.uint8), None)
    if deep is not None:
        raise DataError(
            f"{where}: images of different sizes must have 8 bits, got {deep.dtype}; resize them to one size"
        )
    channels = {image.shape[-1] for image in scaled}
    if channels == {1, 3}:
        scaled = [image.repeat(3, -1) if image.shape[-1] == 1 else image for image in scaled]
    elif len(channels) > 1:
        raise DataError(f"{where}: images must have the same number of channels, got {sorted(channels)}")
    tensors = iter(torch.from_numpy(np.moveaxis(image, -1, 0).copy()) for image in scaled)
    return {split: [next(tensors) for _ in part] for split, part in splits.items()}
