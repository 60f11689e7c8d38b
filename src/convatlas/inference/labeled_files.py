"""Labeled images or videos for verification: a folder with labels.csv, or with one folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convatlas.data.decode.video_name import VideoName
from convatlas.data.ignored import Ignored
from convatlas.data.readers.csv_rows import csv_rows
from convatlas.data.readers.media import IMAGES, Media
from convatlas.errors import DataError, listed, nearest, shorten

LABELS = "labels.csv"
"""The table of labels: columns `file`, and `index` (the number of the class) or `label` (its name)."""

MAX_DIGITS = 9
"""Maximum number of digits of the number of a class."""


@dataclass(frozen=True)
class LabeledFiles:
    """Images or videos, the number of the class of each, and the names of the classes.

    classes: empty if only the numbers are known. ignored: files of the folder that are not used.
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


def list_labeled_files(folder: str | Path, media: Media = IMAGES) -> LabeledFiles:
    """Return the labeled images, or videos, of a folder: by its labels.csv, or else by its folders, one for each class.

    The files of labels.csv lie beside it, or in `images/` or `videos/`. Raises DataError for missing files and bad
    labels.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / LABELS).is_file():
        return _read_table(folder / LABELS, media)
    names, ignored = media.list_files(folder)
    parts = {Path(name): Path(name).relative_to(folder).parts for name in names}
    files = tuple(path for path in parts if len(parts[path]) > 1)
    if not files:
        raise DataError(f"{folder}: must contain {LABELS}, or a folder of {media.nouns} for each class; it has neither")
    outside = tuple(str(path) for path in parts if len(parts[path]) == 1)
    if outside:
        ignored += Ignored({"in no class folder": outside})
    classes = tuple(sorted({parts[path][0] for path in files}))
    numbers = {name: number for number, name in enumerate(classes)}
    return LabeledFiles(files, tuple(numbers[parts[path][0]] for path in files), classes, ignored)


def _read_table(table: Path, media: Media) -> LabeledFiles:
    files: list[Path] = []
    numbers: list[int] = []
    names: list[str] = []
    for line, cells in csv_rows(table):
        row = {column: cell.strip() for column, cell in cells.items()}
        if "file" not in row or not {"index", "label"} & set(row):
            raise DataError(f"{table}: must have the columns file and index, or file and label, got {listed(row)}")
        if "index" in row:
            numbers.append(_number(table, row["index"], line))
        elif row["label"]:
            names.append(row["label"])
        else:
            raise DataError(f"{table}: line {line}: label must be the name of a class, got ''")
        files.append(_find_file(table, row["file"], line, media))
    if not files:
        raise DataError(f"{table}: lists no {media.nouns}")
    classes = tuple(sorted(set(names)))
    return LabeledFiles(tuple(files), tuple(numbers or map(classes.index, names)), classes)


def _number(table: Path, index: str, line: int) -> int:
    if not (index.isascii() and index.isdecimal() and len(index) <= MAX_DIGITS):
        got = shorten(repr(index), 40)
        raise DataError(f"{table}: line {line}: index must be the number of a class, got {got}")
    return int(index)


def _find_file(table: Path, file: str, line: int, media: Media) -> Path:
    folder = table.parent
    is_there = os.path.isfile if media is IMAGES else _is_video
    path = next((path for path in (folder / file, folder / media.nouns / file) if file and is_there(path)), None)
    if path is None:
        raise DataError(f"{folder / file}: no such file, but line {line} of {table} lists it")
    return path


def _is_video(path: Path) -> bool:
    return os.path.exists(VideoName.parse(path).path)
