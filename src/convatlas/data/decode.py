"""Picture files: from one file to pixels. Ordinary ones have 8 bits; 16-bit and float ones keep what they have."""

from __future__ import annotations

import io
import logging
import math
import os
import struct
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from convatlas.errors import DataError, brief

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".npy")
)  # fmt: skip

Window = tuple[float, float]
"""The values that become black and white, in shares of what the file's type can hold (of floats: as they are)."""

# what is far too large is refused; what Pillow only warns of is read
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError,
    struct.error, tokenize.TokenError, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow, NumPy and the readers of TIFF raise for files that are not what they say."""


class UnavailableError(DataError):
    """A picture that cannot be read here and now, though its file may be good: a library is missing, a disk fails."""


_ORIENTATION, _SAMPLES = 0x0112, 0x0115
_LIMIT = 2**30
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Header:
    """What a picture file says of itself: (width, height), mode, EXIF rotation, channels, more than 8 bits."""

    size: tuple[int, int]
    mode: str
    rotated: bool = False
    channels: int = 3
    deep: bool = False


def read_header(path: Path, *, data: bytes | None = None) -> Header:
    """Return the header of a picture file, or of its bytes; raises DataError if it has none."""
    try:
        if _is((".npy",), (_ARRAY,), path, data):
            if data is not None:
                return _array_header(_npy(io.BytesIO(data), len(data)))
            return _array_header(np.load(path, mmap_mode="r", allow_pickle=False))
        try:
            with _opened(path, data) as picture:
                deep = _is_deep(picture)
                grey = picture.mode in ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L")
                # a PNG without the tag would be decoded to look for it behind its pixels
                tagged = picture.format != "PNG" or "exif" in picture.info
                rotated = tagged and picture.getexif().get(_ORIENTATION, 1) != 1
                mode = f"{picture.mode};16" if deep and picture.mode in _CUT else picture.mode
                if _samples(picture) <= 4:
                    return Header(picture.size, mode, rotated, 1 if grey else 3, deep)
        except UnidentifiedImageError:
            if not _is((".tif", ".tiff"), _TIFFS, path, data):
                raise DataError(f"{path}: not a picture") from None
        return _array_header(_tiff(path, data))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {brief(error)}") from error


@contextmanager
def _opened(path: Path, data: bytes | None = None) -> Iterator[Image.Image]:
    # from an open file, because Pillow would map the pixels of a turned TIFF into memory in the wrong shape
    with _file(path, data) as file, Image.open(file) as picture:
        yield picture


def _file(path: Path, data: bytes | None) -> BinaryIO:
    return path.open("rb") if data is None else io.BytesIO(data)


_ARRAY, _TIFFS = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How files of these kinds begin."""


def _is(kind: tuple[str, ...], begins: tuple[bytes, ...], path: Path, data: bytes | None) -> bool:
    """Return whether a file is of a kind: by the end of its name, or by its first bytes where there are only those."""
    return path.suffix.lower() in kind if data is None else data.startswith(begins)


def _array_header(values: NDArray[Any]) -> Header:
    if values.ndim not in (2, 3):
        raise ValueError(f"a picture is (height, width[, channels]), this array is {values.shape}")
    channels = 1 if values.ndim == 2 else values.shape[2]
    return Header(values.shape[1::-1], f"{channels} x {values.dtype}", False, channels, values.dtype != np.uint8)


_CUT = ("RGB", "RGBA", "LA", "RGBX")
"""Modes of 8 bits into which Pillow reads colour files of 16 bits."""


