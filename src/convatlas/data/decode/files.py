"""Bytes of image files, the errors of reading them, and what kind of file they are."""

from __future__ import annotations

import os
import struct
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from convatlas.errors import DataError, brief

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".npy")
)  # fmt: skip
"""Suffixes of image files, in lower case."""

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of .npy and TIFF files (classic and BigTIFF, both byte orders)."""

MAX_VALUES = 2**30
"""Maximum number of values of an image; larger ones are refused before they are decoded."""

MAX_FILE_BYTES = 2**32
"""Maximum size of an image file."""

_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError,
    MemoryError, struct.error, tokenize.TokenError, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow, NumPy, tifffile and imagecodecs raise for damaged files."""


class UnavailableError(DataError):
    """An image that cannot be read now although its file may be good: a library is missing, or the disk fails."""


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the contents of a file; raises DataError if it is missing or too large, else UnavailableError."""
    try:
        with open(path, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:
                raise DataError(f"{path}: an image file must have <= {MAX_FILE_BYTES:,} bytes, got {size:,}")
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror or brief(error)}") from error


@contextmanager
def decoder_errors(name: object) -> Iterator[None]:
    """Turn what a decoder raises for a damaged file into a DataError that begins with `name`.

    Only calls of other libraries belong inside: an error in our own code must not look like an unreadable image.
    """
    try:
        yield
    except DataError:
        raise
    except _DECODER_ERRORS as error:
        raise DataError(f"{name}: cannot be read: {brief(error)}") from error
