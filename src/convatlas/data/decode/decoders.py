"""Values (height, width[, channels]) from the bytes of an image file: the one path from all formats to pixels.

Every format gives the samples as stored and their layout; `convert.to_values` makes values of them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convatlas.data.decode import bmp, jpeg, jpeg2000, png, tags
from convatlas.data.decode.convert import to_values
from convatlas.data.decode.files import NPY, UnavailableError, memory_errors
from convatlas.data.decode.layout import Layout
from convatlas.data.decode.netpbm import read_netpbm, read_netpbm_header
from convatlas.data.decode.pillow import (
    image_orientation,
    open_image,
    pillow_layout,
    pillow_samples,
    silence_loggers,
    unread_file,
)
from convatlas.data.decode.tags import exif_orientation
from convatlas.data.decode.tiff import read_tiff, tiff_layout
from convatlas.errors import DataError, foreign_errors
from convatlas.system.extras import import_optional

Array = NDArray[Any]

_JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}


@dataclass(frozen=True)
class Reader:
    """A file whose header was read: its layout, and the function from channels to samples and their layout."""

    layout: Layout
    samples: Callable[[int], tuple[Array, Layout]]


def read_values(data: bytes, channels: int, name: object) -> Array:
    """Return the values of an image file, (height, width[, channels]), upright.

    channels: those the network reads. For 1 and 3, transparency is put on white, and 8-bit color becomes gray for 1.
    Other conversions are for the caller. The values are uint8 or uint16, whose largest value is white, or
    floats as stored. Arrays of .npy files are as stored. Raises DataError that begins with `name`.
    """
    return read_masked(data, channels, name)[0]


def read_masked(data: bytes, channels: int, name: object) -> tuple[Array, Array | None]:
    """Return the values of an image file, and bools of the same shape where data is missing, or None."""
    with memory_errors(name):
        if data.startswith(NPY):
            return read_npy(data, name), None
        samples, layout = open_reader(data, name).samples(channels)
        return to_values(samples, layout, channels, name)


def pillow_values(image: Image.Image, channels: int, name: object) -> Array:
    """Return the values of a PIL image as `read_values` does: of one that is not decoded yet, those of its file."""
    if data := unread_file(image):
        return read_values(data, channels, name)
    with foreign_errors(name, DataError):
        image.load()
        samples, layout = pillow_samples(image, pillow_layout(image, image_orientation(image)), channels)
    return to_values(samples, layout, channels, name)[0]


def open_reader(data: bytes, name: object) -> Reader:
    """Read the header of an image file other than .npy; its first bytes decide on the format."""
    if data.startswith(png.SIGNATURE):
        return _png_reader(data, name)
    if data.startswith(jpeg.SIGNATURE):
        stripped, exif = jpeg.split_exif(data)
        return _pillow_reader(stripped, name, exif_orientation(exif) if exif else None)
    if data.startswith(tags.TIFF):
        layout = tiff_layout(data, name)
        return Reader(layout, lambda _: read_tiff(data, layout, name))
    if data.startswith(bmp.SIGNATURE) and (fields := bmp.read_bit_fields(data, name)):
        return Reader(fields.layout, lambda _: (bmp.read_pixels(data, fields, name), fields.layout))
    if header := read_netpbm_header(data, name):
        return Reader(header.layout, lambda _: (read_netpbm(data, header, name), header.layout))
    if data.startswith(jpeg2000.SIGNATURES) and (deep := jpeg2000.high_bit_depth_layout(data, name)):
        return Reader(deep, lambda _: (jpeg2000.read_samples(data, name), deep))
    if data.startswith(_JPEG_XL):
        return _jpeg_xl_reader(data, name)
    if _is_heif(data):
        return _heif_reader(data, name)
    return _pillow_reader(data, name)


def _pillow_reader(data: bytes, name: object, orientation: int | None = None) -> Reader:
    image = open_image(data, name)
    layout = pillow_layout(image, orientation)
    return Reader(layout, lambda channels: _decode(image, layout, channels, name))


def _decode(image: Image.Image, layout: Layout, channels: int, name: object) -> tuple[Array, Layout]:
    with foreign_errors(name, DataError):
        return pillow_samples(image, layout, channels)


def _png_reader(data: bytes, name: object) -> Reader:
    file = png.read_png(data, name)

    def samples(channels: int) -> tuple[Array, Layout]:
        if file.layout.bits == 16 and file.layout.samples > 1:
            imagecodecs = import_optional("imagecodecs", "convatlas[data]", where=name, error=UnavailableError)
            with foreign_errors(name, DataError), silence_loggers("imagecodecs"):
                return imagecodecs.png_decode(file.data), file.layout
        image = open_image(file.data, name)
        layout = pillow_layout(image, file.layout.orientation)
        transparent = file.layout.transparent
        values, layout = _decode(image, layout, 3 if transparent else channels, name)  # compared in all its colors
        return values, replace(layout, transparent=transparent)

    return Reader(file.layout, samples)


def _jpeg_xl_reader(data: bytes, name: object) -> Reader:
    imagecodecs = import_optional("imagecodecs", "convatlas[data]", where=name, error=UnavailableError)
    with foreign_errors(name, DataError), silence_loggers("imagecodecs"):
        values = imagecodecs.jpegxl_decode(data)
    values = values[..., None] if values.ndim == 2 else values
    count = values.shape[2]
    if values.ndim != 3 or count not in (1, 2, 3, 4) or values.dtype not in (np.uint8, np.uint16, np.float32):
        raise DataError(f"{name}: cannot be read: JPEG XL of {values.dtype} {values.shape} is not supported")
    mode = ("L", "LA", "RGB", "RGBA")[count - 1]
    bits = values.dtype.itemsize * 8
    layout = Layout(
        (values.shape[1], values.shape[0]), "gray" if count < 3 else "rgb", mode if bits == 8 else f"{mode};{bits}",
        kind=values.dtype.kind, bits=bits, alpha=count - 1 if count in (2, 4) else None,
    )  # fmt: skip
    return Reader(layout, lambda _: (values, layout))


def _is_heif(data: bytes) -> bool:
    """Return whether a file is HEIF with HEVC, as phones write it; AVIF is for Pillow."""
    brands = {data[place : place + 4] for place in range(8, min(int.from_bytes(data[:4], "big"), 200), 4)}
    return data[4:8] == b"ftyp" and bool(brands & _HEIF_BRANDS)


def _heif_reader(data: bytes, name: object) -> Reader:
    pillow_heif = import_optional("pillow_heif", "convatlas[data]", where=name, error=UnavailableError)
    with foreign_errors(name, DataError):
        image = pillow_heif.open_heif(io.BytesIO(data)).to_pillow()
    layout = pillow_layout(image, 1)  # libheif rotates it
    return Reader(layout, lambda channels: _decode(image, layout, channels, name))


def read_npy(data: bytes, name: object) -> Array:
    """Return the array of a .npy file; raises DataError if its header specifies more values than the file contains."""
    npy_shape(data, name)
    with foreign_errors(name, DataError):
        values: Array = np.load(io.BytesIO(data), allow_pickle=False)
    return values


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type in the header of a .npy stream, which is read up to its values; NumPy's errors."""
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    return shape, dtype


def npy_shape(data: bytes, name: object) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type of the array of a .npy file."""
    file = io.BytesIO(data)
    with foreign_errors(name, DataError):
        shape, dtype = read_npy_header(file)
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize > len(data) - file.tell():
        raise DataError(f"{name}: cannot be read: truncated: the header specifies more values than the file contains")
    return shape, dtype
