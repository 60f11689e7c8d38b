"""A table that lists images: a row for each, with its file, its class or classes, perhaps its split and its group."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from convatlas.data.dataset import check_same_classes
from convatlas.data.samples import Listing, mixed_once
from convatlas.data.source import Source
from convatlas.data.splits import SPLIT_FOLDERS
from convatlas.data.statistics import channels_and_depth
from convatlas.errors import DataError

COLUMNS = {
    "file": ("file", "path", "image", "filename"),
    "label": ("label", "class", "category"),
    "labels": ("labels", "tags", "classes"),
    "split": ("split", "set", "fold"),
    "group": ("group", "patient", "subject", "source"),
}
"""What each column may be called; the first of these that is there counts."""

SEPARATORS = re.compile(r"[|]")
"""What stands between the classes of an image in a column `labels`."""

SAID = {
    "1": True,
    "true": True,
    "yes": True,
    "1.0": True,
    "0": False,
    "false": False,
    "no": False,
    "0.0": False,
    "": False,
}
"""What a column for one class holds."""


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    classes: tuple[str, ...]
    split: str
    group: str


class ImageList(Source):
    """A CSV or Parquet table: `file` (from the table's own folder on), its class, and perhaps `split` and `group`.

    `label` holds the one class of an image. Where an image may be of several classes, `labels` holds them, with |
    between them, or each class has a column of 0 and 1, and the others are called file, split and group. Images of
    one group, such as those of one patient, are never on both sides of a split that is made here.
    """

    def __init__(self, table: Path) -> None:
        self.name, self.location = table.stem, str(table.resolve())
        rows: dict[str, list[_Row]] = {}
        lines: dict[str, int] = {}
        reads: Reads | None = None
        columns: dict[str, str] = {}
        known: tuple[str, ...] = ()
        for line, row in _rows(table):
            if reads is None:
                columns = _columns(list(row))
                reads, known = _reader(table, list(row), columns)
            file = row.get(columns["file"])
            if not file:
                raise DataError(f"{table}: line {line}: no file; expected a column {' or '.join(COLUMNS['file'])}")
            classes = reads(row)
            if classes is None:
                raise DataError(f"{table}: line {line}: no label; expected a column {' or '.join(COLUMNS['label'])}")
            path = table.parent / file
            if not path.is_file():
                raise DataError(f"{table}: line {line}: {path} is not there")
            if (before := lines.setdefault(str(path), line)) != line:
                raise DataError(
                    f"{table}: line {line}: {file} is in line {before} already; an image has one row, and several "
                    "classes in a column labels"
                )
            split = self._split(table, line, row.get(columns["split"], ""))
            rows.setdefault(split, []).append(_Row(line, str(path), classes, split, row.get(columns["group"], "")))
        if "train" not in rows:
            raise DataError(f"{table}: " + ("no row is of the split train" if rows else "holds no rows"))
        found = {name for row in rows["train"] for name in row.classes}
        unused = [name for name in known if name not in found]
        if unused:
            raise DataError(f"{table}: no training image is of the class {', '.join(unused)}")
        self.classes = known or tuple(sorted(found))
        single = bool(columns["label"])
        if len(self.classes) < 1 + single:
            raise DataError(f"{table}: expected at least two classes, found {len(self.classes)}")
        grouped = any(row.group for part in rows.values() for row in part)
        # an image of no group is one of its own
        every = dict.fromkeys(row.group or row.path for part in rows.values() for row in part)
        groups = {group: i for i, group in enumerate(every)}
        numbers = {name: i for i, name in enumerate(self.classes)}
        self.listings = {}
        for split, part in rows.items():
            seen = {name for row in part for name in row.classes}
            # a rare one of several classes may be missing; its scores are then left out
            check_same_classes(self.classes, list(seen if single else seen | found), split=split, where=table)
            if single:
                labels = torch.tensor([numbers[held.classes[0]] for held in part])
            else:
                labels = torch.zeros(len(part), len(self.classes))
                for i, held in enumerate(part):
                    labels[i, [numbers[name] for name in held.classes]] = 1
            self.listings[split] = Listing(
                labels,
                [row.path for row in part],
                groups=torch.tensor([groups[row.group or row.path] for row in part]) if grouped else None,
            )
        self.listings["train"] = mixed_once(self.listings["train"])
        self.channels, self.high_bit_depth = channels_and_depth(self.listings["train"].names)

    @staticmethod
    def _split(table: Path, line: int, told: str) -> str:
        if not told:
            return "train"
        for split, names in SPLIT_FOLDERS.items():
            if told.lower() in names:
                return split
        raise DataError(f"{table}: line {line}: the split {told!r} is none of train, val, test")


def _columns(names: Sequence[str]) -> dict[str, str]:
    """Return which column of a table holds what; "" for what it has not."""
    found = {
        what: next((name for called in known for name in names if name.lower() == called), "")
        for what, known in COLUMNS.items()
    }
    if not (found["label"] or found["labels"]):  # another column may be a class
        found |= {what: next((name for name in names if name.lower() == what), "") for what in ("split", "group")}
    return found


Reads = Callable[[Mapping[str, str]], tuple[str, ...] | None]
"""Returns the classes of a row; None if it says nothing."""


def _reader(table: Path, names: Sequence[str], columns: Mapping[str, str]) -> tuple[Reads, tuple[str, ...]]:
    """Return what reads the classes of a row, and the classes where they are columns; () where cells name them."""
    if columns["label"]:
        return partial(_label, columns["label"]), ()
    if columns["labels"]:
        return partial(_labels, columns["labels"]), ()
    classes = tuple(name for name in names if name not in columns.values())
    return (partial(_marked, table, classes), classes) if classes else (partial(_label, ""), ())


def _label(column: str, row: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the one class of an image."""
    label = row.get(column)
    return (label,) if label else None


def _labels(column: str, row: Mapping[str, str]) -> tuple[str, ...]:
    """Return the classes of an image that are listed in one cell."""
    return tuple(dict.fromkeys(name.strip() for name in SEPARATORS.split(row[column]) if name.strip()))


def _marked(table: Path, columns: Sequence[str], row: Mapping[str, str]) -> tuple[str, ...]:
    """Return the classes of an image whose columns say that it is of them."""
    wrong = next((name for name in columns if row[name].lower() not in SAID), None)
    if wrong is not None:
        raise DataError(
            f"{table}: there is no column {' or '.join(COLUMNS['label'])}, and {wrong!r} holds {row[wrong]!r}: a "
            "column for each class holds 0 and 1, and others are called file, split or group"
        )
    return tuple(name for name in columns if SAID[row[name].lower()])


def _text(value: Any) -> str:
    """Return a value of a Parquet table as it would stand in a text; of a list, the items with | between them."""
    if isinstance(value, list):
        return "|".join(map(str, value))
    return "" if value is None else str(value)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, row)."""
    if table.suffix.lower() == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise DataError(f"{table}: Parquet needs pyarrow; pip install pyarrow, or save the table as CSV") from None
        try:
            read = parquet.read_table(table).to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"{table}: no Parquet table ({error})") from error
        for line, row in enumerate(read, 1):
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
        raise DataError(f"{table}: no table of text in UTF-8 ({error})") from error
