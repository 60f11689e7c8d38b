"""Names of images on the command line: files, folders, glob patterns, URLs and standard input."""

from __future__ import annotations

import codecs
import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from convatlas.data.decode.files import HEAD_BYTES, SIGNATURE
from convatlas.data.ignored import Ignored
from convatlas.data.readers.image_files import list_images
from convatlas.errors import DataError, foreign_errors
from convatlas.inference.predict import EncodedImage

AMBIGUOUS = re.compile(rb"BM|GIF8|RIFF|P[1-7Ff]\s|II|MM|qoif")
"""Beginnings of image files that are beginnings of names, too."""

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be", codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip
"""Beginnings of lists in these encodings; the mark of UTF-16 begins that of UTF-32."""

LINE_BREAKS = b"\t\n\r"
"""Control characters that are part of a name in lists whose names end with zero bytes."""


@dataclass(frozen=True)
class Inputs:
    """images: what `Model.predict` and `Model.stream` take. count: their number; None if it is not known in advance.

    ignored: files of folders that are no images.
    """

    images: Iterable[Path | str | EncodedImage]
    count: int | None
    ignored: Ignored = field(default_factory=Ignored)


def expand_inputs(names: Sequence[str], *, fetch: bool = False, stdin: BinaryIO | None = None) -> Inputs:
    """Return the images that names stand for, in order.

    names: files; folders, searched recursively for image files; glob patterns; http:// and https:// URLs; or a single
        "-" for standard input, which is one image file, or a list of names that end with line breaks or zero bytes. A
        file that does not exist stays in the list, so that its prediction has an error.
    fetch: allow URLs.
    stdin: read instead of standard input.

    Raises DataError for a URL without `fetch`, a folder without images, and standard input that is closed.
    """
    if list(names) == ["-"]:
        if stdin is None and sys.stdin is None:
            raise DataError("standard input: is closed")
        return Inputs(_read_stdin(stdin or sys.stdin.buffer), None)
    images: list[Path | str] = []
    ignored = Ignored()
    for name in names:
        found, unused = _expand(name, fetch=fetch)
        images += found
        ignored += unused
    return Inputs(images, len(images), ignored)


def _expand(name: str, *, fetch: bool) -> tuple[Sequence[Path | str], Ignored]:
    path = Path(name)
    if name.startswith(("http://", "https://")):
        if not fetch:
            raise DataError(f"{name}: images are downloaded only with --fetch")
        return [name], Ignored()
    if os.path.isdir(path):
        images, ignored = list_images(path)
        if not images:
            raise DataError(f"{path}: no images in this folder{'; ' if ignored else ''}{ignored.text()}")
        return [Path(image) for image in images], ignored
    if glob.has_magic(name) and not os.path.lexists(path):
        with foreign_errors(name, DataError, "not a pattern"):
            matches = sorted(Path(match) for match in glob.glob(name, recursive=True))
        folders = tuple(str(match) for match in matches if os.path.isdir(match))
        files = [match for match in matches if not os.path.isdir(match)]
        return files or [path], Ignored({"folders": folders} if folders and files else {})
    return [path], Ignored()


def _read_stdin(stdin: BinaryIO) -> Iterator[Path | EncodedImage]:
    line = head = stdin.readline()
    while line and len(head) < HEAD_BYTES and AMBIGUOUS.match(head):
        line = stdin.readline()
        head += line
    mark = next((mark for mark in BYTE_ORDER_MARKS if head.startswith(mark)), None)
    if mark:  # as PowerShell writes it
        text = (head + stdin.read()).removeprefix(mark).decode(BYTE_ORDER_MARKS[mark], errors="replace")
        yield from _paths(text.encode().split(b"\n"))
    elif SIGNATURE.match(head) or b"\0" in head:
        data = head + stdin.read()
        names = data.removeprefix(codecs.BOM_UTF8).split(b"\0")
        if SIGNATURE.match(head) or not all(map(_is_name, names[:-1])) or names[-1]:
            yield EncodedImage("standard input", data)
        else:  # as `find -print0` writes it
            yield from map(_path, names[:-1])
    else:
        yield from _paths(head.removeprefix(codecs.BOM_UTF8).split(b"\n"))
        yield from _paths(stdin)


def _is_name(name: bytes) -> bool:
    return bool(name) and all(byte >= ord(" ") or byte in LINE_BREAKS for byte in name)


def _paths(lines: Iterable[bytes]) -> Iterator[Path]:
    """Yield the names in lines; blanks are part of a name."""
    for line in lines:
        name = line.removesuffix(b"\n").removesuffix(b"\r")
        if name.strip():
            yield _path(name)


def _path(name: bytes) -> Path:
    return Path(name.decode(errors="surrogateescape"))
