"""Labeled images for verification: a folder with labels.csv, or with one folder per class."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convatlas.data.readers.folder import images_in
from convatlas.errors import DataError, nearest

LABELS = "labels.csv"
"""The table of labels: columns `file` and `index` (the number of the class)."""


@dataclass(frozen=True)
class LabeledImages:
    """Image files, the number of the class of each, and the names of the classes (empty if only numbers are known)."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] = ()

    def labels_for(self, classes: Sequence[str], where: object) -> list[int]:
        """Return the labels as numbers of a model's classes, matched by name if names are known.

        Raises DataError for a class that the model does not have.
        """
        for name in self.classes:
            if name not in classes:
                raise DataError(
                    f"{Path(str(where)) / name}: {name} is not a class of the weights{nearest(name, classes)}"
                )
        numbers = [classes.index(self.classes[label]) if self.classes else label for label in self.labels]
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
    by_class = {
        entry.name: images_in(entry)
        for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")
    }  # fmt: skip
    classes = [name for name, files in by_class.items() if files]
    pairs = [(file, label) for label, name in enumerate(classes) for file in by_class[name]]
    if not pairs:
        raise DataError(f"{folder}: must contain {LABELS}, or a folder of images for each class; it has neither")
    return LabeledImages(tuple(file for file, _ in pairs), tuple(label for _, label in pairs), tuple(classes))


def _read_table(table: Path) -> LabeledImages:
    try:
        with table.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            columns = reader.fieldnames or ()
            if not {"file", "index"} <= set(columns):
                raise DataError(f"{table}: must have the columns file and index, got {', '.join(columns)}")
            rows = [(row["file"] or "", row["index"] or "") for row in reader]
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: must be UTF-8 text, got {error.reason} at byte {error.start}") from error
    for line, (_, index) in enumerate(rows, 2):
        if not index.isdecimal():
            raise DataError(f"{table}: line {line}: index must be the number of a class, got {index!r}")
    if not rows:
        raise DataError(f"{table}: lists no images")
    return LabeledImages(
        tuple(_find_file(table, file) for file, _ in rows), tuple(int(index) for _, index in rows)
    )  # fmt: skip


def _find_file(table: Path, file: str) -> Path:
    folder = table.parent
    path = next((path for path in (folder / file, folder / "images" / file) if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder / file}: no such file, but {table} lists it")
    return path
