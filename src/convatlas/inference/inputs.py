"""Names of images or videos on the command line: files, folders, glob patterns, URLs and standard input."""

from __future__ import annotations

import codecs
import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from convatlas.data.decode.files import HEAD_BYTES, SIGNATURE
from convatlas.data.ignored import Ignored
from convatlas.data.readers.image_files import list_images
from convatlas.data.readers.video_files import is_frame_folder, list_videos
from convatlas.errors import DataError, foreign_errors
from convatlas.inference.contents import URL_SCHEMES, EncodedFile, not_fetched

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
class InputKind:
    """What is predicted. noun: "image" or "video". axes: of an array that is one.

    list_folder: returns the files of a folder, and of the folders below it, and what is ignored. is_one: whether a
    folder is one, as that of the frames of a video.
    """

    noun: str
    axes: int
    list_folder: Callable[[str | os.PathLike[str]], tuple[list[str], Ignored]]
    is_one: Callable[[str | os.PathLike[str]], bool]


IMAGES = InputKind("image", 3, list_images, lambda folder: False)
VIDEOS = InputKind("video", 4, list_videos, is_frame_folder)

KINDS = {"images": IMAGES, "clips": VIDEOS}
"""By what a network reads; see `Spec.reads`."""


@dataclass(frozen=True)
class Inputs:
    """items: the images or videos that `Model.stream` takes. count: their number; None for names on standard input.

    ignored: files of folders that are no images or videos.
    """

    items: Iterable[Path | str | EncodedFile]
    count: int | None
    ignored: Ignored = field(default_factory=Ignored)


def expand_inputs(
    names: Sequence[str], kind: InputKind = IMAGES, *, fetch: bool = False, stdin: BinaryIO | None = None
) -> Inputs:
    """Return the images or videos that names stand for, in order.

    names: files; folders, searched recursively; glob patterns; http:// and https:// URLs; or a single "-" for standard
        input, which is one file, or a list of names that end with line breaks or zero bytes; bytes with control
        characters are a (damaged) file. A file that does not exist stays in the list, so that its prediction has an
        error.
    fetch: allow URLs.
    stdin: read instead of standard input.

    Raises DataError for a URL without `fetch`, a folder without images or videos, a pattern without matches, and
    standard input that is closed.
    """
    if list(names) == ["-"]:
        if stdin is None and sys.stdin is None:
            raise DataError("standard input: is closed")
        return _read_stdin(stdin or sys.stdin.buffer)
    items: list[Path | str] = []
    ignored = Ignored()
    for name in names:
        found, unused = expand_name(name, kind, fetch=fetch)
        items += found
        ignored += unused
    return Inputs(items, len(items), ignored)


def as_file(name: str) -> Path | str:
    """Return a name as a file; URLs and the empty name stay text, and ~ is the home folder."""
    return name if not name or name.startswith(URL_SCHEMES) else Path(os.path.expanduser(name))


def expand_name(name: str, kind: InputKind = IMAGES, *, fetch: bool = False) -> tuple[Sequence[Path | str], Ignored]:
    """Return the images or videos that a file, a folder, a glob pattern or a URL stands for, and what was ignored.

    fetch: allow URLs.
    Raises DataError for a folder without images or videos, a pattern without matches, and a URL without `fetch`.
    """
    path = as_file(name)
    if isinstance(path, str):
        if name and not fetch:
            raise DataError(f"{name}: {not_fetched(kind.noun)}")
        return [path], Ignored()
    if os.path.isdir(path):
        if kind.is_one(path):
            return [path], Ignored()
        files, ignored = kind.list_folder(path)
        if not files:
            raise DataError(f"{path}: no {kind.noun}s in this folder{'; ' if ignored else ''}{ignored.text()}")
        return [Path(file) for file in files], ignored
    if glob.has_magic(name) and not os.path.lexists(path):
        with foreign_errors(name, DataError, "not a pattern"):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        matched = [match for match in matches if not os.path.isdir(match) or kind.is_one(match)]
        folders = tuple(map(str, sorted({*matches} - {*matched})))
        if not matched and ("*" in name or "?" in name):  # brackets may be part of a name
            raise DataError(f"{name}: nothing matches{' but folders' if folders else ''}")
        return matched or [path], Ignored({"folders": folders} if folders and matched else {})
    return [path], Ignored()


def _read_stdin(stdin: BinaryIO) -> Inputs:
    """Read one file, or the beginning of a list; further names are read when they are needed."""
    line = head = stdin.readline()
    while line and len(head) < HEAD_BYTES and AMBIGUOUS.match(head):
        line = stdin.readline()
        head += line
    mark = next((mark for mark in BYTE_ORDER_MARKS if head.startswith(mark)), None)
    if mark:  # as PowerShell writes it
        text = (head + stdin.read()).removeprefix(mark).decode(BYTE_ORDER_MARKS[mark], errors="replace")
        return Inputs(_files(text.encode().split(b"\n")), None)
    if SIGNATURE.match(head) or (head and not _is_name(head)):
        data = head + stdin.read()
        names = data.removeprefix(codecs.BOM_UTF8).split(b"\0")
        if SIGNATURE.match(head) or not all(map(_is_name, names[:-1])) or names[-1]:
            return Inputs([EncodedFile("standard input", data)], 1)
        return Inputs(map(_file, names[:-1]), None)  # as `find -print0` writes it
    return Inputs(_files(chain(head.removeprefix(codecs.BOM_UTF8).split(b"\n"), stdin)), None)


def _is_name(name: bytes) -> bool:
    return bool(name) and all(byte >= ord(" ") or byte in LINE_BREAKS for byte in name)


def _files(lines: Iterable[bytes]) -> Iterator[Path | str]:
    """Yield the files and URLs in lines; blanks are part of a name."""
    for line in lines:
        name = line.removesuffix(b"\n").removesuffix(b"\r")
        if name.strip():
            yield _file(name)


def _file(name: bytes) -> Path | str:
    return as_file(name.decode(errors="surrogateescape"))
