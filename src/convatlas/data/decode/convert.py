"""Conversion of samples as stored to values: full scale of uint8 or uint16, gray or RGB, on white, upright."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convatlas.data.decode.layout import COLORS, Layout
from convatlas.errors import DataError

Array = NDArray[Any]

_UPRIGHT: dict[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""Orientation -> the function that rotates or flips an array (height, width, ...) upright."""

_LAB_TO_XYZ = np.array([[1, 1 / 500, 0], [1, 0, 0], [1, 0, -1 / 200]])
"""(L + 16) / 116, a and b to the cube roots of X, Y and Z (CIE 1976)."""

_D50 = np.array([0.9642, 1.0, 0.8249])

_XYZ_TO_RGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)
"""XYZ of white D50 to linear sRGB, adapted by Bradford's method (Lindbloom)."""

_YCBCR_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
"""Full-range YCbCr to RGB (ITU-R 601, as in JFIF)."""


def to_values(raw: Array, layout: Layout, channels: int, name: object) -> tuple[Array, Array | None]:
    """Return values (height, width[, channels]), and bools of the same shape where data is missing, or None.

    raw: samples as stored, (height, width[, samples]). The values are uint8 or uint16, whose largest value is white, or
    floats: as stored, or fractions of the largest value of integers with more than 16 bits. For networks of 1 and 3
    channels, transparency is put on white. Missing data is black, or the smallest value of the image for floats.
    Raises DataError that begins with `name` if the samples are not as the layout describes them.
    """
    raw = raw.view(np.uint8) if raw.dtype == bool else raw
    raw = raw[..., None] if raw.ndim == 2 else raw
    expected = (*layout.size[::-1], layout.samples)
    if raw.shape != expected:
        raise DataError(
            f"{name}: cannot be read: the header specifies {expected} samples, the file contains {raw.shape}"
        )
    alpha = _alpha(raw, layout)
    if layout.alpha is not None:
        raw = raw[..., :-1] if layout.alpha == layout.samples - 1 else np.delete(raw, layout.alpha, axis=2)
    missing = _missing(raw, layout)
    values = _scale_to_full(raw if missing is None else np.where(missing, 0, raw), layout, name)
    values = _to_rgb(values, layout)
    if layout.bands and values.shape[2] == 3 + layout.bands and channels in (1, 3):
        values, missing = values[..., :3], None if missing is None else missing[..., :3]
    if missing is not None:
        values = _fill_missing(values, missing, layout, name)
    if alpha is not None and channels == values.shape[2] + 1 and channels not in (1, 3):
        values = np.concatenate([values, alpha], axis=2)
        missing = None if missing is None else np.pad(missing, ((0, 0), (0, 0), (0, 1)))
    elif alpha is not None:
        values = _blend_on_white(values, alpha, premultiplied=layout.premultiplied)
    values = _rotate_upright(values, layout)
    missing = None if missing is None else _rotate_upright(missing, layout)
    if values.dtype == np.uint8 and (values.shape[2], channels) in ((1, 3), (3, 1)):
        values = _in_channels(values, channels)
        missing = None if missing is None else np.broadcast_to(missing.any(2, keepdims=True), values.shape)
    return _squeeze(values), None if missing is None else _squeeze(missing)


def white(values: Array) -> int:
    """Return the value that is white: the largest one of unsigned integers, 1 of floats."""
    return int(np.iinfo(values.dtype).max) if values.dtype.kind == "u" else 1


