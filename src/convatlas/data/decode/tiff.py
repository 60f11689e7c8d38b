"""TIFF files: the layout from their tags, the samples from tifffile or Pillow."""

from __future__ import annotations

import ctypes
import functools
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from convatlas.data.decode.files import UnavailableError
from convatlas.data.decode.layout import COLORS, Layout
from convatlas.data.decode.pillow import NotAnImageError, open_image, silence_loggers
from convatlas.data.decode.tags import ORIENTATION, Tags, orientation_of, read_tags, set_upright
from convatlas.errors import DataError, foreign_errors, listed
from convatlas.system.extras import import_optional, is_installed

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES = 256, 257, 258, 259, 262, 277, 284
_COLOR_MAP, _INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBSAMPLING, _NODATA = 320, 332, 338, 339, 530, 42113
_TAGS = (
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, ORIENTATION, _SAMPLES, _PLANES, _COLOR_MAP, _INK_SET,
    _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBSAMPLING, _NODATA,
)  # fmt: skip

_COLORS = {0: "gray", 1: "gray", 2: "rgb", 3: "palette", 5: "cmyk", 6: "ycbcr", 8: "lab", 9: "icclab"}
_OTHER_COLORS = {
    4: "transparency mask", 10: "ITULAB", 32803: "color filter array", 32844: "LogL", 32845: "LogLuv",
    34892: "linear raw", 51177: "depth map",
}  # fmt: skip
"""PhotometricInterpretation -> color."""

_MODES = {"gray": "L", "rgb": "RGB", "palette": "P", "cmyk": "CMYK", "ycbcr": "YCbCr", "lab": "LAB", "icclab": "LAB"}
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
"""SampleFormat -> kind of NumPy; undefined data counts as unsigned."""

_OLD_JPEG, _JPEG = 6, (6, 7, 34892, 33007)
_FAX = (2, 3, 4)
_LZW = 5
_PREMULTIPLIED, _UNASSOCIATED = 1, 2
_LOWEST = float(np.finfo(np.float32).min)
"""Value that geographic programs write for missing data, with or without a tag."""


def tiff_layout(data: bytes, name: object) -> Layout:
    """Return the layout of the first page of a TIFF file; raises DataError that names what is not supported."""
    tags = read_tags(data, _TAGS)
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise DataError(f"{name}: cannot be read: the TIFF file holds no image")
    compression = _number(tags, _COMPRESSION, 1)
    count = _number(tags, _SAMPLES, 3 if compression == _OLD_JPEG else 1)
    color, photometric = _color(tags, count, compression, name)
    bits, kind = _bits(tags, count, name), _kind(tags, count, name)
    if color in ("lab", "icclab", "palette") and kind == "i":
        kind = "u"  # the numbers of a and b are signed in any case
    _check_depth(color, kind, bits, name)
    extra = list(tags.get(_EXTRA_SAMPLES, ()))
    bands = count - COLORS[color]
    if bands < 0:
        raise DataError(f"{name}: cannot be read: {color} needs {COLORS[color]} samples per pixel, got {count}")
    if color == "rgb" and bands == 1 and extra in ([], [999]):  # without the tag, and of Corel Draw
        extra = [_UNASSOCIATED]
    opacity = next((i for i, value in enumerate(extra[:bands]) if value in (_PREMULTIPLIED, _UNASSOCIATED)), None)
    alpha = None if opacity is None else COLORS[color] + opacity
    bands -= alpha is not None
    if bands and color not in ("gray", "rgb", "cmyk"):
        raise DataError(f"{name}: cannot be read: {color} with {bands} further samples per pixel is not supported")
    layout = Layout(
        (_number(tags, _WIDTH, 0), _number(tags, _HEIGHT, 0)), color, _mode(color, kind, bits, bands, alpha),
        kind=kind, bits=bits, maximum=65535 if kind == "i" and bits > 16 else 0, bands=bands, alpha=alpha,
        premultiplied=opacity is not None and extra[opacity] == _PREMULTIPLIED,
        inverted=photometric == 0, palette=_palette(tags, bits, name) if color == "palette" else None,
        orientation=orientation_of(tags), nodata=_nodata(tags, kind) if color in ("gray", "rgb") else (),
    )  # fmt: skip
    layout.check_size(name)
    return layout


def _number(tags: Tags, tag: int, default: int) -> int:
    return tags[tag][0] if tags.get(tag) else default


