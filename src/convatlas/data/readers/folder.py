"""Folders of image files, one for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from convatlas.data.dataset import check_same_classes
from convatlas.data.decode.files import EXTENSIONS
from convatlas.data.samples import Listing, mixed_once
from convatlas.data.source import Source
from convatlas.data.splits import SPLIT_FOLDERS
from convatlas.data.statistics import channels_and_depth
from convatlas.errors import DataError


class ImageFolder(Source):
    """`train/<class>/...`, `val/<class>/...` and perhaps `test/<class>/...`, or `<class>/...` to be split by seed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name, self.location = folder, folder.resolve().name, str(folder.resolve())
        folders = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
        # a class may be called "train" or "test", too; a split holds folders
        folders = {name: path for name, path in folders.items() if any(inside.is_dir() for inside in path.iterdir())}
        parts: dict[str, Path | None] = {}
        for split, known in SPLIT_FOLDERS.items():
            found = [folders[name] for name in known if name in folders]
            if len(found) > 1:
                raise DataError(f"{folder}: {' and '.join(p.name for p in found)} are both the {split} split; keep one")
            parts[split] = found[0] if found else None
        train = parts["train"]
        if train is None and any(parts.values()):
            present = next(path for path in parts.values() if path)
            raise DataError(
                f"{folder}: there is {present.name}/ but no train/; put the training images into train/<class>/"
            )
        roots = {split: path for split, path in parts.items() if path} if train else {"train": folder}
        self.classes = _class_folders(roots["train"])
        self.listings = {}
        for split, root in roots.items():
            check_same_classes(self.classes, _class_folders(root), split=split, where=folder)
            self.listings[split] = _list_images(root, self.classes)
        self.listings["train"] = mixed_once(self.listings["train"])
        self.channels, self.high_bit_depth = channels_and_depth(self.listings["train"].names)


def _class_folders(root: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        if not name.isprintable():
            raise DataError(f"{root}: the class folder {name!r} has a name that is no text; rename it")
    if len(names) < 2:
        raise DataError(f"{root}: expected at least two folders, one for each class, found {len(names)}")
    return tuple(names)


def _list_images(root: Path, classes: Sequence[str]) -> Listing:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        paths = images_in(root / name)
        if not paths:
            raise DataError(
                f"{root / name}: the class {name} is empty; image files are {', '.join(sorted(EXTENSIONS))}"
            )
        names += map(str, paths)
        labels += [label] * len(paths)
    return Listing(torch.tensor(labels, dtype=torch.int64), names)


def images_in(folder: Path) -> list[Path]:
    """Return the image files in a folder and the folders below it, in order of their names, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
