"""Tables of images (CSV, TSV, Parquet): one row for each, with its file and targets, optionally split and group."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convatlas.data.readers.files import file_source
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.splits import SPLIT_FOLDERS
from convatlas.errors import DataError
from convatlas.system.extras import import_optional
from convatlas.system.progress import Progress
from convatlas.tasks.known import TASKS
from convatlas.tasks.task import TableRow, Task

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


def read_image_table(table: Path, *, progress: Progress | None = None) -> Source:
    """Read a table of images. The task reads the columns of the targets.

    `file` is relative to the table's own folder. `label` holds the class of an image; for multi-label classification,
    `labels` lists them, separated by |, or each class has a column of 0 and 1. Images of one `group`, such as those of
    one patient, are never split between train and val.
    """
    columns: _Columns | None = None
    rows: dict[str, list[TableRow]] = {}
    paths: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    for line, cells in _rows(table):
        columns = columns or _find_columns(table, list(cells))
        file = cells.get(columns.file)
        if not file:
            raise DataError(f"{table}: line {line}: no file; expected a column {' or '.join(COLUMNS['file'])}")
        path = str(table.parent / file)
        if not os.path.isfile(path):
            raise DataError(f"{table}: line {line}: {path} does not exist")
        if (before := lines.setdefault(path, line)) != line:
            raise DataError(
                f"{table}: line {line}: {file} is in line {before} already; an image has one row, and several labels "
                "in a column `labels`"
            )
        split = _split_of(table, line, cells.get(columns.split, ""))
        rows.setdefault(split, []).append(TableRow(line, cells))
        paths.setdefault(split, []).append(path)
    if columns is None or "train" not in rows:
        raise DataError(f"{table}: " + ("no row is of the split train" if rows else "has no rows"))
    task, targets = columns.task.from_table(table, columns.labels, rows)
    groups = {split: [row.cells.get(columns.group, "") for row in part] for split, part in rows.items()}
    numbers = _number_groups(groups, paths) if any(map(any, groups.values())) else {}
    splits = {split: Samples(paths[split], targets[split], groups=numbers.get(split)) for split in rows}
    return file_source(table.stem, str(table.resolve()), task, splits, progress=progress)


def _number_groups(groups: Mapping[str, list[str]], paths: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """Return the number of each image's group, by split; an image without a group is a group of its own."""
    names = {split: [group or path for group, path in zip(groups[split], paths[split], strict=True)] for split in paths}
    numbers = {name: i for i, name in enumerate(dict.fromkeys(name for part in names.values() for name in part))}
    return {split: torch.tensor([numbers[name] for name in part]) for split, part in names.items()}


def _find_columns(table: Path, names: Sequence[str]) -> _Columns:
    """Return the columns of a table by their use; raises DataError if no task recognizes the targets."""

    def first_of(accepted: Sequence[str]) -> str:
        return next((name for each in accepted for name in names if name.lower() == each), "")

    file = first_of(COLUMNS["file"])
    # a column with another name than these two may hold targets
    reserved = {file, first_of(("split",)), first_of(("group",))}
    for task in reversed(TASKS.values()):
        labels = task.label_columns(names, tuple(reserved))
        if labels:
            split, group = (first_of(COLUMNS[use]) for use in ("split", "group"))
            return _Columns(file, "" if split in labels else split, "" if group in labels else group, labels, task)
    raise DataError(f"{table}: no labels; expected a column label, labels, or one of 0 and 1 for each class")


def _split_of(table: Path, line: int, text: str) -> str:
    """Return the split that a cell names; train for an empty one."""
    if not text:
        return "train"
    for split, names in SPLIT_FOLDERS.items():
        if text.lower() in names:
            return split
    raise DataError(f"{table}: line {line}: split must be train, val or test, got {text!r}")


def _text(value: Any) -> str:
    """Return a value of a Parquet table as text; the items of a list are separated by |."""
    if isinstance(value, list):
        return "|".join(map(str, value))
    return "" if value is None else str(value)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, {column: text}) of each row."""
    if table.suffix.lower() == ".parquet":
        parquet = import_optional("pyarrow.parquet", "convatlas[data]", where=table, error=DataError)
        try:
            records = parquet.read_table(table).to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"{table}: not a Parquet table ({error})") from error
        for line, row in enumerate(records, 1):
            yield line, {str(key).strip(): _text(value) for key, value in row.items()}
        return
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            head = lines.readline()
            lines.seek(0)
            separator = max(",\t;", key=head.count)
            for row in (reader := csv.DictReader(lines, delimiter=separator)):
                yield reader.line_num, {str(k).strip(): (v or "").strip() for k, v in row.items() if k}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a CSV table in UTF-8 ({error})") from error
