"""Image formats: values (height, width[, channels]) from the bytes of a file, as deep as they are stored.

Pillow decodes ordinary files. NumPy reads .npy; imagecodecs and tifffile read 16-bit color PNG and TIFF files with many
channels, which Pillow cannot read or would cut to 8 bits.
"""

from __future__ import annotations

import io
import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from convatlas.data.decode.files import MAX_VALUES, NPY, TIFF, UnavailableError, decoder_errors
from convatlas.errors import DataError
from convatlas.system.extras import import_optional

ORIENTATION = 0x0112
"""Number of the orientation tag in EXIF and TIFF."""

_SAMPLES_PER_PIXEL = 0x0115

CUT_MODES = ("RGB", "RGBA", "LA", "RGBX")
"""8-bit modes to which Pillow cuts color files of 16 bits."""


_WARNING_FILTERS = threading.Lock()


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Open an image with Pillow, without its warning for large images: those that are far too large are refused."""
    # warning filters belong to the whole process: without the lock, two threads would restore each other's
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        opened = Image.open(io.BytesIO(data))
    with opened as image:
        yield image


def is_high_bit_depth(image: Image.Image) -> bool:
    """Return whether the pixels of an open image are stored with more than 8 bits."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return True
    # the arguments of a tile's decoder begin with the mode as stored, such as RGB;16B
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return ";16" in str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def samples_per_pixel(image: Image.Image) -> int:
    """Return the number of channels of an open TIFF file; 1 for other formats."""
    tags = getattr(image, "tag_v2", None)
    return int(tags.get(_SAMPLES_PER_PIXEL, 1)) if tags else 1


def read_values(data: bytes, channels: int, name: object) -> NDArray[Any]:
    """Return the values of an image file; raises DataError that begins with `name`.

    channels: those the network reads; for 1 and 3, 8-bit images are converted to grayscale or RGB.
    """
    if data.startswith(NPY):
        return read_npy(data, name)
    kind = None
    try:
        with decoder_errors(name), open_image(data) as image:
            kind = image.format
            if not (is_high_bit_depth(image) and image.mode in CUT_MODES) and samples_per_pixel(image) <= 4:
                return _oriented_values(image, channels)
    except DataError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        if not data.startswith(TIFF):
            raise DataError(f"{name}: not an image") from None
        kind = "TIFF"
    return read_tiff(data, name) if kind == "TIFF" else _read_png16(data, channels, name)


def pillow_values(image: Image.Image, channels: int, name: object) -> NDArray[Any]:
    """Return the values of a PIL image as `read_values` does."""
    with decoder_errors(name):
        return _oriented_values(image, channels)


def _oriented_values(image: Image.Image, channels: int) -> NDArray[Any]:
    """Apply the EXIF orientation; convert to 8-bit grayscale or RGB for 1 and 3 channels. Pillow's errors pass."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        return np.array(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.array(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"integers must be in [0, 65535], got {values.min()} to {values.max()}")
        return values.astype(np.uint16)
    if channels in (1, 3):
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB")
    return np.array(image)


def read_npy(data: bytes, name: object) -> NDArray[Any]:
    """Return the array of a .npy file; raises DataError if its header promises more values than the file holds."""
    file = io.BytesIO(data)
    with decoder_errors(name):
        version = np.lib.format.read_magic(file)
        read_array_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_array_header(file)
        if math.prod(shape) * dtype.itemsize > len(data):
            raise ValueError("truncated: the header promises more values than the file holds")
        file.seek(0)
        values: NDArray[Any] = np.load(file, allow_pickle=False)
    return values


def _read_png16(data: bytes, channels: int, name: object) -> NDArray[Any]:
    """Return a 16-bit color PNG; for grayscale or RGB networks, transparent pixels become white."""
    imagecodecs = import_optional("imagecodecs", "convatlas[data]", where=name, error=UnavailableError)
    with decoder_errors(name):
        values: NDArray[Any] = imagecodecs.png_decode(data)
    if channels in (1, 3) and values.shape[2] in (2, 4):
        share = values.astype(np.float64) / 65535
        opaque = share[..., :-1] * share[..., -1:] + 1 - share[..., -1:]
        values = (opaque * 65535).round().astype(np.uint16)
    return values


_ORIENT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""Value of the orientation tag -> the function that rotates or flips an array (height, width, ...) upright."""


def read_tiff(data: bytes, name: object) -> NDArray[Any]:
    """Return the first page of a TIFF file that Pillow does not read: (height, width[, channels])."""
    import_optional("imagecodecs", "convatlas[data]", where=name, error=UnavailableError)  # for compressed files
    tifffile = import_optional("tifffile", "convatlas[data]", where=name, error=UnavailableError)
    with decoder_errors(name), _silenced(logging.getLogger("tifffile")):  # its complaints are raised, too
        try:
            file = tifffile.TiffFile(io.BytesIO(data))
        except tifffile.TiffFileError as error:
            raise DataError(f"{name}: not an image") from error
        with file:
            if not len(file.pages):
                raise ValueError("the file holds no page")
            page: Any = file.pages[0]
            if math.prod(page.shape[:3]) > MAX_VALUES:
                size = " x ".join(map(str, page.shape))
                raise ValueError(f"an image must have <= {MAX_VALUES:,} values, got {size}")
            values: NDArray[Any] = page.asarray()
            tag = page.tags.get(ORIENTATION)
            channels_first = page.axes.startswith("S")
    values = np.moveaxis(values, 0, -1) if channels_first else values
    orient = _ORIENT.get(tag.value if tag else 1)
    return orient(values) if orient else values


@contextmanager
def _silenced(logger: logging.Logger) -> Iterator[None]:
    """Drop the records of a logger; with a filter of this call's own, which other threads do not remove."""

    def drop(_: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
