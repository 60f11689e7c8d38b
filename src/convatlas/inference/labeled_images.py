"""Labeled images for verification: a folder with labels.csv, or with one folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convatlas.data.ignored import Ignored
from convatlas.data.readers.csv_rows import csv_rows
from convatlas.data.readers.image_files import list_images
from convatlas.errors import DataError, listed, nearest, shorten

LABELS = "labels.csv"
"""The table of labels: columns `file` and `index` (the number of the class)."""

MAX_DIGITS = 9
"""Maximum number of digits of the number of a class."""


@dataclass(frozen=True)
class LabeledImages:
    """Image files, the number of the class of each, and the names of the classes (empty if only numbers are known).

    ignored: files of the folder that are not used.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] = ()
    ignored: Ignored = field(default_factory=Ignored)

    def labels_for(self, classes: Sequence[str], where: object) -> list[int]:
        """Return the labels as numbers of a model's classes, matched by name if names are known.

        Raises DataError for a class that the model does not have.
        """
        for name in self.classes:
            if name not in classes:
                raise DataError(
                    f"{Path(str(where)) / name}: {name} is not a class of the weights{nearest(name, classes)}"
                )
        own = [classes.index(name) for name in self.classes]
        numbers = [own[label] if own else label for label in self.labels]
        if max(numbers) >= len(classes):
            raise DataError(f"{where}: the index of a class must be < {len(classes)}, got {max(numbers)}")
        return numbers


def list_labeled_images(folder: str | Path) -> LabeledImages:
    """Return the labeled images of a folder: by its labels.csv, or else by its folders, one for each class.

    The files of labels.csv lie beside it or in `images/`. Raises DataError for missing files and bad labels.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / LABELS).is_file():
        return _read_table(folder / LABELS)
    names, ignored = list_images(folder)
    parts = {Path(name): Path(name).relative_to(folder).parts for name in names}
    files = tuple(path for path in parts if len(parts[path]) > 1)
    if not files:
        raise DataError(f"{folder}: must contain {LABELS}, or a folder of images for each class; it has neither")
    outside = tuple(str(path) for path in parts if len(parts[path]) == 1)
    if outside:
        ignored += Ignored({"in no class folder": outside})
    classes = tuple(sorted({parts[path][0] for path in files}))
    numbers = {name: number for number, name in enumerate(classes)}
    return LabeledImages(files, tuple(numbers[parts[path][0]] for path in files), classes, ignored)


def _read_table(table: Path) -> LabeledImages:
    files: list[Path] = []
    labels: list[int] = []
    for line, cells in csv_rows(table):
        row = {column: cell.strip() for column, cell in cells.items()}
        if not {"file", "index"} <= set(row):
            raise DataError(f"{table}: must have the columns file and index, got {listed(row)}")
        if not (row["index"].isascii() and row["index"].isdecimal() and len(row["index"]) <= MAX_DIGITS):
            got = shorten(repr(row["index"]), 40)
            raise DataError(f"{table}: line {line}: index must be the number of a class, got {got}")
        files.append(_find_file(table, row["file"], line))
        labels.append(int(row["index"]))
    if not files:
        raise DataError(f"{table}: lists no images")
    return LabeledImages(tuple(files), tuple(labels))


def _find_file(table: Path, file: str, line: int) -> Path:
    folder = table.parent
    path = next((path for path in (folder / file, folder / "images" / file) if file and os.path.isfile(path)), None)
    if path is None:
        raise DataError(f"{folder / file}: no such file, but line {line} of {table} lists it")
    return path