def _color(tags: Tags, count: int, compression: int, name: object) -> tuple[str, int]:
    """Return the color and the number of the photometric interpretation."""
    default = 0 if compression in _FAX else 2 if count >= 3 else 1  # what libtiff assumes if the tag is missing
    photometric = 6 if compression == _OLD_JPEG else _number(tags, _PHOTOMETRIC, default)
    if photometric == 6 and count == 1:
        photometric = 1
    if photometric not in _COLORS:
        text = _OTHER_COLORS.get(photometric, str(photometric))
        raise DataError(f"{name}: cannot be read: the photometric interpretation {text} is not supported")
    if photometric == 5 and _number(tags, _INK_SET, 1) != 1:
        raise DataError(f"{name}: cannot be read: inks other than cyan, magenta, yellow and black are not supported")
    return _COLORS[photometric], photometric


def _bits(tags: Tags, count: int, name: object) -> int:
    bits = tags.get(_BITS, (1,))[:count]
    if bits == (5, 6, 5):
        return 8  # tifffile scales them
    if len(set(bits)) != 1 or not 1 <= bits[0] <= 64:
        raise DataError(f"{name}: cannot be read: {listed(bits, 4)} bits per sample are not supported")
    return bits[0]


def _kind(tags: Tags, count: int, name: object) -> str:
    formats = set(tags.get(_SAMPLE_FORMAT, (1,))[:count])
    kind = _KINDS.get(formats.pop()) if len(formats) == 1 else None
    if kind is None:
        raise DataError(f"{name}: cannot be read: complex numbers and samples of several types are not supported")
    return kind


def _check_depth(color: str, kind: str, bits: int, name: object) -> None:
    if kind == "f":
        supported = bits in (16, 24, 32, 64) and color in ("gray", "rgb", "cmyk")
    else:
        supported = bits in (8, 16) if color in ("lab", "icclab") else bits <= 16 if color == "palette" else True
    if kind == "i":
        supported &= bits in (8, 16, 32, 64)
    if not supported:
        text = {"u": "integers", "i": "signed integers", "f": "floats"}[kind]
        raise DataError(f"{name}: cannot be read: {color} of {bits}-bit {text} is not supported")


def _mode(color: str, kind: str, bits: int, bands: int, alpha: int | None) -> str:
    """Return a name of the pixel format, such as RGB, L;16, RGBA;16 or 13 x uint16."""
    if bands:
        return f"{COLORS[color] + bands} x {'float' if kind == 'f' else 'int' if kind == 'i' else 'uint'}{bits}"
    mode = _MODES[color] + ("A" if alpha is not None else "")
    if kind == "f":
        return f"{mode};{bits}F"
    if kind == "u" and (bits == 8 or (color == "palette" and bits < 8)):
        return mode
    return "1" if (mode, bits) == ("L", 1) else f"{mode};{bits}{'S' if kind == 'i' else ''}"


def _palette(tags: Tags, bits: int, name: object) -> NDArray[Any]:
    values = np.array(tags.get(_COLOR_MAP, ())).clip(0, 65535).astype(np.uint16)
    if len(values) != 3 * 2**bits:
        raise DataError(f"{name}: cannot be read: the color map must have {3 * 2**bits} values, got {len(values)}")
    palette = values.reshape(3, -1).T
    if palette.max() < 256:
        palette = palette * np.uint16(257)  # of 8 bits, against the specification
    return palette if bits > 8 else ((palette + 128.0) // 257).astype(np.uint8)


def _nodata(tags: Tags, kind: str) -> tuple[float, ...]:
    """Return the values that mark missing data: that of GDAL's tag and, of floats, the lowest one."""
    values: Sequence[float] = ()
    with suppress(ValueError):
        values = [float(bytes(tags.get(_NODATA, ())).decode("latin-1").strip("\0 ").replace(",", "."))]
    return (*values, _LOWEST) if kind == "f" else tuple(value for value in values if math.isfinite(value))


def read_tiff(data: bytes, layout: Layout, name: object) -> tuple[NDArray[Any], Layout]:
    """Return the samples of the first page, and their layout after decoding.

    Raises UnavailableError if only libraries that are not installed can read them.
    """
    tags = read_tags(data, _TAGS)
    old_jpeg = _number(tags, _COMPRESSION, 1) == _OLD_JPEG
    if old_jpeg or (_is_plain(layout, tags) and not is_installed("tifffile", "imagecodecs")):
        with suppress(NotAnImageError):  # Pillow does not know this kind
            return _read_with_pillow(data, layout, name)
    return _read_with_tifffile(data, layout, tags, name)


def _is_subsampled(tags: Tags) -> bool:
    """Return whether color is stored at a lower resolution, which only JPEG data states itself."""
    is_jpeg = _number(tags, _COMPRESSION, 1) in _JPEG
    return _number(tags, _PHOTOMETRIC, 0) == 6 and not is_jpeg and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1)


