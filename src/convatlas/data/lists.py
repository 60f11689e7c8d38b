"""A table that lists pictures: a row for each, with its file, its class, and perhaps its split and its group."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from convatlas.data.decode import kind_of
from convatlas.data.images import Listing, check_same_classes
from convatlas.data.sources import SPLIT_FOLDERS, Source, mixed_once
from convatlas.errors import DataError

COLUMNS = {
    "file": ("file", "path", "image", "filename"),
    "label": ("label", "class", "category"),
    "split": ("split", "set", "fold"),
    "group": ("group", "patient", "subject", "source"),
}
"""What each column may be called; the first two must be there."""


class PictureList(Source):
    """A CSV or Parquet table: `file` (from the table's own folder on), `label`, and perhaps `split` and `group`.

    Pictures of one group, such as those of one patient, are never on both sides of a split that is made here.
    """

    def __init__(self, table: Path) -> None:
        self.name, self.location = table.stem, str(table.resolve())
        rows: dict[str, list[tuple[str, str, str]]] = {}
        grouped = False
        for line, row in _rows(table):
            named = {what: _cell(row, names) for what, names in COLUMNS.items()}
            for what in ("file", "label"):
                if not named[what]:
                    raise DataError(f"{table}: line {line}: no {what}; expected a column {' or '.join(COLUMNS[what])}")
            path = table.parent / named["file"]
            if not path.is_file():
                raise DataError(f"{table}: line {line}: {path} is not there")
            rows.setdefault(self._split(table, line, named["split"]), []).append(
                (str(path), named["label"], named["group"])
            )
            grouped = grouped or bool(named["group"])
        if "train" not in rows:
            raise DataError(f"{table}: " + ("no row is of the split train" if rows else "holds no rows"))
        self.classes = tuple(sorted({label for _, label, _ in rows["train"]}))
        if len(self.classes) < 2:
            raise DataError(f"{table}: expected at least two classes, found {len(self.classes)}")
        groups = {group: i for i, group in enumerate(dict.fromkeys(g for part in rows.values() for _, _, g in part))}
        self.listings = {}
        for split, part in rows.items():
            check_same_classes(self.classes, list({label for _, label, _ in part}), split=split, where=table)
            self.listings[split] = Listing(
                torch.tensor([self.classes.index(label) for _, label, _ in part]),
                [path for path, _, _ in part],
                groups=torch.tensor([groups[group] for _, _, group in part]) if grouped else None,
            )
        self.listings["train"] = mixed_once(self.listings["train"])
        self.channels, self.deep = kind_of(self.listings["train"].names)

    @staticmethod
    def _split(table: Path, line: int, told: str) -> str:
        if not told:
            return "train"
        for split, names in SPLIT_FOLDERS.items():
            if told.lower() in names:
                return split
        raise DataError(f"{table}: line {line}: the split {told!r} is none of train, val, test")


def _cell(row: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, row) with column names in small letters."""
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
            yield line, {str(key).lower(): "" if value is None else str(value) for key, value in row.items()}
        return
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            sample = lines.read(4096)
            lines.seek(0)
            separator = "\t" if sample.count("\t") > sample.count(",") else ";" if ";" in sample else ","
            for row in (reader := csv.DictReader(lines, delimiter=separator)):
                yield reader.line_num, {str(k).strip().lower(): (v or "").strip() for k, v in row.items() if k}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: no table of text in UTF-8 ({error})") from error
