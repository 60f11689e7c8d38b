"""What the header of an image file says."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from convatlas.data.decode.files import (
    _ARRAY,
    _CUT,
    _ORIENTATION,
    _TIFFS,
    _UNREADABLE,
    _is,
    _is_high_bit_depth,
    _opened,
    _samples,
)
from convatlas.data.decode.formats import _npy, _tiff
from convatlas.errors import DataError, brief


@dataclass(frozen=True)
class Header:
    """What an image file says of itself: (width, height), mode, EXIF rotation, channels, more than 8 bits."""

    size: tuple[int, int]
    mode: str
    rotated: bool = False
    channels: int = 3
    high_bit_depth: bool = False


def read_header(path: Path, *, data: bytes | None = None) -> Header:
    """Return the header of an image file, or of its bytes; raises DataError if it has none."""
    try:
        if _is((".npy",), (_ARRAY,), path, data):
            if data is not None:
                return _array_header(_npy(io.BytesIO(data), len(data)))
            return _array_header(np.load(path, mmap_mode="r", allow_pickle=False))
        try:
            with _opened(path, data) as image:
                high_bit_depth = _is_high_bit_depth(image)
                gray = image.mode in ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L")
                # a PNG without the tag would be decoded to look for it behind its pixels
                tagged = image.format != "PNG" or "exif" in image.info
                rotated = tagged and image.getexif().get(_ORIENTATION, 1) != 1
                mode = f"{image.mode};16" if high_bit_depth and image.mode in _CUT else image.mode
                if _samples(image) <= 4:
                    return Header(image.size, mode, rotated, 1 if gray else 3, high_bit_depth)
        except UnidentifiedImageError:
            if not _is((".tif", ".tiff"), _TIFFS, path, data):
                raise DataError(f"{path}: not an image") from None
        return _array_header(_tiff(path, data))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {brief(error)}") from error


def _array_header(values: NDArray[Any]) -> Header:
    if values.ndim not in (2, 3):
        raise ValueError(f"an image is (height, width[, channels]), this array is {values.shape}")
    channels = 1 if values.ndim == 2 else values.shape[2]
    return Header(values.shape[1::-1], f"{channels} x {values.dtype}", False, channels, values.dtype != np.uint8)
