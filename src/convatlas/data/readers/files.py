"""Data sources that consist of image files."""

from __future__ import annotations

from collections.abc import Mapping

from convatlas.data.manifest import Manifest
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.statistics import channels_and_depth
from convatlas.system.progress import Progress
from convatlas.tasks.task import Task


def file_source(
    name: str, location: str, task: Task, splits: Mapping[str, Samples], *, progress: Progress | None = None
) -> Source:
    """Return the source of image files; channels and bit depth are those of most training files."""
    train = splits["train"].shuffled_once()
    manifest = Manifest(location)
    channels, high_bit_depth = channels_and_depth(train.names, manifest, progress=progress)
    return Source(name, location, task, {**splits, "train": train}, channels, high_bit_depth, manifest)
