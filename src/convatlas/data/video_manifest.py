"""Cached digests of videos: files of any size, which are not kept in memory, and folders of frames."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from convatlas.data.decode.video_frames import list_frames
from convatlas.data.decode.video_name import VideoName
from convatlas.data.manifest import FileInfo, Manifest, Probe, Stamp, stamp_of
from convatlas.system.files import sha256
from convatlas.system.progress import Progress


class VideoManifest(Manifest):
    """The rows of all videos of one data set, by their paths.

    The digest of a folder of frames is that of the names and contents of its images. Videos with a fragment, such as
    `film.mp4#t=1,4`, have the digest of the file and the fragment. Channels and sizes are unknown, 0.
    """

    def look_up(self, names: Sequence[str], *, progress: Progress | None = None, task: str = "reading") -> FileInfo:
        parsed = [VideoName.parse(name) for name in names]
        numbers: dict[str, int] = {}
        rows = np.array([numbers.setdefault(name.path, len(numbers)) for name in parsed], dtype=np.int64)
        info = super().look_up(list(numbers), progress=progress, task=task)  # a file with many parts is read once
        digests = info.digests[rows]
        unopened = {i: info.unopened[row] for i, row in enumerate(rows.tolist()) if row in info.unopened}
        for i, name in enumerate(parsed):
            fragment = str(replace(name, path=""))
            if fragment and i not in unopened:
                digest = hashlib.sha256(digests[i].tobytes() + fragment.encode()).digest()
                digests[i] = np.frombuffer(digest, np.uint8)
        return FileInfo(
            digests, info.channels[rows], info.high_bit_depth[rows], info.sizes[rows], info.orientations[rows], unopened
        )

    @property
    def key(self) -> str:
        return f"{self.location}\0videos"

    def stamp(self, name: str) -> Stamp:
        """Return the size and the times of a file; of a folder of frames the sum and the latest times of its images."""
        status = os.stat(name)
        if not os.path.isdir(name):
            return stamp_of(status)
        size, modified, changed = 0, status.st_mtime_ns, status.st_ctime_ns
        for frame_name in list_frames(name):
            with suppress(OSError):  # a link that leads nowhere: see `probe`
                frame = os.stat(os.path.join(name, frame_name))
                size += frame.st_size
                modified, changed = max(modified, frame.st_mtime_ns), max(changed, frame.st_ctime_ns)
        return size, modified, changed

    def probe(self, name: str) -> Probe | str:
        try:
            if not os.path.isdir(name):
                return Probe(bytes.fromhex(sha256(Path(name))))
            total = hashlib.sha256()
            for frame_name in list_frames(name):
                digest = sha256(Path(name, frame_name))
                total.update(os.fsencode(frame_name) + b"\0" + bytes.fromhex(digest))
            return Probe(total.digest())
        except OSError as error:
            return f"cannot be read: {error.strerror}"
