"""Folders of image files, one for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from convatlas.data.decode.files import EXTENSIONS
from convatlas.data.readers.files import file_source
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.splits import SPLIT_FOLDERS
from convatlas.errors import DataError
from convatlas.system.progress import Progress
from convatlas.tasks.classification.labels import check_same_classes
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Targets


def read_image_folder(folder: Path, *, progress: Progress | None = None) -> Source:
    """Read `train/<class>/...`, optionally `val/...` and `test/...`; or `<class>/...` without splits."""
    # a class may be called "train" or "test", too; the folder of a split contains folders
    folders = {name.lower(): folder / name for name in _folders_in(folder) if _folders_in(folder / name)}
    parts: dict[str, Path | None] = {}
    for split, known in SPLIT_FOLDERS.items():
        matches = [folders[name] for name in known if name in folders]
        if len(matches) > 1:
            raise DataError(
                f"{folder}: {' and '.join(p.name for p in matches)} are both the {split} split; keep one of them"
            )
        parts[split] = matches[0] if matches else None
    train = parts["train"]
    if train is None and any(parts.values()):
        present = next(path for path in parts.values() if path)
        raise DataError(
            f"{folder}: there is {present.name}/ but no train/; put the training images into train/<class>/"
        )
    roots = {split: path for split, path in parts.items() if path} if train else {"train": folder}
    classes = _class_folders(roots["train"])
    splits = {}
    for split, root in roots.items():
        check_same_classes(classes, _class_folders(root), split=split, where=folder)
        splits[split] = _list_images(root, classes)
    return file_source(folder.resolve().name, str(folder.resolve()), Classification(classes), splits, progress=progress)


def _folders_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def _class_folders(root: Path) -> tuple[str, ...]:
    names = sorted(name for name in _folders_in(root) if not name.startswith("."))
    for name in names:
        if not name.isprintable():
            raise DataError(f"{root}: the class folder {name!r} has a name that is not printable; rename it")
    if len(names) < 2:
        raise DataError(f"{root}: must contain at least two folders, one for each class, got {len(names)}")
    return tuple(names)


def _list_images(root: Path, classes: Sequence[str]) -> Samples:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = list_image_files(root / name)
        if not files:
            raise DataError(
                f"{root / name}: the class {name} is empty; image files are {', '.join(sorted(EXTENSIONS))}"
            )
        names += files
        labels += [label] * len(files)
    return Samples(names, Targets(label=torch.tensor(labels, dtype=torch.int64)))


def images_in(folder: Path) -> list[Path]:
    """Return the files of `list_image_files` as paths."""
    return [Path(file) for file in list_image_files(folder)]


def list_image_files(folder: str | os.PathLike[str]) -> list[str]:
    """Return the image files in a folder and the folders below it, in order of their names, without hidden ones.

    Linked folders below it are not followed.
    """
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                files += list_image_files(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
                files.append(entry.path)
    return files
