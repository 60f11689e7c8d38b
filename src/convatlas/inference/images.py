"""Images that are predicted: of any kind, read from anywhere, as the views that a network takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs
from convatlas.core.tiles import Corner, cut_tiles
from convatlas.data.decode.files import memory_errors
from convatlas.data.decode.pixels import array_pixels, decode, read_image
from convatlas.errors import DataError, foreign_errors, printable
from convatlas.inference.options import PredictOptions
from convatlas.system.download import fetch_bytes


class EncodedImage(NamedTuple):
    """The bytes of an image file, and a name for it."""

    name: str
    data: bytes


ImageLike = (
    str | os.PathLike[str] | EncodedImage | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any]
    | Tensor
)  # fmt: skip
"""A file, the bytes of one, an open one, a PIL image, or values: arrays (height, width[, channels]) or (1 or 3, height,
width), tensors (channels, height, width). Color is in the order red, green, blue.

Text that begins with http:// or https:// is a URL, which is fetched only if the options allow it.
"""


URL_SCHEMES = ("http://", "https://")

NOT_FETCHED = "images are downloaded only with --fetch (fetch=True in Python)"


class Views(NamedTuple):
    """What a network gets of an image: (views, channels, size, size), or a list of tiles.

    corners: (x, y) of the left upper pixel of each tile.
    """

    pixels: Inputs
    corners: tuple[Corner, ...]


def display_name(image: ImageLike, number: int) -> str:
    """Return the file of an image, or its number."""
    if isinstance(image, EncodedImage):
        return image.name
    name = getattr(image, "name", None) if hasattr(image, "read") else image
    return os.fspath(name) if isinstance(name, str | os.PathLike) and os.fspath(name) else f"image {number}"


def load_views(
    image: ImageLike, name: str, preprocessings: Sequence[Preprocessing], options: PredictOptions
) -> list[Views]:
    """Return the views of an image for each preprocessing.

    Raises DataError that names the image if it is unreadable.
    """
    pixels: dict[tuple[int, Any], Tensor] = {}
    if isinstance(image, str) and image.startswith(URL_SCHEMES):
        if not options.fetch:
            raise DataError(f"{name}: {NOT_FETCHED}")
        image = EncodedImage(image, fetch_bytes(image))
    try:
        image = _read_contents(image, name)
        with memory_errors(name):
            for steps in preprocessings:
                kind = (steps.channels, steps.window)
                if kind not in pixels:
                    pixels[kind] = _read_pixels(image, name, steps)
            return [_views(pixels[steps.channels, steps.window], steps, options) for steps in preprocessings]
    except DataError as error:
        if isinstance(image, str | os.PathLike) and os.path.isdir(image):
            raise DataError(f"{name}: no images in this folder") from error
        is_named = str(error).startswith(printable(f"{name}: "))
        raise error if is_named else DataError(f"{name}: {error}") from error


def _views(pixels: Tensor, steps: Preprocessing, options: PredictOptions) -> Views:
    """Return the views of an image (channels, h, w) for test-time augmentation, or its tiles."""
    views = steps.tta_views(pixels, options.tta)
    if isinstance(views, Tensor):
        return Views(views, ((0, 0),) * len(views))
    return Views(*cut_tiles(views[0], options.tile, options.overlap))


def _read_contents(image: ImageLike, name: str) -> ImageLike:
    """Return bytes and open files as an encoded image; others as they are."""
    with foreign_errors(name, DataError):
        if isinstance(image, bytes | bytearray | memoryview):
            return EncodedImage(name, bytes(image))
        if isinstance(image, EncodedImage | Image.Image | np.ndarray | Tensor) or not hasattr(image, "read"):
            return image
        data = image.read()
        if not isinstance(data, bytes):
            raise DataError(f"{name}: an open file must be in binary mode, got {type(data).__name__} from it")
        if not data:
            raise DataError(f"{name}: has no bytes to read: the file is empty, or at its end (call seek(0))")
        return EncodedImage(name, data)


def _read_pixels(image: ImageLike, name: str, steps: Preprocessing) -> Tensor:
    channels, window = steps.channels, steps.window
    if isinstance(image, EncodedImage):
        return read_image(Path(name), channels, window, data=image.data)
    if isinstance(image, str | os.PathLike):
        if not os.fspath(image):
            raise DataError(f"{name}: the name of the file is empty")
        return read_image(os.path.expanduser(image), channels, window)
    if isinstance(image, Image.Image):
        return decode(image, channels, name, window)
    with foreign_errors(name, DataError, "is not an array of pixels"):
        values = _values_of_tensor(image) if isinstance(image, Tensor) else np.asarray(image)
    if values.dtype == object and not values.ndim:
        raise DataError(f"{name}: is not an image, but {type(image).__name__}")
    return array_pixels(values, channels, name, window)


def _values_of_tensor(image: Tensor) -> NDArray[Any]:
    """Return a tensor (channels, h, w) of any type and device as an array (h, w, channels)."""
    if image.ndim != 3:
        raise DataError(f"a tensor must be (channels, height, width), got {tuple(image.shape)}")
    values = image.float() if image.is_floating_point() else image
    return np.moveaxis(values.numpy(force=True), 0, -1)
