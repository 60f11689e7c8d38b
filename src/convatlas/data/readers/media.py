"""What a data set consists of: images or videos. Readers of folders and tables list and name both in one way."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from convatlas.data.decode.files import EXTENSIONS
from convatlas.data.ignored import Ignored
from convatlas.data.readers import image_files, video_files
from convatlas.data.readers.files import file_source, video_source
from convatlas.data.source import Source
from convatlas.errors import DataError, listed
from convatlas.models.catalog import CATALOG
from convatlas.tasks.known import Classification, VideoClassification
from convatlas.tasks.task import Task


@dataclass(frozen=True)
class Media:
    """Images or videos.

    reads: what networks for them read; see `Spec.reads`. task: of folders of classes. list_files: lists those in a
        folder, and the other files. reason_to_ignore: why a file is none of them, "" if it is. suffixes: of most of
        them. source: makes the source of their files.
    """

    reads: str
    task: type[Task]
    list_files: Callable[[str | os.PathLike[str]], tuple[list[str], Ignored]]
    reason_to_ignore: Callable[[os.DirEntry[str]], str]
    suffixes: Collection[str]
    source: Callable[..., Source]

    @property
    def noun(self) -> str:
        return self.task.noun

    @property
    def nouns(self) -> str:
        return f"{self.noun}s"


IMAGES = Media(
    "images", Classification, image_files.list_images, image_files.reason_to_ignore, EXTENSIONS, file_source
)  # fmt: skip
VIDEOS = Media(
    "clips", VideoClassification, video_files.list_videos, video_files.reason_to_ignore, video_files.VIDEOS,
    video_source,
)  # fmt: skip

MEDIA: Mapping[str, Media] = {media.reads: media for media in (IMAGES, VIDEOS)}


def wrong_media(where: object, found: Media) -> DataError:
    """Return the error of data that consists of images where videos are expected, or the reverse."""
    other = VIDEOS if found is IMAGES else IMAGES
    return DataError(
        f"{where}: contains {found.nouns}, and a network that reads {other.reads} needs {other.nouns}; choose one that "
        f"reads {found.reads}, such as {example_networks(found.reads)}"
    )


def example_networks(reads: str) -> str:
    """Return classifiers of the catalog that read images or clips as text."""
    rows = [name for name, row in CATALOG.items() if (row.spec.reads, row.spec.predicts) == (reads, "classes")]
    usual = [name for name in ("resnet18", "mobilenet_v3_large", "r3d_18", "mc3_18", "r2plus1d_18") if name in rows]
    return listed(usual or rows[:3])
