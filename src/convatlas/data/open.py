"""Open data by name or path with the reader for its format."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from convatlas.core.problems import NO_DATA, Problems
from convatlas.data.groups import with_groups
from convatlas.data.readers.annotated import read_annotated, reader_of
from convatlas.data.readers.arrays import read_npz
from convatlas.data.readers.digits import read_digits
from convatlas.data.readers.folder import read_class_folders
from convatlas.data.readers.idx import IDX_SETS, fetch_idx, has_idx_files, read_idx_folder
from convatlas.data.readers.media import IMAGES, MEDIA, VIDEOS, wrong_media
from convatlas.data.readers.memory import IN_MEMORY, Data, is_in_memory, read_memory
from convatlas.data.readers.table import parquet_shards, read_parquet_folder, read_table
from convatlas.data.readers.torchvision import FOLDERS, SETS, read_torchvision
from convatlas.data.readers.video_files import holds_videos
from convatlas.data.source import Source
from convatlas.data.splits import Fold
from convatlas.errors import DataError, listed, nearest
from convatlas.system.cache import cache_folder
from convatlas.system.progress import Progress

TABLES = (".csv", ".tsv", ".parquet")
"""Suffixes of tables of images or videos."""

CLASS_KINDS = ("empty_classes", "few_classes", "missing_classes", "unknown_classes", "unused_labels")
"""Kinds of problems that only matter for a training: an evaluation uses the classes that have images."""


def open_data(
    data: Data,
    *,
    reads: str | None = None,
    group_pattern: str | None = None,
    download: bool = False,
    progress: Progress | None = None,
    problems: Problems | None = None,
) -> Source:
    """Return the source that `data` names.

    data: a data set by its name, a folder of images, of videos or of the files of a data set, a table of images or
        videos (.csv, .tsv, .parquet), or a NumPy file (.npz); or data in memory, see `read_memory`; or a source itself.
    reads: what the network reads, "images" or "clips". None: a folder or table of video files without images is one of
        videos. Raises DataError for images where it reads clips, and the reverse.
    group_pattern: finds the groups that stay in one split; see `with_groups`.
    download: allow to download a data set by name into the cache.
    problems: collects the problems with which the data can still be read, in part; without it they are raised as one
        error.
    Raises DataError for a missing or empty folder and unknown names.
    """
    collected = Problems() if problems is None else problems
    try:
        source = _read(data, reads, download, progress, collected)
        if reads not in (None, source.task.reads):
            raise wrong_media(source.location, MEDIA[source.task.reads])
        source = with_groups(source, group_pattern)
        check_classes(source, collected, ["train"])
    except DataError as error:
        if problems is not None or error.kind == NO_DATA:
            raise
        collected.add(error)
    if problems is None:
        collected.stop(data, allowed=["missing_classes"])  # `Source.load` refuses them, if a training needs them
    return source


def open_for_training(
    data: Data,
    *,
    val_share: float,
    reads: str | None = None,
    group_pattern: str | None = None,
    fold: Fold | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Source:
    """Return the source that `data` names.

    Raises one DataError for all the problems that names and labels show: those of `open_data`, classes that a split
    lacks, and classes with too few images for a val split or folds.
    """
    problems = Problems()
    try:
        source = open_data(
            data, reads=reads, group_pattern=group_pattern, download=download, progress=progress, problems=problems
        )
        check_classes(source, problems, [split for split in source.splits if split != "train"])
        with problems.of("small_classes"):
            source.check_val_split(val_share=val_share, fold=fold)
    except DataError as error:
        problems.add(error)
    problems.stop(data)
    return source


def open_for_evaluation(
    data: Data, *, reads: str | None = None, group_pattern: str | None = None, progress: Progress | None = None
) -> Source:
    """Return the source that `data` names, which may lack classes; raises one DataError for other problems.

    reads: see `open_data`. group_pattern: that of the training; data without such names has no groups.
    """
    problems = Problems()
    try:
        source = open_data(data, reads=reads, progress=progress, problems=problems)
        with suppress(DataError):
            source = with_groups(source, group_pattern)
    except DataError as error:
        problems.add(error)
        problems.stop(data)
        raise
    problems.stop(data, allowed=CLASS_KINDS)
    if not any(map(len, source.splits.values())):
        problems.stop(data)
    return source


def check_classes(source: Source, problems: Problems, splits: Iterable[str]) -> None:
    """Add the classes without images in these splits to problems, unless their empty folders are among them."""
    task = source.task
    kinds = {error.kind for error in problems.errors}
    if len(task.classes) < task.min_classes and "few_classes" not in kinds:
        few = {2: "two"}.get(task.min_classes, task.min_classes)
        text = f"{source.location}: expected at least {few} classes, found {len(task.classes)}"
        problems.add(DataError(f"{text}; add images of another class", kind="few_classes"))
    for split in splits:
        if split in problems.subjects or (split == "train" and "unknown_classes" in kinds):
            continue  # the error about its unknown classes names those that it lacks, too
        targets = source.splits[split].targets
        counts = task.class_counts(targets)
        missing = [] if counts is None else [task.classes[i] for i in (counts == 0).nonzero().flatten().tolist()]
        if counts is None or not {f"{split}/{name}" for name in missing} <= problems.subjects:
            with problems.of("missing_classes"):
                task.check_split(targets, split, source.location)


def _read(
    data: Data, reads: str | None, download: bool, progress: Progress | None, problems: Problems
) -> Source:  # fmt: skip
    if isinstance(data, Source):
        return data
    if is_in_memory(data):
        return read_memory(data, progress=progress)
    if not str(data).strip():
        raise DataError("the data set has no name; give a name, a folder or a file", kind=NO_DATA)
    if str(data).startswith(IN_MEMORY):
        name = str(data).removeprefix(IN_MEMORY)
        raise DataError(f"{name}: was in memory in Python, and is in no file; give it again", kind=NO_DATA)
    name = data if isinstance(data, str) else ""  # a Path is always a file or a folder
    if name == "digits":
        return read_digits()
    if name in IDX_SETS:
        folder = cache_folder() / name
        if not has_idx_files(folder) and not download:
            raise DataError(
                f"{name} is not in {folder}; download it with `convatlas data check {name} --download`, or give a "
                "folder with its IDX files",
                kind=NO_DATA,
            )
        if download:
            fetch_idx(name, folder, progress=progress)
        return read_idx_folder(folder)
    if name in SETS:
        return read_torchvision(name, download=download, progress=progress)
    path = Path(data)
    if not os.path.lexists(path):
        path = Path(os.path.expanduser(path))
    if not os.path.exists(path):
        raise DataError(_missing(path, name), kind=NO_DATA)
    if not path.is_dir():
        if reads != "clips" and (read := reader_of(path)):
            return read_annotated(path, read, problems, progress=progress)
        if path.suffix.lower() in TABLES:
            return read_table(path, reads, problems, progress=progress)
        if path.suffix.lower() == ".npz":
            return read_npz(path)
        others = "a NumPy file (.npz) or annotations (.json, .yaml, .xml)"
        text = f"{path}: must be a folder, a table ({', '.join(TABLES)}), {others}"
        raise DataError(text, kind=NO_DATA)
    present = [inside for inside in FOLDERS if (path / inside).is_dir()]
    if len(present) > 1:
        raise DataError(f"{path}: contains the data sets {', '.join(present)}; keep one of them in this folder")
    if present:
        return read_torchvision(FOLDERS[present[0]], path, progress=progress)
    if has_idx_files(path):
        return read_idx_folder(path)
    if parquet_shards(path):
        return read_parquet_folder(path, reads, problems, progress=progress)
    if reads != "clips" and (read := reader_of(path)):
        return read_annotated(path, read, problems, progress=progress)
    found = VIDEOS if reads == "clips" or holds_videos(path) else IMAGES
    if reads == "images" and found is VIDEOS:
        raise wrong_media(path, found)
    return read_class_folders(path, found, problems, progress=progress)


def _missing(path: Path, name: str) -> str:
    """Return the message for a path where nothing is."""
    if os.path.islink(path):
        return f"{path}: a link to {os.readlink(path)}, which does not exist"
    if path.suffix.lower() in (*TABLES, ".npz", ".json", ".yaml", ".yml", ".xml"):
        return f"{path}: no such file"
    if not name or os.sep in name:
        return f"{path}: no such folder"
    known = ["digits", *IDX_SETS, *SETS]
    return f"{path}: no such folder{nearest(name, known)}; data sets by name: {listed(known)}"
