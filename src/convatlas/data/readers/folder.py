"""Folders of image files, one for each class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from convatlas.data.class_names import class_name, spelling_notes
from convatlas.data.decode.files import EXTENSIONS
from convatlas.data.ignored import Ignored, IgnoredFiles
from convatlas.data.readers.files import file_source
from convatlas.data.readers.image_files import (
    add_skipped,
    is_folder,
    is_skipped,
    list_images,
    reason_to_ignore,
    scan,
)
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.splits import split_name
from convatlas.errors import DataError, listed
from convatlas.system.progress import Progress
from convatlas.tasks.classification.labels import check_known_classes
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Targets


def read_image_folder(folder: Path, *, progress: Progress | None = None) -> Source:
    """Read `train/<class>/...`, optionally `val/...` and `test/...`; or `<class>/...` without splits."""
    roots, ignored = _split_roots(folder)
    parts = {split: _class_folders(root) for split, root in roots.items()}
    classes = tuple(sorted(parts["train"].folders))
    if len(classes) < 2:
        raise DataError(
            f"{roots['train']}: must contain at least two folders, one for each class, got "
            f"{len(classes)}{': ' if classes else ''}{', '.join(classes)}"
        )
    splits = {}
    for split, part in parts.items():
        check_known_classes(classes, part.folders, split=split, where=folder)
        splits[split], more = _list_split(roots[split], classes, part.folders)
        ignored += part.ignored + more
    spellings = [os.path.basename(path) for part in parts.values() for paths in part.folders.values() for path in paths]
    return file_source(
        folder.resolve().name, str(folder.resolve()), Classification(classes), splits, ignored=ignored,
        notes=spelling_notes(spellings), progress=progress,
    )  # fmt: skip


def _split_roots(folder: Path) -> tuple[dict[str, Path], Ignored]:
    """Return the folder of each split, and the images beside them; {"train": folder} without splits.

    The folder of a split contains folders: a class may be called "train" or "test", too.
    """
    folders = [entry for entry in scan(folder) if is_folder(entry) and not is_skipped(entry.name)]
    parts: dict[str, list[str]] = {}
    others: list[str] = []
    for entry in folders:
        split = split_name(entry.name)
        if split and any(is_folder(inner) and not is_skipped(inner.name) for inner in scan(entry.path)):
            parts.setdefault(split, []).append(entry.name)
        else:
            others.append(entry.name)
    for split, names in parts.items():
        if len(names) > 1:
            raise DataError(f"{folder}: {' and '.join(names)} are both the {split} split; keep one of them")
    if not parts:
        if len(others) > 1 and all(map(split_name, others)):
            raise DataError(
                f"{folder}: {listed(others)} are names of splits, but contain no folders, one for each class"
            )
        return {"train": folder}, Ignored()
    if "train" not in parts:
        (present,) = next(iter(parts.values()))
        raise DataError(
            f"{folder}: there is {present}/ but no train/; put the training images into train/<class>/, or give "
            f"{folder / present} for its images alone"
        )
    return {split: folder / name for split, (name,) in parts.items()}, _beside_splits(folder, parts, others)


def _beside_splits(folder: Path, parts: Mapping[str, Sequence[str]], others: Sequence[str]) -> Ignored:
    """Return the images beside the folders of the splits.

    Raises DataError if train/ alone may be meant as a class beside others.
    """
    ignored = _files_beside(scan(folder))
    for name in others:
        images = list_images(folder / name)[0]
        ignored += Ignored({f"in {name}/": tuple(images)} if images else {})
        if images and len(parts) == 1 and not split_name(name):
            train = parts["train"][0]
            raise DataError(
                f"{folder}: {train}/ contains folders and is read as the train split, but {name}/ contains images and "
                f"is no split; give {folder / train} for its classes alone, rename {train} if it is a class, or move "
                f"{name} elsewhere"
            )
    return ignored


def _files_beside(entries: Sequence[os.DirEntry[str]]) -> Ignored:
    """Return the images, and the links that lead nowhere, among files that are in no class folder."""
    ignored = IgnoredFiles()
    for entry in entries:
        if is_skipped(entry.name):
            add_skipped(entry, ignored)
        elif not is_folder(entry):
            reason = reason_to_ignore(entry)
            if reason == "dangling links":
                ignored.add(reason, entry.path)
            elif not reason:
                ignored.add("in no class folder", entry.path)
    return ignored.build()


@dataclass(frozen=True)
class _ClassFolders:
    """The folders of each class, by its name, of one split; more than one if their names are spelled differently."""

    folders: Mapping[str, Sequence[str]]
    ignored: Ignored


def _class_folders(root: Path) -> _ClassFolders:
    folders: dict[str, list[str]] = {}
    entries = scan(root)
    for entry in entries:
        if is_folder(entry) and not is_skipped(entry.name):
            folders.setdefault(class_name(entry.name, root), []).append(entry.path)
    return _ClassFolders(folders, _files_beside(entries))


def _list_split(root: Path, classes: Sequence[str], folders: Mapping[str, Sequence[str]]) -> tuple[Samples, Ignored]:
    names: list[str] = []
    labels: list[int] = []
    ignored = Ignored()
    for label, name in enumerate(classes):
        if name not in folders:  # enough for an evaluation; `Source.load` refuses it for a training
            continue
        before = len(names)
        unused = Ignored()
        for path in folders[name]:
            files, more = list_images(path)
            names += files
            unused += more
        if len(names) == before:
            reason = f"; {unused.text()}" if unused else ""
            raise DataError(
                f"{root / name}: the class {name} is empty{reason}; image files are {', '.join(sorted(EXTENSIONS))}"
            )
        labels += [label] * (len(names) - before)
        ignored += unused
    return Samples(names, Targets(label=torch.tensor(labels, dtype=torch.int64))), ignored
