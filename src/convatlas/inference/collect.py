"""What `Model.predict` takes: one image or video of any kind, or any collection of them, folders and patterns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from convatlas.data.ignored import Ignored
from convatlas.errors import DataError
from convatlas.inference.contents import EncodedFile
from convatlas.inference.images import ImageLike
from convatlas.inference.inputs import IMAGES, InputKind, as_file, expand_name
from convatlas.inference.videos import VideoLike

Collection = ImageLike | VideoLike | Iterable[Any] | Dataset[Any] | DataLoader[Any]
"""One image or video, or many: a folder, a glob pattern, an array or tensor with one axis more, any iterable of all
these (a list, a generator, a column of a table), or a torch Dataset or DataLoader, of whose items the first element is
the image or video.
"""

_ONE = (bytes, bytearray, memoryview, EncodedFile, Image.Image)


class Collected(NamedTuple):
    """items: images or videos, one by one. is_single: whether one was given, not a collection of one.

    ignored: files of folders that are no images or videos; complete once all items are read.
    """

    items: Iterable[Any]
    is_single: bool
    ignored: list[Ignored]


def collect(given: Collection, kind: InputKind = IMAGES, *, fetch: bool = False) -> Collected:
    """Return images or videos one by one; iterables are read when their items are.

    fetch: allow URLs. Raises DataError for a folder without any, a URL without `fetch`, and for tables and mappings.
    A folder without any inside a list becomes an item that cannot be read.
    """
    noun = kind.noun
    if isinstance(given, str | os.PathLike):
        name = os.fsdecode(given)
        files, ignored = expand_name(name, kind, fetch=fetch)
        return Collected(files, len(files) == 1 and str(files[0]) == str(as_file(name)), [ignored])
    if isinstance(given, _ONE) or hasattr(given, "read"):
        return Collected([given], True, [])
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        article = "an" if kind is IMAGES else "a"
        raise DataError(
            f"{noun}s: must be {article} {noun} or an iterable of {noun}s, got {type(given).__name__}; give its "
            "values, or one column of a table"
        )
    if isinstance(given, Tensor) or hasattr(given, "__array__") or _is_nested(given):
        return _collect_array(given, kind, fetch=fetch)
    if isinstance(given, Dataset | DataLoader):
        return _collect_items(_first_elements(given), kind, fetch=fetch)
    if not isinstance(given, Iterable):
        return Collected([given], True, [])
    return _collect_items(given, kind, fetch=fetch)


def _collect_array(given: Any, kind: InputKind, *, fetch: bool) -> Collected:
    try:
        values = given if isinstance(given, Tensor) else np.asarray(given)
    except Exception:  # whatever the library of the array raises; reading it gives the reason
        return Collected([given], True, [])
    if values.ndim == kind.axes + 1:
        return Collected(_rows(values), False, [])
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "OU":  # such as a column of names
        return _collect_items(values.tolist(), kind, fetch=fetch)
    return Collected([values], True, [])


def _collect_items(given: Iterable[Any], kind: InputKind, *, fetch: bool) -> Collected:
    ignored: list[Ignored] = []
    return Collected(_flatten(given, kind, ignored, fetch=fetch), False, ignored)


def _flatten(given: Iterable[Any], kind: InputKind, ignored: list[Ignored], *, fetch: bool) -> Iterator[Any]:
    """Yield the items of an iterable: those of folders, patterns, and arrays and tensors of many one by one."""
    for item in given:
        if isinstance(item, str | os.PathLike):
            name = os.fsdecode(item)
            try:
                files, unused = expand_name(name, kind, fetch=fetch)
            except DataError:
                yield name  # its prediction has the error
                continue
            ignored.append(unused)
            yield from files
        elif isinstance(item, np.ndarray | Tensor) and item.ndim == kind.axes + 1:
            yield from _rows(item)
        else:
            yield item


def _rows(values: Any) -> Iterator[Any]:
    return (values[i] for i in range(len(values)))  # sparse tensors cannot be iterated


def _first_elements(given: Dataset[Any] | DataLoader[Any]) -> Iterator[Any]:
    """Yield the images or videos of items (image, target, ...), or of batches of them."""
    items: Any = given if isinstance(given, IterableDataset | DataLoader) else _rows(given)
    for item in items:
        yield item[0] if isinstance(item, tuple | list) else item


def _is_nested(given: object) -> bool:
    """Return whether the argument is a number, or lists of numbers, which are one array."""
    while isinstance(given, list | tuple) and given:
        given = given[0]
    return isinstance(given, Real)