def _is_deep(picture: Image.Image) -> bool:
    """Return whether the pixels of an open picture have more than 8 bits, in the file."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return True
    # one tile's decoder arguments begin with the mode as stored, such as RGB;16B
    tiles = getattr(picture, "tile", None)
    told = tiles[0][3] if tiles else ""
    return ";16" in str(told[0] if isinstance(told, tuple) and told else told)


def _samples(picture: Image.Image) -> int:
    tags = getattr(picture, "tag_v2", {})
    return int(tags.get(_SAMPLES, 1)) if tags else 1


def decode(picture: Image.Image, channels: int, name: object, window: Window | None = None) -> Tensor:
    """Return a PIL picture (channels, height, width), upright; see `pixels_of` for values and channels.

    Raises DataError that begins with `name` if it is truncated.
    """
    try:
        values = _upright(picture, channels)
    except _UNREADABLE as error:
        raise DataError(f"{name}: cannot be read: {brief(error)}") from error
    return pixels_of(values, channels, name, window)


def read_picture(path: Path, channels: int, window: Window | None = None, *, data: bytes | None = None) -> Tensor:
    """Return a picture file as `decode` does; raises DataError that names the file if it is missing or no picture.

    data: the bytes of the file, where there is none on the disk; `path` is then only its name.
    """
    return pixels_of(_values(path, channels, data), channels, path, window)


def read_shares(path: Path, channels: int) -> Tensor:
    """Return a picture file in shares of what its type can hold: float32 (channels, height, width)."""
    return _shares(_values(path, channels), channels, path)


def pixels_of(values: NDArray[Any], channels: int, name: object, window: Window | None = None) -> Tensor:
    """Return an array (height, width[, channels]) as pixels (channels, height, width) from 0 to 255.

    window: None gives uint8, rounded where the values are deeper; otherwise float32, cut to the window.
    Grey becomes three equal channels where the network reads 3, and RGB its luma (ITU-R 601) where it reads 1. Other
    channels than the network's, and floats beyond 0 to 1 without a window, are a DataError that begins with `name`.
    """
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.dtype.kind not in "uif" or 0 in values.shape:
        raise DataError(
            f"{name}: a picture is an array (height, width[, channels]) of numbers, not {values.dtype} {values.shape}"
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
    """Return pictures (..., channels, h, w) in so many channels: grey is repeated for RGB, and RGB's luma is its grey.

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


def _upright(picture: Image.Image, channels: int) -> NDArray[Any]:
    """Return the values of a PIL picture, turned as its EXIF tag says; of 8 bits in grey or RGB, if that is wanted."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "F":
        return np.array(upright)
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        values = np.array(upright)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values of {values.min()} to {values.max()}; whole numbers of 0 to 65535 are read")
        return values.astype(np.uint16)
    if channels in (1, 3):
        if upright.has_transparency_data:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        upright = upright.convert("L" if channels == 1 else "RGB")
    return np.array(upright)


def _values(path: Path, channels: int, data: bytes | None = None) -> NDArray[Any]:
    """Return the values of a picture file (height, width[, channels]); raises DataError that names it."""
    try:
        if _is((".npy",), (_ARRAY,), path, data):
            with _file(path, data) as file:
                return _npy(file, path.stat().st_size if data is None else len(data))
        try:
            with _opened(path, data) as picture:
                if not (_is_deep(picture) and picture.mode in _CUT) and _samples(picture) <= 4:
                    return _upright(picture, channels)
                kind = picture.format
        except UnidentifiedImageError:
            if not _is((".tif", ".tiff"), _TIFFS, path, data):
                raise DataError(f"{path}: not a picture") from None
            kind = "TIFF"
        return _tiff(path, data) if kind == "TIFF" else _png(path, channels, data)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        told = f"{path}: cannot be read: {brief(error)}"
        # Pillow's own complaints are OSErrors, too, without a number
        raise (UnavailableError if getattr(error, "errno", None) else DataError)(told) from error


def _npy(file: BinaryIO, size: int) -> NDArray[Any]:
    """Return the array of a .npy file of `size` bytes; ValueError where its header promises more than that."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if math.prod(shape) * kind.itemsize > size:
        raise ValueError("truncated: the header promises more values than the file holds")
    file.seek(0)
    values: NDArray[Any] = np.load(file, allow_pickle=False)
    return values


MISSING = "{}: 16-bit colour and TIFFs of many channels need tifffile and imagecodecs; pip install 'convatlas[data]'"


