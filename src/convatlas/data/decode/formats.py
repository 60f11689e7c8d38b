"""Image files: from one file to pixels. Ordinary ones have 8 bits; 16-bit and float ones keep what they have."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from convatlas.data.decode.files import (
    _ARRAY,
    _CUT,
    _LIMIT,
    _ORIENTATION,
    _TIFFS,
    _UNREADABLE,
    UnavailableError,
    _file,
    _is,
    _is_high_bit_depth,
    _opened,
    _samples,
)
from convatlas.errors import DataError, brief


def _upright(image: Image.Image, channels: int) -> NDArray[Any]:
    """Return the values of a PIL image, turned as its EXIF tag says; of 8 bits in gray or RGB, if that is wanted."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        return np.array(upright)
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        values = np.array(upright)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values of {values.min()} to {values.max()}; whole numbers of 0 to 65535 are read")
        return values.astype(np.uint16)
    if channels in (1, 3):
        if upright.has_transparency_data:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        upright = upright.convert("L" if channels == 1 else "RGB")
    return np.array(upright)


def _values(path: Path, channels: int, data: bytes | None = None) -> NDArray[Any]:
    """Return the values of an image file (height, width[, channels]); raises DataError that names it."""
    try:
        if _is((".npy",), (_ARRAY,), path, data):
            with _file(path, data) as file:
                return _npy(file, path.stat().st_size if data is None else len(data))
        try:
            with _opened(path, data) as image:
                if not (_is_high_bit_depth(image) and image.mode in _CUT) and _samples(image) <= 4:
                    return _upright(image, channels)
                kind = image.format
        except UnidentifiedImageError:
            if not _is((".tif", ".tiff"), _TIFFS, path, data):
                raise DataError(f"{path}: not an image") from None
            kind = "TIFF"
        return _tiff(path, data) if kind == "TIFF" else _png(path, channels, data)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        told = f"{path}: cannot be read: {brief(error)}"
        # Pillow's own complaints are OSErrors, too, without a number
        raise (UnavailableError if getattr(error, "errno", None) else DataError)(told) from error


def _npy(file: BinaryIO, size: int) -> NDArray[Any]:
    """Return the array of a .npy file of `size` bytes; ValueError where its header promises more than that."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if math.prod(shape) * kind.itemsize > size:
        raise ValueError("truncated: the header promises more values than the file holds")
    file.seek(0)
    values: NDArray[Any] = np.load(file, allow_pickle=False)
    return values


MISSING = "{}: 16-bit color and TIFFs of many channels need tifffile and imagecodecs; pip install 'convatlas[data]'"


def _png(path: Path, channels: int, data: bytes | None = None) -> NDArray[Any]:
    """Return a color PNG of 16 bits, of which Pillow would keep eight; in gray or RGB transparent pixels are white."""
    try:
        import imagecodecs
    except ImportError:
        raise UnavailableError(MISSING.format(path)) from None
    values: NDArray[Any] = imagecodecs.png_decode(path.read_bytes() if data is None else data)
    if channels in (1, 3) and values.shape[2] in (2, 4):
        share = values.astype(np.float64) / 65535
        whitened = share[..., :-1] * share[..., -1:] + 1 - share[..., -1:]
        values = (whitened * 65535).round().astype(np.uint16)
    return values


_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a),
}  # fmt: skip
"""What makes an array (height, width, ...) upright, by the number of the orientation tag."""


def _tiff(path: Path, data: bytes | None = None) -> NDArray[Any]:
    """Return the first page of a TIFF file with other pixels than Pillow reads: (height, width[, channels])."""
    try:
        import imagecodecs  # noqa: F401  (with which tifffile opens compressed files)
        import tifffile
    except ImportError:
        raise UnavailableError(MISSING.format(path)) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it finds wrong is told as an error, once
    try:
        with _file(path, data) as opened, tifffile.TiffFile(opened) as file:
            if not len(file.pages):
                raise ValueError("the file holds no page")
            page: Any = file.pages[0]
            if math.prod(page.shape[:3]) > _LIMIT:
                raise ValueError(f"{' x '.join(map(str, page.shape))} values are more than {_LIMIT:,}")
            values: NDArray[Any] = page.asarray()
            turn = page.tags.get(_ORIENTATION)
            first = page.axes.startswith("S")
    except tifffile.TiffFileError as error:
        raise DataError(f"{path}: not an image") from error
    values = np.moveaxis(values, 0, -1) if first else values
    upright = _UPRIGHT.get(turn.value if turn else 1)
    return upright(values) if upright else values