def scale_integers(values: Array, maximum: int) -> Array:
    """Return integers so that `maximum` is the largest value of uint8 or uint16; beyond 16 bits float32 fractions."""
    if maximum > 65535:
        return (values / float(maximum)).astype(np.float32)
    dtype = np.uint8 if maximum <= 255 else np.uint16
    full = np.iinfo(dtype).max
    if maximum == full:
        return values.astype(dtype, copy=False)
    table = ((np.arange(maximum + 1, dtype=np.int64) * full * 2 + maximum) // (2 * maximum)).astype(dtype)
    return table[np.minimum(values, maximum)]


def _scale_to_full(raw: Array, layout: Layout, name: object) -> Array:
    """Return samples at full scale, black as 0; those of a palette stay numbers of its colors."""
    if layout.color == "palette":
        return raw
    if layout.kind == "f":
        with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinite
            values = raw.astype(np.float32)
            return 1 - values if layout.inverted else values
    if layout.kind == "i" and (raw.min() < 0 or raw.max() > layout.white):
        raise DataError(
            f"{name}: cannot be read: integers must be in [0, {layout.white}], got {raw.min()} to {raw.max()}"
        )
    if layout.bits > 24 and layout.alpha is None and not layout.inverted and 0 < raw.max() <= 255:
        return raw.astype(np.uint8)  # of 32 bits no image uses so few: an 8-bit image in another type
    values = scale_integers(raw, layout.white)
    return white(values) - values if layout.inverted else values


def _to_rgb(values: Array, layout: Layout) -> Array:
    """Return samples with their colors as RGB or gray; bands stay behind them."""
    if layout.color in ("gray", "rgb"):
        return values
    if layout.palette is not None:
        colors = layout.palette.T.take(values[..., 0], axis=1, mode="clip")  # planes: short rows are copied slowly
        return np.moveaxis(colors, 0, -1)
    samples: Any = values[..., : COLORS[layout.color]]
    full = white(values)
    if layout.color == "cmyk":
        rgb = (1 - samples[..., :3] / full) * (1 - samples[..., 3:] / full)
    elif layout.color == "ycbcr":
        rgb = (samples / full - np.array([0, 128 / 255, 128 / 255])) @ _YCBCR_TO_RGB.T
    else:
        rgb = _lab_to_rgb(samples, icc=layout.color == "icclab")
    rgb = rgb.clip(0, 1) * full
    rgb = rgb.round().astype(values.dtype) if values.dtype.kind == "u" else rgb
    return np.concatenate([rgb, values[..., COLORS[layout.color] :]], axis=2)


def _lab_to_rgb(samples: Array, *, icc: bool) -> Array:
    """Return CIELab of 8 or 16 bits as sRGB from 0 to 1.

    a and b are signed numbers, or with an offset of 128 in the encoding of ICC profiles.
    """
    deep = samples.dtype == np.uint16
    lightness: Any = samples[..., :1] * (100 / (65280 if icc and deep else white(samples)))
    signed: Any = samples[..., 1:] if icc else samples[..., 1:].view(np.int16 if deep else np.int8)
    ab: Any = signed / (256 if deep else 1) - (128 if icc else 0)
    roots = np.concatenate([(lightness + 16) / 116, ab], axis=2) @ _LAB_TO_XYZ.T
    xyz = np.where(roots > 6 / 29, roots**3, (roots - 4 / 29) * 3 * (6 / 29) ** 2) * _D50
    linear = (xyz @ _XYZ_TO_RGB.T).clip(0, 1)
    rgb: Array = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb


def _alpha(raw: Array, layout: Layout) -> Array | None:
    """Return the opacity (height, width, 1) at full scale, or None if all pixels are opaque."""
    if layout.transparent:
        opaque = (raw != np.array(layout.transparent)).any(2, keepdims=True)
        return scale_integers(opaque * layout.white, layout.white)
    if layout.alpha is None:
        return None
    alpha = raw[..., layout.alpha : layout.alpha + 1]
    return alpha.clip(0, 1) if layout.kind == "f" else scale_integers(alpha, layout.white)


def _blend_on_white(color: Array, alpha: Array, *, premultiplied: bool) -> Array:
    """Return colors on white: color x alpha + white x (1 - alpha), rounded."""
    full = white(color)
    if alpha.min() == full:
        return color
    if color.dtype.kind == "f":
        return np.asarray((color if premultiplied else color * alpha) + 1 - alpha)
    if premultiplied:
        return np.asarray(color + np.minimum(full - alpha, full - color))
    bits, wide = (8, np.uint16) if full == 255 else (16, np.uint32)
    weight: Any = alpha[..., 0].astype(wide)
    # division by full, rounded, without a division; one channel after the other, because the last axis is short
    background = (full - weight) * wide(full) + wide(1 << (bits - 1))
    result = np.empty(color.shape, color.dtype)
    for channel in range(color.shape[2]):
        products: Any = weight * color[..., channel]
        products += background
        products += products >> bits
        products >>= bits
        result[..., channel] = products
    return result


def _missing(raw: Array, layout: Layout) -> Array | None:
    """Return where samples are marked as missing data, or None if none is."""
    if not layout.nodata:
        return None
    missing = np.zeros(raw.shape, bool)
    with np.errstate(all="ignore"):  # of damaged floats
        exact = raw.astype(np.float64)
        for value in layout.nodata:
            if math.isfinite(value):
                missing |= np.abs(exact - value) <= 1e-6 * abs(value)
            else:
                missing |= np.isnan(exact) if math.isnan(value) else exact == value
    return missing if missing.any() else None


def _fill_missing(values: Array, missing: Array, layout: Layout, name: object) -> Array:
    if missing.all():
        raise DataError(f"{name}: cannot be read: every value is {layout.nodata[0]:g}, which marks missing data")
    values[missing] = values[~missing].min() if layout.kind == "f" else 0
    return values


def _rotate_upright(values: Array, layout: Layout) -> Array:
    rotate = _UPRIGHT.get(layout.orientation)
    return rotate(values) if rotate else values


def _in_channels(values: Array, channels: int) -> Array:
    """Return 8-bit gray as RGB for 3 channels, RGB as gray for 1."""
    if channels == 3:
        return np.broadcast_to(values, (*values.shape[:2], 3))
    return np.asarray(Image.fromarray(np.ascontiguousarray(values)).convert("L"))[..., None]


def _squeeze(values: Array) -> Array:
    return values[..., 0] if values.shape[2] == 1 else values
