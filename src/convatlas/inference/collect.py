"""What `Model.predict` takes: one image of any kind, or any collection of images, folders and patterns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from convatlas.data.ignored import Ignored
from convatlas.errors import DataError
from convatlas.inference.images import EncodedImage, ImageLike
from convatlas.inference.inputs import as_file, expand_name

Collection = ImageLike | Iterable[Any] | Dataset[Any] | DataLoader[Any]
"""One image, or many: a folder, a glob pattern, an array or tensor of four axes, any iterable of all these (a list, a
generator, a column of a table), or a torch Dataset or DataLoader, of whose items the first element is the image.
"""

_ONE = (bytes, bytearray, memoryview, EncodedImage, Image.Image)


class Collected(NamedTuple):
    """images: one by one. is_single: whether one image was given, not a collection of one.

    ignored: files of folders that are no images; complete once all images are read.
    """

    images: Iterable[ImageLike]
    is_single: bool
    ignored: list[Ignored]


def collect_images(images: Collection, *, fetch: bool = False) -> Collected:
    """Return images one by one; iterables are read when their images are.

    fetch: allow URLs. Raises DataError for a folder without images, a URL without `fetch`, and for tables and mappings.
    A folder without images inside a list becomes an image that cannot be read.
    """
    if isinstance(images, str | os.PathLike):
        name = os.fsdecode(images)
        files, ignored = expand_name(name, fetch=fetch)
        return Collected(files, len(files) == 1 and str(files[0]) == str(as_file(name)), [ignored])
    if isinstance(images, _ONE) or hasattr(images, "read"):
        return Collected([cast(ImageLike, images)], True, [])
    if isinstance(images, Mapping) or hasattr(images, "columns"):
        raise DataError(
            f"images: must be an image or an iterable of images, got {type(images).__name__}; give its values, or one "
            "column of a table"
        )
    if isinstance(images, Tensor) or hasattr(images, "__array__") or _is_nested(images):
        return _collect_array(images, fetch=fetch)
    if isinstance(images, Dataset | DataLoader):
        return _collect_items(_first_elements(images), fetch=fetch)
    if not isinstance(images, Iterable):
        return Collected([cast(ImageLike, images)], True, [])
    return _collect_items(images, fetch=fetch)


def _collect_array(images: Any, *, fetch: bool) -> Collected:
    try:
        values = images if isinstance(images, Tensor) else np.asarray(images)
    except Exception:  # whatever the library of the array raises; reading the image gives the reason
        return Collected([images], True, [])
    if values.ndim == 4:
        return Collected(_rows(values), False, [])
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "OU":  # such as a column of names
        return _collect_items(values.tolist(), fetch=fetch)
    return Collected([values], True, [])


def _collect_items(images: Iterable[Any], *, fetch: bool) -> Collected:
    ignored: list[Ignored] = []
    return Collected(_flatten(images, ignored, fetch=fetch), False, ignored)


def _flatten(images: Iterable[Any], ignored: list[Ignored], *, fetch: bool) -> Iterator[ImageLike]:
    """Yield the images of an iterable: those of folders, patterns, and arrays and tensors of four axes one by one."""
    for image in images:
        if isinstance(image, str | os.PathLike):
            name = os.fsdecode(image)
            try:
                files, unused = expand_name(name, fetch=fetch)
            except DataError:
                yield name  # its prediction has the error
                continue
            ignored.append(unused)
            yield from files
        elif isinstance(image, np.ndarray | Tensor) and image.ndim == 4:
            yield from _rows(image)
        else:
            yield image


def _rows(values: Any) -> Iterator[ImageLike]:
    return (values[i] for i in range(len(values)))  # sparse tensors cannot be iterated


def _first_elements(images: Dataset[Any] | DataLoader[Any]) -> Iterator[Any]:
    """Yield the images of items (image, target, ...), or of batches of them."""
    items: Any = images if isinstance(images, IterableDataset | DataLoader) else _rows(images)
    for item in items:
        yield item[0] if isinstance(item, tuple | list) else item


def _is_nested(images: object) -> bool:
    """Return whether the argument is a number, or lists of numbers, which are one array."""
    while isinstance(images, list | tuple) and images:
        images = images[0]
    return isinstance(images, Real)
