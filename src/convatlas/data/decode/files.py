"""Names and bytes of image files, and the errors of reading them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from convatlas.errors import DataError, brief
from convatlas.system.devices import is_out_of_memory

EXTENSIONS = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".gif", ".webp",
        ".avif", ".avifs", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".bmp",
        ".dib", ".tif", ".tiff", ".btf", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm", ".qoi", ".ico", ".pcx",
        ".sgi", ".dds", ".psd", ".npy",
    )
)  # fmt: skip
"""Suffixes of image files, in lower case."""

VIDEO_EXTENSIONS = frozenset(
    (
        ".mp4", ".m4v", ".mov", ".qt", ".avi", ".divx", ".mkv", ".webm", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v",
        ".vob", ".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".mxf", ".dv", ".rm",
        ".rmvb", ".nut", ".ivf", ".y4m", ".mjpeg", ".mjpg", ".h261", ".h263", ".h264", ".264", ".h265", ".265", ".hevc",
        ".h266", ".266", ".vvc", ".obu",
    )
)  # fmt: skip
"""Suffixes of video files, in lower case."""

NPY = b"\x93NUMPY"
"""First bytes of .npy files."""

SIGNATURE = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a.{6}\0|BM.{4}\0{4}|RIFF.{4}WEBP|II[*+]\0|MM\0[*+]|\x93NUMPY|8BPS\0"
    rb"|.{4}ftypavi[fs]|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51|\xff\x0a|qoif.{8}[\x03\x04][\0\x01]"
    rb"|P[1-4]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s|P[56]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s+\d+\s|P7\nWIDTH|P[Ff]\n\d+\s+\d+\s",
    re.DOTALL,
)
"""First bytes of image files. No list of file names begins with them."""

HEAD_BYTES = 512
"""Number of bytes that `SIGNATURE` needs; comments of Netpbm files are long."""

MAX_FILE_BYTES = 2**32
"""Maximum size of an image file."""


class UnavailableError(DataError):
    """An image that cannot be read now although its file may be good: a library is missing, or the disk fails."""


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the contents of a file; raises DataError if it is missing or too large, else UnavailableError."""
    with file_errors(path), open(path, "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:
            raise DataError(f"{path}: an image file must have <= {MAX_FILE_BYTES:,} bytes, got {size:,}")
        return file.read()


@contextmanager
def file_errors(path: object) -> Iterator[None]:
    """Turn errors of opening and reading a file into DataError if it is missing, else UnavailableError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror or brief(error)}") from error
    except ValueError as error:  # a zero byte in the name
        raise DataError(f"{path}: not the name of a file") from error


@contextmanager
def memory_errors(name: object) -> Iterator[None]:
    """Turn an out-of-memory error inside into a DataError that begins with `name`: the fault of one image."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DataError(f"{name}: cannot be read: out of memory") from error
