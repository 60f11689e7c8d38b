"""Tables of images (CSV, TSV, Parquet): one row for each, with its file and targets, optionally split and group."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convatlas.core.problems import Problems
from convatlas.data.class_names import class_name, spelling_notes
from convatlas.data.ignored import INSTALL
from convatlas.data.readers.csv_rows import check_columns, csv_rows
from convatlas.data.readers.files import file_source
from convatlas.data.readers.image_files import missing_library
from convatlas.data.readers.parquet_rows import parquet_rows
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.splits import split_name
from convatlas.errors import DataError, listed
from convatlas.system.progress import Progress
from convatlas.tasks.known import TASKS
from convatlas.tasks.table import pluralize
from convatlas.tasks.task import SplitTargets, TableRow, Task

COLUMNS = {
    "file": ("file", "path", "image", "filename"),
    "split": ("split", "set", "fold"),
    "group": ("group", "patient", "subject", "source"),
}
"""Accepted names of each column, by priority."""


@dataclass(frozen=True)
class _Columns:
    """The columns of a table: "" for one that it does not have."""

    file: str
    split: str
    group: str
    labels: tuple[str, ...]
    task: type[Task]


MISSING = frozenset(("nan", "NaN", "NAN", "<NA>"))
"""What pandas and others write for a missing value, as text."""


def read_image_table(table: Path, problems: Problems, *, progress: Progress | None = None) -> Source:
    """Read a table of images. The task reads the columns of the targets; `problems` collects invalid rows.

    `file` is relative to the table's own folder. `label` holds the class of an image; for multi-label classification,
    `labels` lists them, separated by |, or each class has a column of 0 and 1. Images of one `group`, such as those of
    one patient, are never split between train and val.
    """
    return _read(table, {table: ""}, problems, progress)


def parquet_shards(folder: Path) -> dict[Path, str]:
    """Return the Parquet files of a folder, or of data/ in it, that are named after splits, and the split of each."""
    files = (file for place in (folder, folder / "data") for file in sorted(place.glob("*.parquet")))
    splits = {file: split_name(re.split("[-.]", file.name)[0]) for file in files}
    return {file: split for file, split in splits.items() if split}


def read_parquet_folder(folder: Path, problems: Problems, *, progress: Progress | None = None) -> Source:
    """Read the Parquet files of `parquet_shards` as one table."""
    return _read(folder, parquet_shards(folder), problems, progress)


def _read(location: Path, tables: Mapping[Path, str], problems: Problems, progress: Progress | None) -> Source:
    """Read tables of the same columns: {table: the split of its images, "" if a column specifies it}."""
    columns: _Columns | None = None
    rows: dict[str, list[TableRow]] = {}
    paths: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    class_names: dict[str, str] = {}
    here = os.getcwd()
    invalid = problems.of("invalid_rows")
    for table, split_of_table in tables.items():
        name, folder = str(table), str(table.parent)
        own: _Columns | None = None
        for line, cells in _rows(table, problems):
            place = f"{name}: line {line}"
            own = own or _find_columns(table, list(cells))
            columns = columns or own
            if own is not columns and own != columns:
                raise DataError(f"{table}: must have the columns of {next(iter(tables))}, got {listed(cells)}")
            with invalid:
                path = _find_file(place, folder, cells.get(columns.file, ""))
                key = path if os.path.isabs(path) else os.path.join(here, path)
                if (before := places.setdefault(key, place)) is not place:
                    before = before.removeprefix(f"{table}: ")
                    raise DataError(
                        f"{place}: {cells[columns.file]} is in {before} already; an image has one row, and several "
                        "labels in a column `labels`"
                    )
                split = split_of_table or _split_of(place, cells.get(columns.split, ""))
                _name_classes(place, cells, columns, class_names)
                columns.task.check_row(place, columns.labels, cells)
                rows.setdefault(split, []).append(TableRow(line, cells))
                paths.setdefault(split, []).append(path)
    if columns is None or "train" not in rows:
        usable = "usable row" if problems.errors else "row"
        text = "has no rows" if columns is None else f"no {usable} is of the split train; give rows of it, or no split"
        raise DataError(f"{location}: {text}")
    _check_libraries(location, [path for part in paths.values() for path in part], problems)
    task, targets = _targets(location, columns, rows, problems)
    groups = {split: [row.cells.get(columns.group, "") for row in part] for split, part in rows.items()}
    numbers = _number_groups(groups, paths) if any(map(any, groups.values())) else {}
    splits = {split: Samples(paths[split], targets[split], groups=numbers.get(split)) for split in rows}
    notes = spelling_notes(class_names)
    name = location.stem if location.is_file() else location.resolve().name
    return file_source(name, str(location.resolve()), task, splits, notes=notes, progress=progress)


def _check_libraries(location: Path, paths: Sequence[str], problems: Problems) -> None:
    """Add the images that only a missing library reads to problems: one error for each suffix."""
    endings = {path[-5:] for path in paths}  # few, however many paths there are
    for suffix in {f".{ending.rpartition('.')[2].lower()}" for ending in endings}:
        if library := missing_library(suffix):
            count = sum(path.lower().endswith(suffix) for path in paths)
            images = pluralize(count, f"{suffix} image")
            text = f"{location}: {images} cannot be read: {library} is not installed; {INSTALL}"
            problems.add(DataError(text, kind="unsupported_files"))


def _targets(
    location: Path, columns: _Columns, rows: Mapping[str, Sequence[TableRow]], problems: Problems
) -> tuple[Task, SplitTargets]:
    """Return the task and the targets of each split; classes that train lacks are a problem, and count as classes."""
    try:
        return columns.task.from_table(location, columns.labels, rows)
    except DataError as error:
        together = [row for part in rows.values() for row in part]
        task, targets = columns.task.from_table(location, columns.labels, {"train": together})
        problems.add(error, "unknown_classes")
    numbers = torch.arange(len(together)).split([len(part) for part in rows.values()])
    return task, {split: targets["train"].take(part) for split, part in zip(rows, numbers, strict=True)}


def _find_file(place: str, folder: str, file: str) -> str:
    """Return the path of the image that a cell names: as it is written, without blanks, or in another normalization."""
    if not file.strip():
        raise DataError(f"{place}: no file")
    path = os.path.join(folder, file)
    if not os.path.isfile(path):
        path = os.path.join(folder, file.strip())
        forms = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
        other = next(filter(os.path.isfile, forms), None)
        if other is None:
            subject = f"{place.rpartition(': ')[2]}: {file.strip()}"
            raise DataError(f"{place}: {path} does not exist", kind="missing_files", subject=subject)
        path = other
    normal = os.path.normpath(path)
    # x/../a.png is a.png, unless x is a link
    return normal if ".." not in file or os.path.samefile(normal, path) else os.path.realpath(path)


def _name_classes(place: str, cells: dict[str, str], columns: _Columns, class_names: dict[str, str]) -> None:
    """Replace the label of a row by the name of its class, and a missing group by ""; raises DataError without a label.

    class_names: label -> name, of the rows before.
    """
    if len(columns.labels) == 1:
        text = cells[columns.labels[0]]
        if text not in class_names:
            if MISSING & {part.strip() for part in text.split("|")}:
                raise DataError(
                    f"{place}: no label in the column {columns.labels[0]}: {text} is a missing value; remove the row"
                )
            class_names[text] = class_name(text, place)
        cells[columns.labels[0]] = class_names[text]
    else:
        for name in columns.labels:
            cells[name] = cells[name].strip()
    if columns.group:
        group = cells[columns.group].strip()
        cells[columns.group] = "" if group in MISSING else group


def _number_groups(groups: Mapping[str, list[str]], paths: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """Return the number of each image's group, by split; an image without a group is a group of its own."""
    names = {split: [group or path for group, path in zip(groups[split], paths[split], strict=True)] for split in paths}
    numbers = {name: i for i, name in enumerate(dict.fromkeys(name for part in names.values() for name in part))}
    return {split: torch.tensor([numbers[name] for name in part]) for split, part in names.items()}


