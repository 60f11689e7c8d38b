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
from convatlas.data.decode.decoders import pillow_values, read_values
from convatlas.data.decode.files import read_bytes
from convatlas.errors import DataError

Window = tuple[float, float]
"""The values that become 0 and 255, as fractions of the largest value of their type; floats are used as they are."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R 601."""


def decode(image: Image.Image, channels: int, name: object, window: Window | None = None) -> Tensor:
    """Return a PIL image as pixels, with its EXIF orientation applied; see `pixels_of` for values and channels.

    Raises DataError that begins with `name` if it is truncated.
    """
    return pixels_of(pillow_values(image, channels, name), channels, name, window)


def read_image(
    path: str | os.PathLike[str], channels: int, window: Window | None = None, *, data: bytes | None = None
) -> Tensor:
    """Return an image file as `decode` does; raises DataError that names the file if it is missing or not an image.

    data: the contents of the file, if they are in memory; `path` is then only its name.
    """
    data = read_bytes(path) if data is None else data
    return pixels_of(read_values(data, channels, path), channels, path, window)


def read_shares(path: str | os.PathLike[str], channels: int, *, data: bytes | None = None) -> Tensor:
    """Return an image file as fractions of the largest value of its type: float32 (channels, height, width)."""
    data = read_bytes(path) if data is None else data
    return _shares_of(read_values(data, channels, path), channels, path)


def load_image(
    path: str | os.PathLike[str], preprocessing: Preprocessing, *, for_random_crop: bool, data: bytes | None = None
) -> tuple[Tensor, float]:
    """Return the pixels of an image file as `frame` gives them, and the image's width over height.

    Raises DataError if it is unreadable.
    """
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


def pixels_of(values: NDArray[Any], channels: int, name: object, window: Window | None = None) -> Tensor:
    """Return an array (height, width[, channels]) as pixels (channels, height, width) from 0 to 255.

    window: None gives uint8, rounded from values of more bits; otherwise float32, clipped to the window.
    Grayscale is repeated for networks that read 3 channels, RGB becomes its luma (ITU-R 601) for those that read 1. Any
    other number of channels, and floats outside of [0, 1] without a window, raise DataError that begins with `name`.
    """
    values = _with_channels(values, name)
    if values.dtype == np.uint8 and window is None and values.shape[2] == channels:
        return torch.from_numpy(values.transpose(2, 0, 1).copy())
    shares = _shares_of(values, channels, name)
    if window is None and values.dtype.kind == "f" and (shares.min() < 0 or shares.max() > 1):
        raise DataError(
            f"{name}: floats must be in [0, 1] for a network of 8-bit images, got {shares.min():g} to {shares.max():g}"
        )
    return scale_to_255(shares, window)


def scale_to_255(shares: Tensor, window: Window | None) -> Tensor:
    """Return fractions as pixels from 0 to 255: clipped to the window and float32, or uint8 without one."""
    low, high = window or (0.0, 1.0)
    pixels = ((shares - low) / (high - low)).clamp(0, 1) * 255
    return pixels.round().byte() if window is None else pixels


def _with_channels(values: NDArray[Any], name: object) -> NDArray[Any]:
    """Return an array as (height, width, channels); raises DataError if it is not an image."""
    shaped = values[..., None] if values.ndim == 2 else values
    if shaped.ndim != 3 or shaped.dtype.kind not in "uif" or 0 in shaped.shape:
        raise DataError(
            f"{name}: an image must be an array (height, width[, channels]) of numbers, got {values.dtype} "
            f"{values.shape}"
        )
    return shaped


def _shares_of(values: NDArray[Any], channels: int, name: object) -> Tensor:
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
