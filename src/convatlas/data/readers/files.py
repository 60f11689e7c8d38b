"""Data sources that consist of image files or of videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from convatlas.data.annotation_faults import AnnotationFault
from convatlas.data.ignored import Ignored
from convatlas.data.manifest import Manifest
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.statistics import channels_and_depth
from convatlas.data.video_manifest import VideoManifest
from convatlas.errors import printable
from convatlas.system.progress import Progress
from convatlas.tasks.task import Task


def file_source(
    name: str,
    location: str,
    task: Task,
    splits: Mapping[str, Samples],
    *,
    ignored: Ignored | None = None,
    notes: Sequence[str] = (),
    faults: tuple[AnnotationFault, ...] = (),
    manifest: Manifest | None = None,
    progress: Progress | None = None,
) -> Source:
    """Return the source of image files; channels and bit depth are those of most training files.

    manifest: that of the location, if files were looked up already.
    """
    train = splits["train"].shuffled_once()
    manifest = manifest or Manifest(location)
    channels, high_bit_depth = channels_and_depth(train.names, manifest, progress=progress)
    return Source(
        printable(name), location, task, {**splits, "train": train}, channels, high_bit_depth, manifest,
        ignored or Ignored(), tuple(notes), faults,
    )  # fmt: skip


def video_source(
    name: str,
    location: str,
    task: Task,
    splits: Mapping[str, Samples],
    *,
    ignored: Ignored | None = None,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Source:
    """Return the source of videos, which are RGB of 8 bits; no file is opened."""
    train = splits["train"].shuffled_once()
    manifest = VideoManifest(location)
    return Source(
        printable(name), location, task, {**splits, "train": train}, 3, manifest=manifest,
        ignored=ignored or Ignored(), notes=tuple(notes),
    )  # fmt: skip
