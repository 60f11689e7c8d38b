"""The videos in a folder: video files, animated images and folders of frames; and the files that are not used."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from convatlas.data.decode.files import EXTENSIONS, HEAD_BYTES, VIDEO_EXTENSIONS
from convatlas.data.ignored import DANGLING, Ignored, IgnoredFiles
from convatlas.data.readers.image_files import (
    NEVER_IMAGES,
    is_file,
    is_image_folder,
    is_skipped,
    other_suffix,
    scan,
    walk_files,
)

ANIMATIONS = frozenset((".gif", ".apng", ".avifs"))
"""Suffixes of animated images, in lower case: each file is a video."""

MAYBE_ANIMATED = frozenset((".webp", ".png", ".avif"))
"""Suffixes of images that are animated if their first bytes say so."""

STILLS = EXTENSIONS - ANIMATIONS
"""Suffixes of the images in folders of frames."""

VIDEOS = VIDEO_EXTENSIONS | ANIMATIONS

IN_NO_VIDEO = "images in no folder of frames"
"""Reason of images that are not the frames of a video."""

_SIGNATURE = re.compile(
    rb".{4}ftyp(?!avi[fs]|hei[cfsx]|mif1|msf1)|\x1aE\xdf\xa3|RIFF.{4}AVI |FLV\x01|0&\xb2u\x8ef\xcf\x11", re.DOTALL
)
"""First bytes of video files of the usual containers."""


def list_videos(folder: str | os.PathLike[str]) -> tuple[list[str], Ignored]:
    """Return the videos in a folder and the folders below it, in order of their names, and the other files.

    A video is a file with one of the suffixes of video files or animated images, another one that begins like a video
    file, or a folder below that contains images; see `is_frame_folder`. Links are followed as by `list_images`.
    """
    names: list[str] = []
    ignored = IgnoredFiles()
    for entry in walk_files(folder, ignored, suffixes=VIDEOS, is_leaf=_holds_frames):
        if reason := "" if entry.is_dir() else reason_to_ignore(entry):
            ignored.add(reason, entry.path)
        else:
            names.append(entry.path)
    return names, ignored.build()


def is_frame_folder(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder is a video: it directly contains images that are not animated, and no video file.

    Of PNG, WebP and AVIF images the first one decides.
    """
    return os.path.isdir(folder) and _holds_frames(scan(folder))


def holds_videos(folder: Path) -> bool:
    """Return whether the folders in a folder contain video files and no images; animated images are neither.

    The first image ends the search.
    """
    found = False
    for inside in filter(is_image_folder, scan(folder)):
        for entry in walk_files(inside.path, IgnoredFiles()):
            suffix = _suffix(entry)
            if suffix in STILLS:
                return False
            found = found or suffix in VIDEO_EXTENSIONS
    return found


def is_video_name(name: str) -> bool:
    """Return whether a path has the suffix of a video file, or is a folder."""
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS or os.path.isdir(name)


def is_still(path: str) -> bool:
    """Return whether a path is that of an image that is not animated."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix in STILLS and not os.path.isdir(path) and not (suffix in MAYBE_ANIMATED and is_animated(path))


def reason_to_ignore(entry: os.DirEntry[str]) -> str:
    """Return why a file that is not hidden is no video; "" if it is one."""
    suffix = _suffix(entry)
    dangles = entry.is_symlink() and not os.path.exists(entry.path)
    if suffix in VIDEOS:
        return "" if dangles or is_file(entry) else "special files"
    if not is_file(entry):
        return DANGLING if dangles else "special files"
    if suffix in EXTENSIONS:
        return "" if suffix in MAYBE_ANIMATED and is_animated(entry.path) else IN_NO_VIDEO
    known = suffix in NEVER_IMAGES or entry.name.endswith("~")
    return "" if not known and _SIGNATURE.match(_head(entry.path)) else other_suffix(suffix)


def is_animated(path: str) -> bool:
    """Return whether the first bytes of a PNG, WebP or AVIF file say that it is animated."""
    head = _head(path)
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        return len(head) > 20 and bool(head[20] & 2)
    return (head.startswith(b"\x89PNG") and b"acTL" in head) or head[4:12] == b"ftypavis"


def _holds_frames(entries: Sequence[os.DirEntry[str]]) -> bool:
    """Return whether the entries are those of a folder of frames; see `is_frame_folder`."""
    files = [entry for entry in entries if not is_skipped(entry.name)]
    suffixes = [_suffix(entry) for entry in files]
    if not VIDEOS.isdisjoint(suffixes):
        return False
    first = next((i for i, suffix in enumerate(suffixes) if suffix in STILLS and is_file(files[i])), None)
    return first is not None and not (suffixes[first] in MAYBE_ANIMATED and is_animated(files[first].path))


def _suffix(entry: os.DirEntry[str]) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""
