"""Headers of image files: size, pixel format, orientation, channels and bit depth, without decoding the pixels."""

from __future__ import annotations

import os
from dataclasses import dataclass

from convatlas.data.decode.array_values import has_high_bit_depth
from convatlas.data.decode.decoders import npy_shape, open_reader
from convatlas.data.decode.files import NPY, read_bytes
from convatlas.errors import DataError


@dataclass(frozen=True)
class Header:
    """Properties of an image file.

    size: (width, height) as stored. mode: name of the pixel format. orientation: 1 to 8, see EXIF.
    channels: 1 for grayscale, 3 for color, with or without transparency; more with further bands, or those of an array.
    high_bit_depth: more than 8 bits. floats: whether the samples are floats.
    """

    size: tuple[int, int]
    mode: str
    orientation: int = 1
    channels: int = 3
    high_bit_depth: bool = False
    floats: bool = False

    @property
    def rotated(self) -> bool:
        """Whether the image is stored rotated or flipped."""
        return self.orientation != 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) with the orientation applied."""
        return (self.size[1], self.size[0]) if self.orientation > 4 else self.size


def read_header(path: str | os.PathLike[str], *, data: bytes | None = None) -> Header:
    """Return the header of an image file; raises DataError if it has none.

    data: the contents of the file, if they are in memory; `path` is then only its name.
    """
    data = read_bytes(path) if data is None else data
    if data.startswith(NPY):
        return _array_header(data, path)
    try:
        layout = open_reader(data, path).layout
    except MemoryError as error:
        raise DataError(f"{path}: cannot be read: out of memory") from error
    return Header(
        layout.size, layout.mode, layout.orientation, layout.channels, layout.high_bit_depth, layout.kind == "f"
    )


def _array_header(data: bytes, name: object) -> Header:
    shape, dtype = npy_shape(data, name)
    if len(shape) not in (2, 3):
        raise DataError(f"{name}: an image must be an array (height, width[, channels]), got {shape}")
    channels = 1 if len(shape) == 2 else shape[2]
    return Header(
        (shape[1], shape[0]), f"{channels} x {dtype}", 1, channels, has_high_bit_depth(dtype), dtype.kind == "f"
    )
