"""Pixels of image files: (channels, height, width) from 0 to 255, in the channels that a network reads."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.array_values import Window, are_whole_numbers, channels_last, full_scale
from convatlas.data.decode.decoders import pillow_values, read_masked, read_values
from convatlas.data.decode.files import NPY, memory_errors, read_bytes
from convatlas.errors import DataError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R 601."""


FRACTIONS = (-1.0, 2.0)
"""Floats beyond are no fractions of the largest value, but of another scale; filters can leave [0, 1]."""


def decode(image: Image.Image, channels: int, name: object, window: Window | None = None) -> Tensor:
    """Return a PIL image as pixels, with its EXIF orientation applied; see `pixels_of` for values and channels.

    Raises DataError that begins with `name` if it is truncated or empty.
    """
    if 0 in image.size:
        raise DataError(f"{name}: the image is empty ({image.width} x {image.height} pixels)")
    values = pillow_values(image, channels, name)
    if image.format is None and image.mode.startswith("I"):  # made in memory: no file states its bit depth
        in_int32 = image.mode == "I" and values.max() <= 255
        return array_pixels(values.astype(np.int32) if in_int32 else values, channels, name, window)
    return pixels_of(values, channels, name, window)


def read_image(
    path: str | os.PathLike[str], channels: int, window: Window | None = None, *, data: bytes | None = None
) -> Tensor:
    """Return an image file as `decode` does; raises DataError that names the file if it is missing or not an image.

    data: the contents of the file, if they are in memory; `path` is then only its name.
    """
    data = read_bytes(path) if data is None else data
    values = read_values(data, channels, path)
    return (array_pixels if data.startswith(NPY) else pixels_of)(values, channels, path, window)


def read_shares(path: str | os.PathLike[str], channels: int, *, data: bytes | None = None) -> Tensor:
    """Return an image file as fractions of the largest value of its type: float32 (channels, height, width)."""
    return read_masked_shares(path, channels, data=data)[0]


