"""Names of images on the command line: files, folders, glob patterns, URLs and standard input."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from convatlas.data.readers.folder import images_in
from convatlas.errors import DataError
from convatlas.inference.predict import EncodedImage

SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"BM", b"P5", b"P6")
"""The first bytes of image files that need not have a zero byte in their first line."""


@dataclass(frozen=True)
class Inputs:
    """images: what `Model.predict` and `Model.stream` take. count: their number; None if it is not known in advance."""

    images: Iterable[Path | str | EncodedImage]
    count: int | None


def expand_inputs(names: Sequence[str], *, fetch: bool = False, stdin: BinaryIO | None = None) -> Inputs:
    """Return the images that names stand for, in order.

    names: files; folders, searched recursively for image files; glob patterns; http:// and https:// URLs; or a single
        "-" for standard input, which holds one name in each line, or one image file. A file that does not exist stays
        in the list, so that its prediction has an error.
    fetch: allow URLs.
    stdin: read instead of standard input.

    Raises DataError for a URL without `fetch` and for a folder without images.
    """
    if list(names) == ["-"]:
        return Inputs(_read_stdin(stdin or sys.stdin.buffer), None)
    images: list[Path | str] = []
    for name in names:
        images += _expand(name, fetch=fetch)
    return Inputs(images, len(images))


def _expand(name: str, *, fetch: bool) -> Sequence[Path | str]:
    path = Path(name)
    if name.startswith(("http://", "https://")):
        if not fetch:
            raise DataError(f"{name}: images are downloaded only with --fetch")
        return [name]
    if path.is_dir():
        images = images_in(path)
        if not images:
            raise DataError(f"{path}: no images in this folder")
        return images
    if glob.has_magic(name) and not path.exists():
        matches = sorted(Path(match) for match in glob.glob(name, recursive=True))
        return [match for match in matches if match.is_file()] or [path]
    return [path]


def _read_stdin(stdin: BinaryIO) -> Iterator[Path | EncodedImage]:
    line = stdin.readline()
    if b"\0" in line or line.startswith(SIGNATURES):
        yield EncodedImage("standard input", line + stdin.read())
        return
    while line:
        name = line.decode(errors="surrogateescape").strip()
        if name:
            yield Path(name)
        line = stdin.readline()
