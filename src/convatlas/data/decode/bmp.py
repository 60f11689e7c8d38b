"""BMP files whose colors are bit fields, such as 5-6-5 and 1-5-5-5."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.data.decode.convert import scale_integers, white
from convatlas.data.decode.layout import Layout
from convatlas.errors import DataError

SIGNATURE = b"BM"

_RGB, _BIT_FIELDS, _ALPHA_BIT_FIELDS = 0, 3, 6
"""Compressions."""

_DEFAULT_MASKS = (0x7C00, 0x3E0, 0x1F)
"""Masks of red, green and blue of 16-bit pixels without masks of their own."""


@dataclass(frozen=True)
class BitFields:
    """offset: position of the pixels in the file, in bytes. stored_bits: bits of a pixel.

    masks: of red, green, blue and perhaps the opacity.
    """

    layout: Layout
    offset: int
    stored_bits: int
    masks: tuple[int, ...]
    top_down: bool


def read_bit_fields(data: bytes, name: object) -> BitFields | None:
    """Return the header of a BMP file of bit fields; None if its pixels are bytes or a palette."""
    try:
        offset, size, width, height, _, bits, compression = struct.unpack_from("<4xIIiiHHI", data, 6)
        if size < 40 or bits not in (16, 32) or compression not in (_RGB, _BIT_FIELDS, _ALPHA_BIT_FIELDS):
            return None
        if compression == _RGB:
            if bits == 32:
                return None
            masks: tuple[int, ...] = _DEFAULT_MASKS
        else:
            count = 4 if size >= 56 or compression == _ALPHA_BIT_FIELDS else 3
            masks = struct.unpack_from(f"<{count}I", data, 54)
    except struct.error:
        return None
    if not all(masks[:3]):
        return None
    masks = tuple(mask for mask in masks if mask)
    if any(_width(mask) != (mask // (mask & -mask)).bit_count() or mask >= 2**bits for mask in masks):
        raise DataError(f"{name}: cannot be read: the bits of a color must lie together, got masks {masks}")
    deep = max(map(_width, masks)) > 8
    mode = "RGBA" if len(masks) == 4 else "RGB"
    layout = Layout(
        (width, abs(height)), "rgb", f"{mode};16" if deep else mode, bits=16 if deep else 8,
        alpha=3 if len(masks) == 4 else None,
    )  # fmt: skip
    layout.check_size(name)
    return BitFields(layout, offset, bits, masks, height < 0)


def read_pixels(data: bytes, header: BitFields, name: object) -> NDArray[Any]:
    """Return the samples of a BMP file at full scale. An opacity that is zero everywhere counts as opaque."""
    width, height = header.layout.size
    row = (width * header.stored_bits + 31) // 32 * 4
    if header.offset + row * height > len(data):
        raise DataError(f"{name}: cannot be read: truncated")
    rows = np.frombuffer(data, np.uint8, row * height, header.offset).reshape(height, row)
    dtype = "<u2" if header.stored_bits == 16 else "<u4"
    pixels = np.ascontiguousarray(rows[:, : width * header.stored_bits // 8]).view(dtype)
    pixels = pixels if header.top_down else pixels[::-1]
    full = 2**header.layout.bits - 1
    samples = np.stack([_sample(pixels, mask, full) for mask in header.masks], axis=2)
    if header.layout.alpha is not None and not samples[..., 3].any():
        samples[..., 3] = white(samples)
    return samples


def _sample(pixels: NDArray[Any], mask: int, full: int) -> NDArray[Any]:
    """Return the values of one mask, from 0 to `full`."""
    maximum = mask // (mask & -mask)
    values = (pixels & mask) // (mask & -mask)
    if maximum <= 255 < full:  # fewer bits than another color of the pixel
        return scale_integers(values, maximum).astype(np.uint16) * 257
    return scale_integers(values, maximum)


def _width(mask: int) -> int:
    return mask.bit_length() - (mask & -mask).bit_length() + 1
