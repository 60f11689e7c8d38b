"""Tables of images or videos (CSV, TSV, Parquet): a row for each, with file and targets, optionally split and group."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from convatlas.core.problems import Problems
from convatlas.data.class_names import class_name, spelling_notes
from convatlas.data.decode.video_name import VideoName
from convatlas.data.groups import number_groups
from convatlas.data.ignored import INSTALL
from convatlas.data.readers.csv_rows import check_columns, csv_rows, first_column
from convatlas.data.readers.image_files import missing_library
from convatlas.data.readers.media import IMAGES, MEDIA, VIDEOS, Media, wrong_media
from convatlas.data.readers.parquet_rows import parquet_rows
from convatlas.data.readers.row_files import MISSING, VideoColumns, find_file
from convatlas.data.readers.video_files import is_still, is_video_name
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.data.splits import split_name
from convatlas.errors import DataError, listed
from convatlas.system.progress import Progress
from convatlas.tasks.known import TASKS
from convatlas.tasks.table import pluralize
from convatlas.tasks.task import SplitTargets, TableRow, Task

COLUMNS = {
    "file": ("file", "path", "image", "video", "filename"),
    "split": ("split", "set", "fold"),
    "group": ("group", "patient", "subject", "source"),
}
"""Accepted names of each column, by priority."""


@dataclass(frozen=True)
class _Columns:
    """The columns of a table: "" for one that it does not have. media: what its files are."""

    file: str
    split: str
    group: str
    labels: tuple[str, ...]
    task: type[Task]
    media: Media
    part: VideoColumns


def read_table(
    table: Path, reads: str | None, problems: Problems, *, progress: Progress | None = None
) -> Source:  # fmt: skip
    """Read a table of images or videos. The task reads the columns of the targets; `problems` collects invalid rows.

    `file` is relative to the table's own folder. `label` holds the class of an image; for multi-label classification,
    `labels` lists them, separated by |, or each class has a column of 0 and 1. Images of one `group`, such as those of
    one patient, are never split between train and val. Videos may have the columns of `VideoColumns`.
    reads: None: the first row decides by the suffix of its file.
    """
    return _read(table, {table: ""}, reads, problems, progress)


def parquet_shards(folder: Path) -> dict[Path, str]:
    """Return the Parquet files of a folder, or of data/ in it, that are named after splits, and the split of each."""
    files = (file for place in (folder, folder / "data") for file in sorted(place.glob("*.parquet")))
    splits = {file: split_name(re.split("[-.]", file.name)[0]) for file in files}
    return {file: split for file, split in splits.items() if split}


def read_parquet_folder(
    folder: Path, reads: str | None, problems: Problems, *, progress: Progress | None = None
) -> Source:  # fmt: skip
    """Read the Parquet files of `parquet_shards` as one table."""
    return _read(folder, parquet_shards(folder), reads, problems, progress)


def _read(
    location: Path, tables: Mapping[Path, str], reads: str | None, problems: Problems, progress: Progress | None
) -> Source:
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
            own = own or _find_columns(table, cells, reads)
            columns = columns or own
            if own is not columns and own != columns:
                raise DataError(f"{table}: must have the columns of {next(iter(tables))}, got {listed(cells)}")
            with invalid:
                path = (
                    find_file(place, folder, cells.get(columns.file, ""))
                    if columns.media is IMAGES
                    else columns.part.find(place, folder, cells.get(columns.file, ""), cells)
                )
                key = path if os.path.isabs(path) else os.path.join(here, path)
                if (before := places.setdefault(key, place)) is not place:
                    before = before.removeprefix(f"{table}: ")
                    noun = columns.media.noun
                    fix = f"an {noun} has" if columns.media is IMAGES else f"a part of a {noun} has"
                    raise DataError(
                        f"{place}: {cells[columns.file]} is in {before} already; {fix} one row, and several labels in "
                        "a column `labels`"
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
    if columns.media is IMAGES:
        _check_libraries(location, [path for part in paths.values() for path in part], problems)
    task, targets = _targets(location, columns, rows, problems)
    groups = {split: [row.cells.get(columns.group, "") for row in part] for split, part in rows.items()}
    numbers = number_groups(groups, paths)
    splits = {split: Samples(paths[split], targets[split], groups=numbers.get(split)) for split in rows}
    notes = spelling_notes(class_names)
    name = location.stem if location.is_file() else location.resolve().name
    return columns.media.source(name, str(location.resolve()), task, splits, notes=notes, progress=progress)


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


def _find_columns(table: Path, cells: Mapping[str, str], reads: str | None) -> _Columns:
    """Return the columns of a table by their use; raises DataError if no task recognizes the targets.

    cells: of its first row, whose file decides what the table lists, unless `reads` does.
    """
    names = list(cells)

    def first_of(accepted: Sequence[str]) -> str:
        return first_column(table, names, accepted)

    file = first_of(COLUMNS["file"])
    if not file:
        raise DataError(
            f"{table}: there is no column {', '.join(COLUMNS['file'])}; columns found: {listed(filter(None, names))}; "
            "expected one of these for the files, and label"
        )
    media = _media_of(table, cells[file], reads)
    part = VideoColumns() if media is IMAGES else VideoColumns.among(table, names)
    # a column with another name than these may hold targets
    reserved = {file, first_of(("split",)), first_of(("group",)), part.start, part.end, part.fps}
    for task in [task for task in reversed(TASKS.values()) if task.reads == media.reads]:
        labels = task.label_columns(names, tuple(reserved))
        if labels:
            split, group = (first_of(COLUMNS[use]) for use in ("split", "group"))
            for name in labels:
                class_name(name, table)
            if len(labels) == 1:
                check_columns(table, [name.lower() for name in names if name.lower() == labels[0].lower()])
            split, group = "" if split in labels else split, "" if group in labels else group
            return _Columns(file, split, group, labels, task, media, part)
    raise DataError(
        f"{table}: no labels; columns found: {listed(filter(None, names))}; expected a column label, labels, or one of "
        "0 and 1 for each class"
    )


def _media_of(table: Path, file: str, reads: str | None) -> Media:
    """Return what a table lists, by the file of its first row; raises DataError if a network reads something else."""
    path = os.path.join(table.parent, file.strip())
    with suppress(DataError):  # it is told with its line
        path = VideoName.parse(path).path
    found = VIDEOS if file.strip() and is_video_name(path) else IMAGES
    if (reads == "images" and found is VIDEOS) or (reads == "clips" and is_still(path)):
        raise wrong_media(table, found)
    return MEDIA[reads] if reads else found


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
