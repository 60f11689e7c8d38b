"""Headers of image files: size, mode, EXIF orientation, channels and bit depth, without decoding the pixels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from convatlas.data.decode.decoders import (
    CUT_MODES,
    ORIENTATION,
    is_high_bit_depth,
    open_image,
    read_npy,
    read_tiff,
    samples_per_pixel,
)
from convatlas.data.decode.files import NPY, TIFF, decoder_errors, read_bytes
from convatlas.errors import DataError

_GRAYSCALE = frozenset(("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L"))


@dataclass(frozen=True)
class Header:
    """What an image file states about itself.

    size: (width, height) as stored. rotated: whether the EXIF orientation is not upright. channels: 1 for grayscale, 3
        for color with or without transparency, or those of an array. high_bit_depth: more than 8 bits.
    """

    size: tuple[int, int]
    mode: str
    rotated: bool = False
    channels: int = 3
    high_bit_depth: bool = False


def read_header(path: str | os.PathLike[str], *, data: bytes | None = None) -> Header:
    """Return the header of an image file; raises DataError if it has none.

    data: the contents of the file, if they are in memory; `path` is then only its name.
    """
    data = read_bytes(path) if data is None else data
    if data.startswith(NPY):
        return _array_header(read_npy(data, path), path)
    try:
        with decoder_errors(path), open_image(data) as image:
            high_bit_depth = is_high_bit_depth(image)
            # a PNG without the tag would be decoded to look for it behind its pixels
            has_tag = image.format != "PNG" or "exif" in image.info
            rotated = has_tag and image.getexif().get(ORIENTATION, 1) != 1
            mode = f"{image.mode};16" if high_bit_depth and image.mode in CUT_MODES else image.mode
            if samples_per_pixel(image) <= 4:
                return Header(image.size, mode, rotated, 1 if image.mode in _GRAYSCALE else 3, high_bit_depth)
    except DataError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        if not data.startswith(TIFF):
            raise DataError(f"{path}: not an image") from None
    return _array_header(read_tiff(data, path), path)


def _array_header(values: NDArray[Any], name: object) -> Header:
    if values.ndim not in (2, 3):
        raise DataError(f"{name}: an image must be an array (height, width[, channels]), got {values.shape}")
    channels = 1 if values.ndim == 2 else values.shape[2]
    size = (values.shape[1], values.shape[0])
    return Header(size, f"{channels} x {values.dtype}", False, channels, values.dtype != np.uint8)