def _is_plain(layout: Layout, tags: Tags) -> bool:
    """Return whether Pillow reads the samples as they are."""
    if layout.bands or _PHOTOMETRIC not in tags or (_is_subsampled(tags) and _number(tags, _COMPRESSION, 1) == 1):
        return False
    if layout.alpha is not None and _number(tags, _PLANES, 1) != 1:
        return False
    if layout.color == "gray" and layout.samples == 1:
        return (layout.kind, layout.bits) in (("u", 1), ("u", 2), ("u", 4), ("u", 8), ("u", 16), ("f", 32))
    return layout.kind == "u" and (layout.bits == 8 or (layout.color == "palette" and layout.bits in (1, 2, 4)))


def _is_ordinary_lzw(layout: Layout, tags: Tags) -> bool:
    """Return whether samples of 8 or 16 bits are contiguous and compressed by LZW."""
    is_lzw = _number(tags, _COMPRESSION, 1) == _LZW and _number(tags, _PLANES, 1) == 1
    return is_lzw and layout.kind == "u" and layout.bits in (8, 16) and layout.color in ("gray", "rgb", "palette")


def _read_with_tifffile(data: bytes, layout: Layout, tags: Tags, name: object) -> tuple[NDArray[Any], Layout]:
    imagecodecs = import_optional("imagecodecs", "convatlas[data]", where=name, error=UnavailableError)
    tifffile = import_optional("tifffile", "convatlas[data]", where=name, error=UnavailableError)
    if _is_subsampled(tags):
        with foreign_errors(name, DataError), silence_loggers("imagecodecs"):
            values = imagecodecs.tiff_decode(set_upright(data), index=0, asrgb=True)[..., :3]
        return values, replace(layout, color="rgb", alpha=None)
    if _is_ordinary_lzw(layout, tags):
        with foreign_errors(name, DataError), silence_loggers("imagecodecs"):
            return imagecodecs.tiff_decode(data, index=0), layout  # libtiff, in half the time
    with (
        foreign_errors(name, DataError),
        silence_loggers("tifffile", "imagecodecs"),
        tifffile.TiffFile(io.BytesIO(data)) as file,
    ):
        page: Any = file.pages[0]
        size, axes = (page.imagewidth, page.imagelength), page.axes
        if size != layout.size:
            raise ValueError(f"its width and height are ambiguous: {layout.size} or {size}")
        if len(page.dataoffsets) < math.prod(page.chunked):  # tifffile makes them black
            raise ValueError("truncated: strips or tiles are missing")
        values = page.asarray(maxworkers=1)
    if axes not in ("YX", "YXS", "SYX"):
        raise DataError(f"{name}: cannot be read: images of three dimensions are not supported")
    if axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    if layout.kind == "u" and values.dtype.kind in "ib":
        values = values.view(f"u{values.dtype.itemsize}")
    decodes_to_rgb = _number(tags, _COMPRESSION, 1) in _JPEG and axes == "YXS" and layout.samples == 3
    return values, replace(layout, color="rgb") if layout.color == "ycbcr" and decodes_to_rgb else layout


def _read_with_pillow(data: bytes, layout: Layout, name: object) -> tuple[NDArray[Any], Layout]:
    _silence_libtiff()
    with foreign_errors(name, DataError), silence_loggers("PIL.TiffImagePlugin"):
        image = open_image(set_upright(data), name)
        mode = image.mode
        values = np.asarray(image.convert("L") if mode == "1" else image)
    if mode in ("1", "L"):
        return values if not layout.inverted else 255 - values, replace(layout, bits=8)
    if mode in ("RGB", "RGBA"):
        return values, replace(layout, color="rgb", premultiplied=False)
    return values, layout


@functools.cache
def _silence_libtiff() -> None:
    """Keep Pillow's own copy of libtiff from printing what Pillow raises as errors."""
    folder = Path(PIL.__file__).parent
    for library in (*folder.parent.glob("pillow.libs/libtiff*"), *folder.glob(".dylibs/libtiff*")):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)
            ctypes.CDLL(str(library)).TIFFSetWarningHandler(None)
