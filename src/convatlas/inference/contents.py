"""What images and videos that are predicted share: names, the bytes of files, URLs, and errors that name the input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from convatlas.errors import DataError, foreign_errors, printable
from convatlas.system.download import fetch_bytes

URL_SCHEMES = ("http://", "https://")


class EncodedFile(NamedTuple):
    """The bytes of an image or video file, and a name for it."""

    name: str
    data: bytes


def not_fetched(noun: str) -> str:
    """Return why a URL is not read."""
    return f"{noun}s are downloaded only with --fetch (fetch=True in Python)"


def display_name(given: Any, noun: str, number: int) -> str:
    """Return the file of an image or video, or its number."""
    if isinstance(given, EncodedFile):
        return given.name
    name = getattr(given, "name", None) if hasattr(given, "read") else given
    return os.fspath(name) if isinstance(name, str | os.PathLike) and os.fspath(name) else f"{noun} {number}"


def read_contents(given: Any, name: str, noun: str, *, fetch: bool) -> Any:
    """Return bytes, open files and URLs as an encoded file; everything else as it is.

    fetch: whether URLs are downloaded. Raises DataError that begins with `name`.
    """
    if isinstance(given, str) and given.startswith(URL_SCHEMES):
        if not fetch:
            raise DataError(f"{name}: {not_fetched(noun)}")
        return EncodedFile(given, fetch_bytes(given))
    with foreign_errors(name, DataError):
        if isinstance(given, bytes | bytearray | memoryview):
            return EncodedFile(name, bytes(given))
        if isinstance(given, EncodedFile | Image.Image | np.ndarray | Tensor) or not hasattr(given, "read"):
            return given
        data = given.read()
        if not isinstance(data, bytes):
            raise DataError(f"{name}: an open file must be in binary mode, got {type(data).__name__} from it")
        if not data:
            raise DataError(f"{name}: has no bytes to read: the file is empty, or at its end (call seek(0))")
        return EncodedFile(name, data)


@contextmanager
def naming_errors(name: str) -> Iterator[None]:
    """Let every DataError inside begin with `name`."""
    try:
        yield
    except DataError as error:
        is_named = str(error).startswith(printable(f"{name}: "))
        raise error if is_named else DataError(f"{name}: {error}") from error