def _find_columns(table: Path, names: Sequence[str]) -> _Columns:
    """Return the columns of a table by their use; raises DataError if no task recognizes the targets."""

    def first_of(accepted: Sequence[str]) -> str:
        first = next((name for each in accepted for name in names if name.lower() == each), "")
        check_columns(table, [name.lower() for name in names if name.lower() == first.lower()])
        return first

    file = first_of(COLUMNS["file"])
    if not file:
        raise DataError(
            f"{table}: there is no column {', '.join(COLUMNS['file'])}; columns found: {listed(filter(None, names))}; "
            "expected one of these for the image files, and label"
        )
    # a column with another name than these two may hold targets
    reserved = {file, first_of(("split",)), first_of(("group",))}
    for task in reversed(TASKS.values()):
        labels = task.label_columns(names, tuple(reserved))
        if labels:
            split, group = (first_of(COLUMNS[use]) for use in ("split", "group"))
            for name in labels:
                class_name(name, table)
            if len(labels) == 1:
                check_columns(table, [name.lower() for name in names if name.lower() == labels[0].lower()])
            return _Columns(file, "" if split in labels else split, "" if group in labels else group, labels, task)
    raise DataError(
        f"{table}: no labels; columns found: {listed(filter(None, names))}; expected a column label, labels, or one of "
        "0 and 1 for each class"
    )


def _split_of(place: str, text: str) -> str:
    """Return the split that a cell names; train for an empty one."""
    if not text.strip():
        return "train"
    if split := split_name(text.strip()):
        return split
    raise DataError(f"{place}: split must be train, val or test, got {text!r}")


def _rows(table: Path, problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, {column: text}) of each row."""
    if table.suffix.lower() == ".parquet":
        return parquet_rows(table, COLUMNS["file"], problems)
    return csv_rows(table, problems)
