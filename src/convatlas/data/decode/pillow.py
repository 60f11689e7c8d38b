"""Samples of 8-bit images, decoded by Pillow."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from convatlas.data.decode.layout import Layout
from convatlas.data.decode.tags import ORIENTATION, exif_orientation, orientation_of
from convatlas.errors import DataError, foreign_errors

_GRAY = ("1", "L", "LA", "La")

_QUIET_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "JPEG2000")
"""Formats whose pixels are decoded without warnings, so that threads need not wait for each other."""

_REFUSED_FORMATS = ("EPS", "WMF", "HDF5", "GRIB", "BUFR", "MPEG")
"""Formats that run other programs, or hold no image that Pillow could decode."""

_WARNING_FILTERS = threading.Lock()


class NotAnImageError(DataError):
    """A file in a format that Pillow does not know."""


@contextmanager
def ignore_warnings() -> Iterator[None]:
    """Drop Python warnings of Pillow, which do not name the file: what it cannot read it raises."""
    # warning filters belong to the whole process: without the lock, two threads would restore each other's
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def silence_loggers(*names: str) -> Iterator[None]:
    """Drop the records of loggers; with a filter of this call's own, which other threads do not remove."""

    def drop(_: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(drop)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(drop)


def open_image(data: bytes, name: object) -> Image.Image:
    """Open an image with Pillow; raises NotAnImageError if it knows no such format, else DataError."""
    with foreign_errors(name, DataError), ignore_warnings():
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise NotAnImageError(f"{name}: not an image") from error
        if image.format in _REFUSED_FORMATS:
            raise DataError(f"{name}: cannot be read: {image.format} is not supported")
        if image.format not in _QUIET_FORMATS:
            image.load()
        return image


def pillow_layout(image: Image.Image, orientation: int | None = None) -> Layout:
    """Return the layout of an image of Pillow, as `pillow_samples` gives its samples.

    orientation: by default that of the EXIF in `info`.
    """
    if orientation is None:
        exif = image.info.get("exif")
        orientation = exif_orientation(exif) if isinstance(exif, bytes) else 1
    layout = Layout(image.size, "gray" if image.mode in _GRAY else "rgb", image.mode, orientation=orientation)
    if image.mode == "F":
        return replace(layout, color="gray", kind="f", bits=32)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return replace(layout, color="gray", bits=16)
    if image.has_transparency_data:
        return replace(layout, alpha=1 if layout.color == "gray" else 3)
    return layout


def pillow_samples(image: Image.Image, layout: Layout, channels: int) -> tuple[NDArray[Any], Layout]:
    """Return the samples of an image of Pillow and their layout; color without transparency is gray for 1 channel.

    Pillow's errors pass.
    """
    if layout.kind == "f":
        return np.array(image), layout
    if layout.bits == 16:
        values = np.array(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"integers must be in [0, 65535], got {values.min()} to {values.max()}")
        return values.astype(np.uint16), layout
    if layout.alpha is not None:
        return np.asarray(image.convert("LA" if layout.color == "gray" else "RGBA")), layout
    if image.mode in ("LAB", "HSV"):
        image = image.convert("RGB")  # the only mode to which Pillow converts them
    if channels == 1 or layout.color == "gray":
        return np.asarray(image.convert("L")), replace(layout, color="gray")
    return np.asarray(image.convert("RGB")), layout


def image_orientation(image: Image.Image) -> int:
    """Return the orientation of an image of Pillow, as its user sees it; 1 if its EXIF is damaged."""
    with ignore_warnings(), suppress(Exception):
        return orientation_of({ORIENTATION: (image.getexif().get(ORIENTATION, 1),)})
    return 1


def unread_file(image: Image.Image) -> bytes | None:
    """Return the file of an image that was opened and not yet decoded, at its first frame; None for other images."""
    file = getattr(image, "fp", None)
    if (
        not getattr(image, "tile", None)
        or file is None
        or image.format not in ("TIFF", "PNG", "BMP", "PPM", "JPEG2000")
    ):
        return None
    with suppress(Exception):
        place = file.tell()
        try:
            file.seek(0)
            data = file.read()
        finally:
            file.seek(place)
        return data if isinstance(data, bytes) and image.tell() == 0 else None
    return None
