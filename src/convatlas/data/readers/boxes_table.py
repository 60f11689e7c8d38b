"""Tables of boxes (CSV, TSV): one row for each object."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from convatlas.core.problems import Problems
from convatlas.data.annotation_faults import FaultLog
from convatlas.data.annotations import ONE_CLASS, AnnotatedImage, Annotation, Annotations
from convatlas.data.class_names import class_name
from convatlas.data.readers.csv_rows import csv_rows
from convatlas.data.readers.image_places import ImagePlaces
from convatlas.data.readers.json_values import MAX_COORDINATE, shown
from convatlas.data.splits import split_name
from convatlas.errors import DataError, listed

FILE = ("file", "path", "image", "filename", "image_path", "image_id", "imageid")
LABEL = ("label", "class", "category", "class_name", "labelname", "name")
CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
SIZES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))
"""Accepted names of columns, in lower case, by priority."""

HEADER = "file,x1,y1,x2,y2,label"


@dataclass(frozen=True)
class _Columns:
    """The columns of a table as they are written; "" for one that it does not have."""

    file: str
    label: str
    split: str
    box: tuple[str, ...]
    corners: bool
    size: tuple[str, ...] = ()


def is_boxes_table(table: Path) -> bool:
    """Return whether a table has columns of boxes. Raises DataError for boxes without a line of column names."""
    with suppress(DataError):  # the reader of images and labels reports it
        for _, cells in csv_rows(table, Problems()):
            return _box_columns(list(cells)) is not None or _is_headless(list(cells))
    return False


def folder_tables(folder: Path) -> list[Path]:
    """Return the tables in a folder with columns of files and boxes."""
    tables = []
    for table in sorted(each for each in folder.iterdir() if each.suffix.lower() in (".csv", ".tsv")):
        with suppress(DataError):
            names = list(next(csv_rows(table, Problems()), (0, {}))[1])
            tables += [table] if _box_columns(names) and not {*FILE}.isdisjoint(map(str.lower, names)) else []
    return tables


def _is_headless(names: Sequence[str]) -> bool:
    """Return whether the first line contains a file, four numbers and a class instead of names."""
    return len(names) >= 5 and all(_is_number(name) for name in names[1:5]) and not _is_number(names[0])


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        return float(text) == float(text)
    return False


def _box_columns(names: Sequence[str]) -> tuple[tuple[str, ...], bool] | None:
    """Return the four columns of boxes and whether they are corners."""
    written = {name.lower(): name for name in names}
    for group in (*CORNERS, *SIZES):
        if set(group) <= written.keys():
            return tuple(written[each] for each in group), group in CORNERS
    return None


def _find_columns(table: Path, names: Sequence[str]) -> _Columns:
    if _is_headless(names):
        raise DataError(f"{table}: the first line must contain the names of the columns, such as {HEADER}; add it")
    written = {name.lower(): name for name in names}
    box = _box_columns(names)
    file = next((written[name] for name in FILE if name in written), "")
    if box is None or not file:
        raise DataError(f"{table}: must have the columns {HEADER}, got {listed(names)}")
    size = tuple(written[name] for name in ("height", "width") if box[1] and name in written)
    return _Columns(
        file, next((written[name] for name in LABEL if name in written), ""), written.get("split", ""),
        box[0], box[1], size if len(size) == 2 else (),
    )  # fmt: skip


def read_boxes_table(table: Path, faults: FaultLog, problems: Problems) -> Annotations:
    """Read a table with the columns file, x1, y1, x2, y2 (or x, y, w, h), and optionally label and split.

    Files are relative to the table's folder. A row without a box is an image without objects. Coordinates that are all
    at most 1, and not all integers, are shares of the image's sides, as in Open Images.
    """
    columns: _Columns | None = None
    rows: list[tuple[int, str, str, tuple[float, ...], str, tuple[int, int] | None]] = []
    for line, cells in csv_rows(table, problems):
        columns = columns or _find_columns(table, list(cells))
        with problems.of("invalid_rows"):
            rows.append((line, *_read_row(f"{table}: line {line}", cells, columns)))
    if columns is None:
        raise DataError(f"{table}: has no rows")
    values = [value for row in rows for value in row[3]]
    relative = bool(values) and max(values) <= 1 and any(value != round(value) for value in values)
    places = ImagePlaces(table, [row[1] for row in rows])
    splits: dict[str, dict[str, AnnotatedImage]] = {}
    paths: dict[str, str] = {}
    for line, file, split, box, label, size in rows:
        path = paths[file] = paths.get(file) or places.find(file)
        known = splits.setdefault(split, {})
        image = known.setdefault(path, AnnotatedImage(path, f"line {line}", "", size, [], relative))
        if box:
            x1, y1, x2, y2 = box if columns.corners else (box[0], box[1], box[0] + box[2], box[1] + box[3])
            image.objects.append(Annotation(f"line {line}", label, (x1, y1, x2, y2)))
    notes = [] if columns.label else [f"there is no column label: all objects are of one class, {ONE_CLASS}"]
    notes += ["coordinates are shares of the images' sides"] if relative else []
    classes = sorted({each.label for part in splits.values() for image in part.values() for each in image.objects})
    return Annotations({split: list(part.values()) for split, part in splits.items()}, tuple(classes), notes=notes)


def _read_row(
    where: str, cells: dict[str, str], columns: _Columns
) -> tuple[str, str, tuple[float, ...], str, tuple[int, int] | None]:
    """Return file, split, box, class and (height, width) of a row; the box is empty for an image without objects."""
    file = cells[columns.file].strip()
    if not file:
        raise DataError(f"{where}: no file")
    text = cells.get(columns.split, "").strip()
    split = split_name(text) if text else "train"
    if not split:
        raise DataError(f"{where}: split must be train, val or test, got {text!r}")
    size = None
    if columns.size and all(cells[name].strip() for name in columns.size):
        height, width = (_number(where, name, cells[name]) for name in columns.size)
        size = (round(height), round(width))
    parts = [cells[name].strip() for name in columns.box]
    if not any(parts):
        return os.path.normpath(file), split, (), "", size
    box = tuple(_number(where, name, cell) for name, cell in zip(columns.box, parts, strict=True))
    label = class_name(cells[columns.label], where) if columns.label else ONE_CLASS
    if not label:
        raise DataError(f"{where}: no label in the column {columns.label}")
    return os.path.normpath(file), split, box, label, size


def _number(where: str, column: str, cell: str) -> float:
    """Return the number in a cell, which may have a decimal comma."""
    text = cell.strip() if "." in cell else cell.strip().replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= MAX_COORDINATE:
        raise DataError(f"{where}: {column} must be a number, got {shown(cell)}")
    return value
