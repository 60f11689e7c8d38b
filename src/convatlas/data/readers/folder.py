"""Folders of image files, one for each class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from convatlas.core.problems import Problems
from convatlas.data.class_names import class_name, spelling_notes
from convatlas.data.ignored import DANGLING, Ignored, IgnoredFiles
from convatlas.data.readers.files import file_source
from convatlas.data.readers.image_files import (
    add_skipped,
    is_folder,
    is_image_folder,
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


def read_image_folder(folder: Path, problems: Problems, *, progress: Progress | None = None) -> Source:
    """Read `train/<class>/...`, optionally `val/...` and `test/...`; or `<class>/...` without splits.

    problems: collects ambiguous folders, empty classes, and classes that train lacks.
    """
    roots, ignored = _split_roots(folder, problems)
    parts = {split: _class_folders(root, problems) for split, root in roots.items()}
    known = set(parts["train"].folders)
    if len(known) < 2:
        error = DataError(
            f"{roots['train']}: must contain at least two folders, one for each class, got {len(known)}"
            f"{': ' if known else ''}{', '.join(known)}; put the images of each class into a separate folder",
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
    for split, part in parts.items():
        splits[split], more = _list_split(split, roots[split], classes, part.folders, problems)
        ignored += part.ignored + more
    spellings = [os.path.basename(path) for part in parts.values() for paths in part.folders.values() for path in paths]
    return file_source(
        folder.resolve().name, str(folder.resolve()), Classification(classes), splits, ignored=ignored,
        notes=spelling_notes(spellings), progress=progress,
    )  # fmt: skip


def _split_roots(folder: Path, problems: Problems) -> tuple[dict[str, Path], Ignored]:
    """Return the folder of each split, and the images beside them; {"train": folder} without splits.

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
            f"{folder}: there is {present}/ but no train/; put the training images into train/<class>/, or give "
            f"{folder / present} for its images alone"
        )
    roots = {split: folder / names[0] for split, names in parts.items()}
    return roots, _beside_splits(folder, parts, others, problems)


def _beside_splits(
    folder: Path, parts: Mapping[str, Sequence[str]], others: Sequence[str], problems: Problems
) -> Ignored:
    """Return the images beside the folders of the splits; a problem if train/ may be meant as a class beside others."""
    ignored = _files_beside(scan(folder))
    for name in others:
        images = list_images(folder / name)[0]
        ignored += Ignored({f"in {name}/": tuple(images)} if images else {})
        if images and len(parts) == 1 and not split_name(name):
            train = parts["train"][0]
            text = (
                f"{folder}: {train}/ contains folders and is read as the train split, but {name}/ contains images and "
                f"is no split; give {folder / train} for its classes alone, rename {train} if it is a class, or move "
                f"{name} elsewhere"
            )
            problems.add(DataError(text, kind="ambiguous_folders"))
    return ignored


def _files_beside(entries: Sequence[os.DirEntry[str]]) -> Ignored:
    """Return the images, and the links that lead nowhere, among files that are in no class folder."""
    ignored = IgnoredFiles()
    for entry in entries:
        if is_skipped(entry.name):
            add_skipped(entry, ignored)
        elif not is_folder(entry):
            reason = reason_to_ignore(entry)
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


def _class_folders(root: Path, problems: Problems) -> _ClassFolders:
    folders: dict[str, list[str]] = {}
    entries = scan(root)
    for entry in entries:
        if is_image_folder(entry):
            with problems.of("invalid_names"):
                folders.setdefault(class_name(entry.name, root), []).append(entry.path)
    return _ClassFolders(folders, _files_beside(entries))


def _list_split(
    split: str, root: Path, classes: Sequence[str], folders: Mapping[str, Sequence[str]], problems: Problems
) -> tuple[Samples, Ignored]:
    names: list[str] = []
    labels: list[int] = []
    ignored = Ignored()
    for label, name in enumerate(classes):
        if name not in folders:  # enough for an evaluation; `Source.load` refuses it for a training
            continue
        before = len(names)
        unused = Ignored()
        for path in folders[name]:
            with problems.of("unreadable_folders"):
                files, more = list_images(path)
                names += files
                unused += more
        if len(names) == before:
            reason = f"; {unused.text()}" if unused else ""
            text = f"{root / name}: the class {name} is empty{reason}; add images, or delete the folder"
            problems.add(DataError(text, kind="empty_classes", subject=f"{split}/{name}"))
        labels += [label] * (len(names) - before)
        ignored += unused
    return Samples(names, Targets(label=torch.tensor(labels, dtype=torch.int64))), ignored