def read_masked_shares(
    path: str | os.PathLike[str], channels: int, *, data: bytes | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return an image file as `read_shares` does, and bools of the same shape where data is missing, or None."""
    data = read_bytes(path) if data is None else data
    values, missing = read_masked(data, channels, path)
    with memory_errors(path):
        if data.startswith(NPY):
            (values,) = full_scale([_channels_last(values, channels, path)], path, eight_bit=False)
        shares = _shares_of(values, channels, path)
        if missing is None:
            return shares, None
        masks = torch.from_numpy(_with_channels(missing, path).transpose(2, 0, 1).copy())
        return shares, masks if len(masks) == channels else masks.any(0).expand_as(shares)


def load_image(
    path: str | os.PathLike[str], preprocessing: Preprocessing, *, for_random_crop: bool, data: bytes | None = None
) -> tuple[Tensor, float]:
    """Return the pixels of an image file as `frame` gives them, and the image's width over height.

    Raises DataError if it is unreadable.
    """
    with memory_errors(path):
        image = read_image(path, preprocessing.channels, preprocessing.window, data=data)
        aspect = image.shape[-1] / image.shape[-2]
        return frame(image[None], preprocessing, for_random_crop=for_random_crop)[0], aspect


def frame(pixels: Tensor, preprocessing: Preprocessing, *, for_random_crop: bool) -> Tensor:
    """Resize images (batch, channels, h, w) to what a split holds: the network's input, or the whole image.

    for_random_crop: whole images, resized to squares, from which random crops are taken during training.
    """
    return preprocessing.resize_to_square(pixels) if for_random_crop else preprocessing.resize_and_crop(pixels)


def frame_shape(preprocessing: Preprocessing, *, for_random_crop: bool) -> tuple[int, int, int]:
    """Return the shape (channels, height, width) of what `frame` gives."""
    side = preprocessing.resize if for_random_crop else preprocessing.resolution
    return preprocessing.channels, side, side


def array_pixels(values: NDArray[Any], channels: int, name: object, window: Window | None = None) -> Tensor:
    """Return an array (h, w[, channels]) or (1 or 3, h, w) as `pixels_of` does; of integers, see `full_scale`.

    Raises DataError that begins with `name`.
    """
    values = _channels_last(values, channels, name)
    if values.dtype.kind != "f":  # for floats, the window decides
        (values,) = full_scale([values], name, eight_bit=window is None)
    return pixels_of(values, channels, name, window)


def _channels_last(values: NDArray[Any], channels: int, name: object) -> NDArray[Any]:
    values = _with_channels(values, name)
    return values if values.shape[2] == channels else channels_last(values)


def pixels_of(values: NDArray[Any], channels: int, name: object, window: Window | None = None) -> Tensor:
    """Return values (height, width[, channels]) as pixels (channels, height, width) from 0 to 255.

    values: as decoders return them: the largest value of an integer type is white; of floats, 1, or 255 if they are
        whole numbers up to it.
    window: None gives uint8, rounded from values of more bits; otherwise float32, clipped to the window.
    Grayscale is repeated for networks that read 3 channels, RGB becomes its luma (ITU-R 601) for those that read 1. Any
    other number of channels, floats outside of [0, 1] without a window or of `FRACTIONS` with a window in [0, 1], and
    integers for a window of other floats raise DataError that begins with `name`.
    """
    values = _with_channels(values, name)
    if values.dtype == np.uint8 and window is None and values.shape[2] == channels:
        return torch.from_numpy(values.transpose(2, 0, 1).copy())
    if values.dtype.kind == "f" and not reads_floats(window) and are_whole_numbers([values]):
        values = values.astype(np.uint8)
    check_scale(values.dtype, window, name)
    shares = _shares_of(values, channels, name)
    if values.dtype.kind == "f":
        check_shares(shares, window, name)
    return scale_to_255(shares, window)


def frame_pixels(rgb: NDArray[np.uint8], channels: int, name: object, window: Window | None = None) -> Tensor:
    """Return a frame (height, width, 3 or 1) as `pixels_of` does; for 3 channels of 8 bits as a view of it.

    The view has the memory format channels_last, in which frames are resized two to four times as fast.
    """
    if rgb.shape[-1] == channels == 3 and window is None:
        return torch.from_numpy(rgb if rgb.flags.writeable else rgb.copy()).permute(2, 0, 1)
    return pixels_of(rgb, channels, name, window)


def reads_floats(window: Window | None) -> bool:
    """Return whether a network was trained on floats that are not fractions: its window is not within [0, 1]."""
    return window is not None and (window[0] < 0 or window[1] > 1)


def check_scale(dtype: Any, window: Window | None, name: object) -> None:
    """Raise DataError if values are integers and the network was trained on floats of another scale."""
    if window is not None and reads_floats(window) and np.dtype(dtype).kind in "ui":
        raise DataError(
            f"{name}: the network was trained on floats from {window[0]:g} to {window[1]:g}, got {dtype}; give floats "
            "of that scale"
        )


def check_shares(shares: Tensor, window: Window | None, name: object) -> None:
    """Raise DataError if floats are not fractions and the network was trained on fractions, such as 8-bit images."""
    if reads_floats(window):
        return
    low, high = (0, 1) if window is None else FRACTIONS
    if shares.min() < low or shares.max() > high:
        images = "8-bit images" if window is None else "integers or of floats in [0, 1]"
        raise DataError(
            f"{name}: floats must be in [0, 1] for a network of {images}, or whole numbers from 0 to 255, got "
            f"{shares.min():g} to {shares.max():g}"
        )


def scale_to_255(shares: Tensor, window: Window | None) -> Tensor:
    """Return fractions as pixels from 0 to 255: clipped to the window and float32, or uint8 without one."""
    low, high = window or (0.0, 1.0)
    pixels = ((shares - low) / (high - low)).clamp(0, 1) * 255
    return pixels.round().byte() if window is None else pixels


def _with_channels(values: NDArray[Any], name: object) -> NDArray[Any]:
    """Return an array as (height, width, channels); raises DataError if it is not an image."""
    shaped = values[..., None] if values.ndim == 2 else values
    if shaped.ndim != 3 or shaped.dtype.kind not in "buif" or 0 in shaped.shape:
        raise DataError(
            f"{name}: an image must be an array (height, width[, channels]) of numbers, got {values.dtype} "
            f"{values.shape}"
        )
    return shaped


def _shares_of(values: NDArray[Any], channels: int, name: object) -> Tensor:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        shares = _with_channels(values, name).transpose(2, 0, 1).astype(np.float32)
    if values.dtype.kind != "f":
        shares /= np.iinfo(values.dtype).max
    if not np.isfinite(shares).all():
        raise DataError(f"{name}: contains NaN or infinity")
    return in_channels(torch.from_numpy(shares), channels, name)


def shares(pixels: Tensor) -> Tensor:
    """Return pixels as float32 fractions of the largest value of their type; floats are fractions already."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def in_channels(shares: Tensor, channels: int, name: object) -> Tensor:
    """Return images (..., channels, h, w) with `channels` channels.

    Grayscale is repeated for 3 channels, and RGB becomes its luma for 1. Raises DataError that begins with `name` for
    other numbers of channels.
    """
    if (shares.shape[-3], channels) == (3, 1):
        red, green, blue = shares.unbind(-3)
        return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]).unsqueeze(-3)
    if (shares.shape[-3], channels) == (1, 3):
        return shares.expand(*shares.shape[:-3], 3, -1, -1)
    if shares.shape[-3] != channels:
        raise DataError(f"{name}: has {shares.shape[-3]} channel(s), the network reads {channels}; see --channels")
    return shares
