"""Images that are predicted: of any kind, read from anywhere, as the views that a network takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs
from convatlas.core.tiles import Corner, cut_tiles
from convatlas.data.decode.files import VIDEO_EXTENSIONS, memory_errors
from convatlas.data.decode.pillow import NotAnImageError
from convatlas.data.decode.pixels import array_pixels, decode, read_image
from convatlas.errors import DataError, foreign_errors
from convatlas.inference.contents import EncodedFile, naming_errors, read_contents
from convatlas.inference.options import PredictOptions

ImageLike = (
    str | os.PathLike[str] | EncodedFile | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any]
    | Tensor
)  # fmt: skip
"""A file, the bytes of one, an open one, a PIL image, or values: arrays (height, width[, channels]) or (1 or 3, height,
width), tensors (channels, height, width). Color is in the order red, green, blue.

Text that begins with http:// or https:// is a URL, which is fetched only if the options allow it.
"""


class Views(NamedTuple):
    """What a network gets of an image or video: (views, channels, size, size), a list of tiles, or clips.

    corners: (x, y) of the left upper pixel of each tile. seconds: duration of the video.
    """

    pixels: Inputs
    corners: tuple[Corner, ...]
    seconds: float | None = None


def load_views(
    image: ImageLike, name: str, preprocessings: Sequence[Preprocessing], options: PredictOptions
) -> list[Views]:
    """Return the views of an image for each preprocessing.

    Raises DataError that names the image if it is unreadable.
    """
    pixels: dict[tuple[int, Any], Tensor] = {}
    with naming_errors(name):
        image = read_contents(image, name, "image", fetch=options.fetch)
        if isinstance(image, str | os.PathLike) and os.path.isdir(image):
            raise DataError(f"{name}: no images in this folder")
        with memory_errors(name):
            for steps in preprocessings:
                kind = (steps.channels, steps.window)
                if kind not in pixels:
                    pixels[kind] = _read_pixels(image, name, steps)
            return [_views(pixels[steps.channels, steps.window], steps, options) for steps in preprocessings]


def _views(pixels: Tensor, steps: Preprocessing, options: PredictOptions) -> Views:
    """Return the views of an image (channels, h, w) for test-time augmentation, or its tiles."""
    views = steps.tta_views(pixels, options.tta)
    if isinstance(views, Tensor):
        return Views(views, ((0, 0),) * len(views))
    return Views(*cut_tiles(views[0], options.tile, options.overlap))


def _read_pixels(image: ImageLike, name: str, steps: Preprocessing) -> Tensor:
    channels, window = steps.channels, steps.window
    if isinstance(image, EncodedFile):
        with _naming_videos(name):
            return read_image(Path(name), channels, window, data=image.data)
    if isinstance(image, str | os.PathLike):
        if not os.fspath(image):
            raise DataError(f"{name}: the name of the file is empty")
        with _naming_videos(name):
            return read_image(os.path.expanduser(image), channels, window)
    if isinstance(image, Image.Image):
        return decode(image, channels, name, window)
    with foreign_errors(name, DataError, "is not an array of pixels"):
        values = _values_of_tensor(image) if isinstance(image, Tensor) else np.asarray(image)
    if values.dtype == object and not values.ndim:
        raise DataError(f"{name}: is not an image, but {type(image).__name__}")
    return array_pixels(values, channels, name, window)


@contextmanager
def _naming_videos(name: str) -> Iterator[None]:
    try:
        yield
    except NotAnImageError as error:
        if os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS:
            raise DataError(f"{name}: is a video, and this network reads images; use one that reads clips") from error
        raise


def _values_of_tensor(image: Tensor) -> NDArray[Any]:
    """Return a tensor (channels, h, w) of any type and device as an array (h, w, channels)."""
    if image.ndim != 3:
        raise DataError(f"a tensor must be (channels, height, width), got {tuple(image.shape)}")
    values = image.float() if image.is_floating_point() else image
    return np.moveaxis(values.numpy(force=True), 0, -1)
