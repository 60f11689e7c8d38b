"""Pixels from image files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convatlas.data.decode.files import _UNREADABLE
from convatlas.data.decode.formats import _upright, _values
from convatlas.errors import DataError, brief

Window = tuple[float, float]
"""The values that become black and white, in shares of what the file's type can hold (of floats: as they are)."""

# what is far too large is refused; what Pillow only warns of is read
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
_LUMA = (0.299, 0.587, 0.114)


def decode(image: Image.Image, channels: int, name: object, window: Window | None = None) -> Tensor:
    """Return a PIL image (channels, height, width), upright; see `pixels_of` for values and channels.

    Raises DataError that begins with `name` if it is truncated.
    """
    try:
        values = _upright(image, channels)
    except _UNREADABLE as error:
        raise DataError(f"{name}: cannot be read: {brief(error)}") from error
    return pixels_of(values, channels, name, window)


def read_image(path: Path, channels: int, window: Window | None = None, *, data: bytes | None = None) -> Tensor:
    """Return an image file as `decode` does; raises DataError that names the file if it is missing or no image.

    data: the bytes of the file, where there is none on the disk; `path` is then only its name.
    """
    return pixels_of(_values(path, channels, data), channels, path, window)


def read_shares(path: Path, channels: int) -> Tensor:
    """Return an image file in shares of what its type can hold: float32 (channels, height, width)."""
    return _shares(_values(path, channels), channels, path)


def pixels_of(values: NDArray[Any], channels: int, name: object, window: Window | None = None) -> Tensor:
    """Return an array (height, width[, channels]) as pixels (channels, height, width) from 0 to 255.

    window: None gives uint8, rounded where the values are deeper; otherwise float32, cut to the window.
    Gray becomes three equal channels where the network reads 3, and RGB its luma (ITU-R 601) where it reads 1. Other
    channels than the network's, and floats beyond 0 to 1 without a window, are a DataError that begins with `name`.
    """
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.dtype.kind not in "uif" or 0 in values.shape:
        raise DataError(
            f"{name}: an image is an array (height, width[, channels]) of numbers, not {values.dtype} {values.shape}"
        )
    if values.dtype == np.uint8 and window is None and values.shape[2] == channels:
        return torch.from_numpy(values.transpose(2, 0, 1).copy())
    share = _shares(values, channels, name)
    if window is None and values.dtype.kind == "f" and (share.min() < 0 or share.max() > 1):
        raise DataError(f"{name}: floats of {share.min():g} to {share.max():g}; this network reads 8 bits, or 0 to 1")
    low, high = window or (0.0, 1.0)
    pixels = ((share - low) / (high - low)).clamp(0, 1) * 255
    return pixels.round().byte() if window is None else pixels


def _shares(values: NDArray[Any], channels: int, name: object) -> Tensor:
    """Return values (height, width[, channels]) as shares (channels, height, width) of what their type can hold."""
    values = values[..., None] if values.ndim == 2 else values
    share = values.transpose(2, 0, 1).astype(np.float32)
    if values.dtype.kind != "f":
        share /= np.iinfo(values.dtype).max
    if not np.isfinite(share).all():
        raise DataError(f"{name}: holds values that are no numbers (nan or infinite)")
    return in_channels(torch.from_numpy(share), channels, name)


def shares(pixels: Tensor) -> Tensor:
    """Return pixels, uint8 or shares already, as float32 shares of what their type can hold."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def in_channels(share: Tensor, channels: int, name: object) -> Tensor:
    """Return images (..., channels, h, w) in so many channels: gray is repeated for RGB, and RGB's luma is its gray.

    Raises DataError that begins with `name` for others.
    """
    if (share.shape[-3], channels) == (3, 1):
        red, green, blue = share.unbind(-3)
        return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]).unsqueeze(-3)
    if (share.shape[-3], channels) == (1, 3):
        return share.expand(*share.shape[:-3], 3, -1, -1)
    if share.shape[-3] != channels:
        raise DataError(f"{name}: has {share.shape[-3]} channel(s), not {channels}; see --channels")
    return share
