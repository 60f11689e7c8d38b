"""Open image files, and tell their kinds apart."""

from __future__ import annotations

import io
import struct
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from convatlas.errors import DataError

_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError,
    struct.error, tokenize.TokenError, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow, NumPy and the readers of TIFF raise for files that are not what they say."""


def _samples(image: Image.Image) -> int:
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(_SAMPLES, 1)) if tags else 1


EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".npy")
)  # fmt: skip


class UnavailableError(DataError):
    """An image that cannot be read here and now, though its file may be good: a library is missing, a disk fails."""


_ORIENTATION, _SAMPLES = 0x0112, 0x0115
_LIMIT = 2**30


@contextmanager
def _opened(path: Path, data: bytes | None = None) -> Iterator[Image.Image]:
    # from an open file, because Pillow would map the pixels of a turned TIFF into memory in the wrong shape
    with _file(path, data) as file, Image.open(file) as image:
        yield image


def _file(path: Path, data: bytes | None) -> BinaryIO:
    return path.open("rb") if data is None else io.BytesIO(data)


_ARRAY, _TIFFS = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How files of these kinds begin."""


def _is(kind: tuple[str, ...], begins: tuple[bytes, ...], path: Path, data: bytes | None) -> bool:
    """Return whether a file is of a kind: by the end of its name, or by its first bytes where there are only those."""
    return path.suffix.lower() in kind if data is None else data.startswith(begins)


_CUT = ("RGB", "RGBA", "LA", "RGBX")
"""Modes of 8 bits into which Pillow reads color files of 16 bits."""


def _is_high_bit_depth(image: Image.Image) -> bool:
    """Return whether the pixels of an open image have more than 8 bits, in the file."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return True
    # one tile's decoder arguments begin with the mode as stored, such as RGB;16B
    tiles = getattr(image, "tile", None)
    told = tiles[0][3] if tiles else ""
    return ";16" in str(told[0] if isinstance(told, tuple) and told else told)
