"""The image files in a folder, and the files in it that are not used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from PIL import features

from convatlas.data.decode.files import EXTENSIONS, HEAD_BYTES, SIGNATURE, VIDEO_EXTENSIONS
from convatlas.data.ignored import DANGLING, Ignored, IgnoredFiles, not_installed
from convatlas.errors import DataError, printable
from convatlas.system.extras import is_installed

SYSTEM_FOLDERS = frozenset(
    ("@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found", "system volume information")
)  # fmt: skip
"""Folders that systems create, in lower case; they and hidden folders are skipped."""

SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
"""Files that systems create, in lower case; they and hidden files are skipped."""

NEVER_IMAGES = frozenset(
    (
        ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html", ".htm", ".log",
        ".py", ".ipynb", ".mat", ".pkl", ".pt", ".pth", ".npz", ".h5", ".parquet", ".zip", ".tar", ".gz", ".7z",
        ".pdf", ".db", ".ini", ".xmp", ".thm", ".bak", ".orig", ".tmp", ".part", ".crdownload", *VIDEO_EXTENSIONS,
        ".nef", ".nrw", ".cr2", ".cr3", ".dng", ".arw", ".sr2", ".srf", ".srw", ".pef", ".orf", ".rw2", ".raf", ".raw",
        ".3fr", ".erf", ".kdc", ".dcr", ".mrw", ".iiq", ".x3f",
    )
)  # fmt: skip
"""Suffixes of files whose first bytes are not read: documents, archives, videos, copies, unfinished downloads, and raw
files of cameras, which begin like TIFF files of a thumbnail."""

LIBRARIES = {".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif", ".jxl": "imagecodecs"}
"""Suffixes of images that only an optional library reads; without it they are not used, so that the others are."""

AVIF = (".avif", ".avifs")
"""Suffixes of AVIF, which Pillow reads from version 11.3 on."""

COMMON = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
"""Suffixes of most images, which need no further look."""


def missing_library(suffix: str) -> str:
    """Return the library that reads images of this suffix (lower case) and is not installed; "" if there is none."""
    if suffix in AVIF:
        return "" if features.check("avif") else "the AVIF decoder of Pillow 11.3"
    library = LIBRARIES.get(suffix, "")
    return library if library and not is_installed(library) else ""


RUN_FILES = ("run.json", ".lock")
"""Files that only run directories have: the configuration, and the lock of a run that starts or trains."""

MAX_RUN_DEPTH = 3
"""Depth of run directories in a folder of runs: runs/DATA-MODEL-folds/fold-1."""


def holds_runs(folder: str, depth: int = MAX_RUN_DEPTH) -> bool:
    """Return whether a folder is a run directory or contains nothing but run directories; its images are plots."""
    if any(os.path.isfile(os.path.join(folder, name)) for name in RUN_FILES):
        return True
    runs = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:  # the first image of a class folder ends the search
                if is_folder(entry):
                    if not depth or not holds_runs(entry.path, depth - 1):
                        return False
                    runs = True
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    return False
    except OSError:
        return False
    return runs


def is_image_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder that may contain images of the data: neither skipped nor a folder of runs."""
    return is_folder(entry) and not is_skipped(entry.name) and not holds_runs(entry.path)


def is_skipped(name: str) -> bool:
    """Return whether a file or folder is hidden or belongs to the system."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or name.lower() in SYSTEM_FILES


def list_images(folder: str | os.PathLike[str]) -> tuple[list[str], Ignored]:
    """Return the image files in a folder and the folders below it, in order of their names, and the other files.

    An image has one of the suffixes `EXTENSIONS`, or another one and the first bytes of an image. Links are followed;
    a folder that is reached a second time is not read again. A dangling link to an image is listed, so that it counts
    as an unreadable image.
    """
    files: list[str] = []
    ignored = IgnoredFiles()
    for entry in walk_files(folder, ignored):
        if entry.name.endswith(COMMON) and is_file(entry):
            files.append(entry.path)
        elif reason := reason_to_ignore(entry):
            ignored.add(reason, entry.path)
        else:
            files.append(entry.path)
    return files, ignored.build()


def walk_files(
    folder: str | os.PathLike[str],
    ignored: IgnoredFiles,
    *,
    suffixes: Collection[str] = EXTENSIONS,
    is_leaf: Callable[[list[os.DirEntry[str]]], bool] | None = None,
) -> Iterator[os.DirEntry[str]]:
    """Yield the files in a folder and the folders below it, in order of their names, without hidden and system files.

    Links are followed; a folder that is reached a second time is not read again. ignored: gets what is skipped, if it
    has one of the suffixes. is_leaf: decides by the entries of a folder below whether it is yielded instead of them.
    """
    real = Path(os.path.realpath(folder))
    visited = {_identity(path) for path in (real, *real.parents)}
    stack = [iter(scan(os.fspath(folder)))]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif entry.name.endswith(COMMON) and entry.name[0] != "." and is_file(entry):
            yield entry
        elif is_skipped(entry.name):
            add_skipped(entry, ignored, suffixes)
        elif not is_folder(entry):
            yield entry
        elif (identity := _identity(entry.path)) in visited:
            ignored.add("links to folders that are read already", entry.path)
        elif not holds_runs(entry.path):
            visited.add(identity)
            entries = scan(entry.path)
            if is_leaf is not None and is_leaf(entries):
                yield entry
            else:
                stack.append(iter(entries))


def images_in(folder: Path) -> list[Path]:
    """Return the image files of `list_images`."""
    return [Path(file) for file in list_images(folder)[0]]


def scan(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Return the entries of a folder in order of their names; raises DataError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{os.fspath(folder)}: cannot be read: {error.strerror}") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link that leads nowhere or to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the device and the inode of a folder, which links to it share; (0, 0) if it cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def reason_to_ignore(entry: os.DirEntry[str]) -> str:
    """Return why a file that is not hidden is no image; "" if it is one."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in EXTENSIONS:
        if library := missing_library(suffix):
            return not_installed(suffix, library)
        dangles = entry.is_symlink() and not os.path.exists(entry.path)
        return "" if dangles or is_file(entry) else "special files"
    if not is_file(entry):
        return DANGLING if entry.is_symlink() else "special files"
    if suffix not in NEVER_IMAGES and not entry.name.endswith("~") and _begins_like_an_image(entry.path):
        return ""
    return other_suffix(suffix)


def other_suffix(suffix: str) -> str:
    """Return the reason of a file that is not used because of its suffix."""
    if not suffix:
        return "without a suffix"
    return suffix if re.fullmatch(r"\.[\w~-]{1,12}", suffix) else "with other suffixes"


def _begins_like_an_image(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return SIGNATURE.match(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def add_skipped(entry: os.DirEntry[str], ignored: IgnoredFiles, suffixes: Collection[str] = EXTENSIONS) -> None:
    """Add the files with these suffixes among what is hidden or belongs to the system."""
    if entry.is_dir(follow_symlinks=False):
        reason = f"in {printable(entry.name)}"
        for name in _below(entry.path, suffixes):
            ignored.add(reason, name)
    elif os.path.splitext(entry.name)[1].lower() in suffixes and not entry.name.startswith("._"):
        ignored.add("hidden", entry.path)  # ._NAME is the resource fork that macOS writes beside NAME


def _below(folder: str, suffixes: Collection[str]) -> Iterable[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("._"):
                yield os.path.join(parent, name)
