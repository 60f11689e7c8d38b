"""Arrays of images: where the channels are, and which value is white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.errors import DataError

Window = tuple[float, float]
"""The values that become 0 and 255, as fractions of the largest value of their type; floats are used as they are."""

MIN_SIDE = 5
"""Minimum height and width of images whose channels may come first."""


def channels_last(images: NDArray[Any]) -> NDArray[Any]:
    """Return images (..., channels, h, w), as PyTorch has them, as (..., h, w, channels); others as they are.

    The channels come first if there are 1 or 3 and the two sides after them are at least `MIN_SIDE`.
    """
    first = images.ndim >= 3 and images.shape[-3] in (1, 3) and min(images.shape[-2:]) >= MIN_SIDE
    return np.moveaxis(images, -3, -1) if first else images


def full_scale(arrays: Sequence[NDArray[Any]], where: object, *, eight_bit: bool) -> list[NDArray[Any]]:
    """Return arrays of numbers in a type whose white is known: uint8 (255), uint16 (65535), or floats (1).

    bool: true is white. Other integers must be from 0 to 255, and become uint8; so do floats that are whole numbers
    from 0 to 255, some above 1. All arrays are judged together. Other floats are used as they are.
    eight_bit: refuse uint16 of 0 to 255, which would be nearly black, for a network of 8-bit images or a data set.
    Raises DataError that begins with `where`.
    """
    arrays = [array.astype(np.uint8) * np.uint8(255) if array.dtype.kind == "b" else array for array in arrays]
    floats, integers = _of_kind(arrays, "f"), _of_kind(arrays, "ui")
    if are_whole_numbers(floats):
        return full_scale(
            [array.astype(np.uint8) if array.dtype.kind == "f" else array for array in arrays], where,
            eight_bit=eight_bit,
        )  # fmt: skip
    if floats and integers and max(map(_largest, floats)) > 1:
        raise DataError(
            f"{where}: holds {floats[0].dtype} above 1 and {integers[0].dtype}, whose scales differ; convert all to "
            "uint8"
        )
    wide = [array for array in integers if not has_high_bit_depth(array.dtype)]
    low, high = min(map(_smallest, wide), default=0), max(map(_largest, wide), default=0)
    if low < 0 or high > 255:
        kind = next(array.dtype for array in wide if _smallest(array) < 0 or _largest(array) > 255)
        raise DataError(
            f"{where}: {kind} values must be from 0 to 255, got {low} to {high}; convert to uint8, or to uint16 if "
            "65535 is white"
        )
    deep = [array for array in integers if has_high_bit_depth(array.dtype)]
    if eight_bit and deep and 0 < (high := max(map(_largest, deep))) <= 255:
        raise DataError(f"{where}: uint16 values of 0 to {high}, where 65535 is white; convert to uint8")
    return [_native(array) for array in arrays]


def has_high_bit_depth(dtype: np.dtype[Any]) -> bool:
    """Return whether arrays of a type can be more than 8-bit images: floats and uint16."""
    return dtype.kind == "f" or (dtype.kind == "u" and dtype.itemsize == 2)


def are_whole_numbers(floats: Sequence[NDArray[Any]]) -> bool:
    """Return whether floats are whole numbers from 0 to 255, some above 1: 8-bit images in another type."""
    if not floats or not 1 < max(map(_largest, floats)) <= 255 or min(map(_smallest, floats)) < 0:
        return False
    return all(bool((array == np.rint(array)).all()) for array in floats)


def _of_kind(arrays: Sequence[NDArray[Any]], kinds: str) -> list[NDArray[Any]]:
    return [array for array in arrays if array.dtype.kind in kinds]


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in this machine's byte order, integers other than uint16 as uint8."""
    if array.dtype.kind == "f":
        return array
    return array.astype(np.uint16 if has_high_bit_depth(array.dtype) else np.uint8, copy=False)


def _largest(array: NDArray[Any]) -> Any:
    return array.max().item()


def _smallest(array: NDArray[Any]) -> Any:
    return array.min().item()
