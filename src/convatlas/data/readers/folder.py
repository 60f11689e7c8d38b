"""Folders of images or of videos, one for each class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from convatlas.core.problems import Problems
from convatlas.data.class_names import class_name, spelling_notes
from convatlas.data.ignored import DANGLING, Ignored, IgnoredFiles
from convatlas.data.readers.image_files import add_skipped, is_folder, is_image_folder, is_skipped, scan
from convatlas.data.readers.media import IMAGES, Media, wrong_media
from convatlas.data.readers.video_files import IN_NO_VIDEO
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.splits import split_name
from convatlas.errors import DataError, listed
from convatlas.system.progress import Progress
from convatlas.tasks.classification.labels import check_known_classes
from convatlas.tasks.targets import Targets


def read_class_folders(folder: Path, media: Media, problems: Problems, *, progress: Progress | None = None) -> Source:
    """Read `train/<class>/...`, optionally `val/...` and `test/...`; or `<class>/...` without splits.

    problems: collects ambiguous folders, empty classes, and classes that train lacks.
    """
    roots, ignored = _split_roots(folder, media, problems)
    parts = {split: _class_folders(root, media, problems) for split, root in roots.items()}
    known = set(parts["train"].folders)
    if len(known) < 2:
        error = DataError(
            f"{roots['train']}: must contain at least two folders, one for each class, got {len(known)}"
            f"{': ' if known else ''}{', '.join(known)}; put the {media.nouns} of each class into a separate folder",
            kind="few_classes",
        )
        if not known:
            raise error
        problems.add(error)
    splits = {}
    for split, part in parts.items():
        try:
            check_known_classes(sorted(known), part.folders, split=split, where=folder)
        except DataError as error:
            error.subject = split
            problems.add(error, "unknown_classes")
    classes = tuple(sorted({name for part in parts.values() for name in part.folders}))
    listed_files = {split: _list_classes(part, media, problems) for split, part in parts.items()}
    together = [files for found in listed_files.values() for files in found.values()]
    if not any(files.names for files in together) and any(IN_NO_VIDEO in files.ignored.reasons for files in together):
        raise wrong_media(folder, IMAGES)
    for split, found in listed_files.items():
        splits[split] = _samples(split, roots[split], classes, found, media, problems)
        ignored = sum((files.ignored for files in found.values()), ignored + parts[split].ignored)
    spellings = [os.path.basename(path) for part in parts.values() for paths in part.folders.values() for path in paths]
    return media.source(
        folder.resolve().name, str(folder.resolve()), media.task(classes), splits, ignored=ignored,
        notes=spelling_notes(spellings), progress=progress,
    )  # fmt: skip


def _split_roots(folder: Path, media: Media, problems: Problems) -> tuple[dict[str, Path], Ignored]:
    """Return the folder of each split, and the files beside them; {"train": folder} without splits.

    The folder of a split contains folders: a class may be called "train" or "test", too.
    """
    folders = [entry for entry in scan(folder) if is_image_folder(entry)]
    parts: dict[str, list[str]] = {}
    others: list[str] = []
    for entry in folders:
        split = split_name(entry.name)
        if split and any(map(is_image_folder, scan(entry.path))):
            parts.setdefault(split, []).append(entry.name)
        else:
            others.append(entry.name)
    for split, names in parts.items():
        if len(names) > 1:
            text = f"{folder}: {' and '.join(names)} are both the {split} split; keep one of them"
            problems.add(DataError(text, kind="ambiguous_folders"))
    if not parts:
        if len(others) > 1 and all(map(split_name, others)):
            text = f"{folder}: {listed(others)} are names of splits, but contain no folders, one for each class"
            problems.add(DataError(text, kind="ambiguous_folders"))
        return {"train": folder}, Ignored()
    if "train" not in parts:
        present, *_ = next(iter(parts.values()))
        raise DataError(
            f"{folder}: there is {present}/ but no train/; put the training {media.nouns} into train/<class>/, or give "
            f"{folder / present} for its {media.nouns} alone"
        )
    roots = {split: folder / names[0] for split, names in parts.items()}
    return roots, _beside_splits(folder, parts, others, media, problems)


def _beside_splits(
    folder: Path, parts: Mapping[str, Sequence[str]], others: Sequence[str], media: Media, problems: Problems
) -> Ignored:
    """Return the files beside the folders of the splits; a problem if train/ may be meant as a class beside others."""
    ignored = _files_beside(scan(folder), media)
    for name in others:
        files = media.list_files(folder / name)[0]
        ignored += Ignored({f"in {name}/": tuple(files)} if files else {})
        if files and len(parts) == 1 and not split_name(name):
            train = parts["train"][0]
            text = (
                f"{folder}: {train}/ contains folders and is read as the train split, but {name}/ contains "
                f"{media.nouns} and is no split; give {folder / train} for its classes alone, rename "
                f"{train} if it is a class, or move {name} elsewhere"
            )
            problems.add(DataError(text, kind="ambiguous_folders"))
    return ignored


def _files_beside(entries: Sequence[os.DirEntry[str]], media: Media) -> Ignored:
    """Return the images or videos, and the links that lead nowhere, among files that are in no class folder."""
    ignored = IgnoredFiles()
    for entry in entries:
        if is_skipped(entry.name):
            add_skipped(entry, ignored, media.suffixes)
        elif not is_folder(entry):
            reason = media.reason_to_ignore(entry)
            if reason == DANGLING:
                ignored.add(reason, entry.path)
            elif not reason:
                ignored.add("in no class folder", entry.path)
    return ignored.build()


@dataclass(frozen=True)
class _ClassFolders:
    """The folders of each class, by its name, of one split; more than one if their names are spelled differently."""

    folders: Mapping[str, Sequence[str]]
    ignored: Ignored


def _class_folders(root: Path, media: Media, problems: Problems) -> _ClassFolders:
    folders: dict[str, list[str]] = {}
    entries = scan(root)
    for entry in entries:
        if is_image_folder(entry):
            with problems.of("invalid_names"):
                folders.setdefault(class_name(entry.name, root), []).append(entry.path)
    return _ClassFolders(folders, _files_beside(entries, media))


@dataclass(frozen=True)
class _ClassFiles:
    """The files of one class in one split, and those that are not used."""

    names: Sequence[str]
    ignored: Ignored


def _list_classes(part: _ClassFolders, media: Media, problems: Problems) -> dict[str, _ClassFiles]:
    """Return the files of each class that a split has."""
    found = {}
    for name, paths in part.folders.items():
        names: list[str] = []
        unused = Ignored()
        for path in paths:
            with problems.of("unreadable_folders"):
                files, more = media.list_files(path)
                names += files
                unused += more
        found[name] = _ClassFiles(names, unused)
    return found


def _samples(
    split: str, root: Path, classes: Sequence[str], found: Mapping[str, _ClassFiles], media: Media, problems: Problems
) -> Samples:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if name not in found:  # enough for an evaluation; `Source.load` refuses it for a training
            continue
        files = found[name]
        if not files.names:
            reason = f"; {files.ignored.text()}" if files.ignored else ""
            text = f"{root / name}: the class {name} is empty{reason}; add {media.nouns}, or delete the folder"
            problems.add(DataError(text, kind="empty_classes", subject=f"{split}/{name}"))
        names += files.names
        labels += [label] * len(files.names)
    return Samples(names, Targets(label=torch.tensor(labels, dtype=torch.int64)))