def _png(path: Path, channels: int, data: bytes | None = None) -> NDArray[Any]:
    """Return a colour PNG of 16 bits, of which Pillow would keep eight; in grey or RGB transparent pixels are white."""
    try:
        import imagecodecs
    except ImportError:
        raise UnavailableError(MISSING.format(path)) from None
    values: NDArray[Any] = imagecodecs.png_decode(path.read_bytes() if data is None else data)
    if channels in (1, 3) and values.shape[2] in (2, 4):
        share = values.astype(np.float64) / 65535
        whitened = share[..., :-1] * share[..., -1:] + 1 - share[..., -1:]
        values = (whitened * 65535).round().astype(np.uint16)
    return values


_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a),
}  # fmt: skip
"""What makes an array (height, width, ...) upright, by the number of the orientation tag."""


def _tiff(path: Path, data: bytes | None = None) -> NDArray[Any]:
    """Return the first page of a TIFF file with other pixels than Pillow reads: (height, width[, channels])."""
    try:
        import imagecodecs  # noqa: F401  (with which tifffile opens compressed files)
        import tifffile
    except ImportError:
        raise UnavailableError(MISSING.format(path)) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it finds wrong is told as an error, once
    try:
        with _file(path, data) as opened, tifffile.TiffFile(opened) as file:
            if not len(file.pages):
                raise ValueError("the file holds no page")
            page: Any = file.pages[0]
            if math.prod(page.shape[:3]) > _LIMIT:
                raise ValueError(f"{' x '.join(map(str, page.shape))} values are more than {_LIMIT:,}")
            values: NDArray[Any] = page.asarray()
            turn = page.tags.get(_ORIENTATION)
            first = page.axes.startswith("S")
    except tifffile.TiffFileError as error:
        raise DataError(f"{path}: not a picture") from error
    values = np.moveaxis(values, 0, -1) if first else values
    upright = _UPRIGHT.get(turn.value if turn else 1)
    return upright(values) if upright else values


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files in a folder and the folders below it, in order of their names, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def kind_of(names: Sequence[str]) -> tuple[int, bool]:
    """Return the channels of most picture files, but 3 where some have colour, and whether most are deeper than 8 bits.

    Read from their headers; files that have none do not count. (3, False) where no file can be opened.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = [header for header in pool.map(_header_or_none, map(Path, names)) if header]
    if not headers:
        return 3, False
    channels = Counter(header.channels for header in headers)
    most = channels.most_common(1)[0][0]
    deep = sum(header.deep for header in headers) > len(headers) / 2
    return (3 if most == 1 and channels[3] else most), deep


def _header_or_none(path: Path) -> Header | None:
    try:
        return read_header(path)
    except DataError:
        return None


@dataclass(frozen=True)
class Statistics:
    """What pictures that are not 8-bit grey or RGB hold: the window of their values, and mean and deviation in it.

    window: None for 8-bit pictures. mean, std: of each channel, where the window is 0 to 1.
    """

    window: Window | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def statistics(pictures: Sequence[Callable[[], Tensor]], *, deep: bool, where: object) -> Statistics:
    """Measure pictures, each of which is read by its function as float shares (channels, h, w).

    Those that raise DataError do not count. Raises DataError if all values are equal.
    """

    def sums(read: Callable[[], Tensor]) -> Tensor | DataError:
        try:
            share = read().double()
        except DataError as error:
            return error
        axes = (1, 2)
        return torch.stack([share.amin(axes), share.amax(axes), share.mean(axes), share.var(axes, correction=0)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        told = list(pool.map(sums, pictures))
    rows = [row for row in told if isinstance(row, Tensor)]
    if not rows:
        raise DataError(f"{where}: no picture can be read; the first one: {told[0]}")
    low, high, mean, variance = torch.stack(rows).unbind(1)
    window = (float(low.min()), float(high.max())) if deep else (0.0, 1.0)
    if window[0] == window[1]:
        raise DataError(f"{where}: all pixels of all pictures have the value {window[0]:g}")
    extent = window[1] - window[0]
    centre = mean.mean(0)
    # of each picture and between them: a difference of squares would be lost where a type holds far more than is used
    deviation = (variance.mean(0) + (mean - centre).square().mean(0)).sqrt() / extent
    centre = (centre - window[0]) / extent
    return Statistics(
        window if deep else None, tuple(centre.tolist()), tuple(deviation.clamp(min=1e-3).tolist())
    )  # fmt: skip
