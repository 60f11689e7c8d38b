"""Rows of Parquet files: cells as text, and images inside the table as files in the cache.

Tables of Hugging Face hold the images themselves, in a column of {bytes, path}, and class numbers whose names are in
the metadata of the schema.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from convatlas.core.problems import Problems
from convatlas.data.decode.files import SIGNATURE
from convatlas.data.readers.csv_rows import check_columns
from convatlas.errors import DataError, MachineError, brief, foreign_errors
from convatlas.system.cache import LruFolder, cache_folder
from convatlas.system.extras import import_optional
from convatlas.system.files import PART, sha256

SUFFIX = ".table"
"""Suffix of the file that stands for the images of one table; it is empty until all images are written."""

CACHE_LIMIT, FREE_BYTES = 256 * 2**30, 2**30
"""Maximum bytes of images inside tables in the cache, and bytes that stay free on its disk."""

BATCH_ROWS = 64
"""Number of rows with images that are in memory at once."""

DAMAGED = "not a Parquet table"


def parquet_rows(table: Path, file_columns: Sequence[str], problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (row from 1, {column: text}) of each row; the items of a list are separated by |.

    An image inside the table becomes a file in the cache, whose path is the cell of the first of `file_columns`; other
    columns with these names are dropped then.
    problems: collects rows without an image and with invalid class numbers, which are dropped.
    Raises DataError for a file that is not Parquet.
    """
    parquet = import_optional("pyarrow.parquet", "convatlas[data]", where=table, error=DataError)
    with foreign_errors(table, DataError, DAMAGED):
        file = parquet.ParquetFile(table)
    with file:
        layout = _layout_of(table, file, file_columns)
        images = _extract(table, file, layout) if layout.image else {}
        selected = [*layout.columns, *([f"{layout.image}.path"] if layout.has_paths else [])]
        invalid = problems.of("invalid_rows")
        for row, values in enumerate(_values(table, file, selected), 1):
            cells: dict[str, str] | None = None
            with invalid:
                cells = _cells(table, row, values, layout, images, file_columns[0])
            if cells is not None:
                yield row, cells


def _cells(
    table: Path, row: int, values: Mapping[str, Any], layout: _Layout, images: Mapping[int, str], file_column: str
) -> dict[str, str]:
    """Return the cells of a row; raises DataError without an image, or for a value that cannot be text."""
    cells = {_heading(name): _text(values[name], table, row, layout, name) for name in layout.columns}
    if layout.image:
        inner = values.get(layout.image) or {}
        path = images.get(row) or inner.get("path")
        if not path:
            raise DataError(f"{table}: line {row}: there is no image in the column {layout.image}")
        cells[file_column] = path
    return cells


@dataclass(frozen=True)
class _Layout:
    """columns: those that become cells. image: the column of images inside the table; "" without one.

    is_struct, has_paths: whether its values are {bytes, ...}, and whether they have a path. class_names: column ->
    names of its class numbers.
    """

    columns: tuple[str, ...]
    image: str = ""
    is_struct: bool = False
    has_paths: bool = False
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def _layout_of(table: Path, file: Any, file_columns: Sequence[str]) -> _Layout:
    """Return the layout of a table by its schema; raises DataError if several columns hold images."""
    with foreign_errors(table, DataError, DAMAGED):
        schema = file.schema_arrow
        names = list(schema.names)
        inner = {column.name: _field_types(column.type) for column in schema}
        binaries = [column.name for column in schema if "binary" in str(column.type)]
        metadata = (schema.metadata or {}).get(b"huggingface")
    check_columns(table, list(map(_heading, names)))
    structs = [name for name in names if "binary" in inner[name].get("bytes", "")]
    images = structs or [name for name in binaries if _holds_images(table, file, name)]
    usual = [name for name in images if name.lower() in (*file_columns, "img")]
    if len(images) > 1 and len(usual) != 1:
        raise DataError(f"{table}: the columns {', '.join(images)} hold images; keep one of them")
    image = next(iter(usual or images), "")
    dropped = {*images, *(name for name in names if image and name.lower() in file_columns)}
    columns = tuple(name for name in names if name not in dropped)
    has_paths = bool(image) and "path" in inner[image]
    return _Layout(columns, image, image in structs, has_paths, _class_names(table, metadata))


def _heading(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _field_types(kind: Any) -> dict[str, str]:
    """Return the type of each field of a struct; none for other types."""
    if not str(kind).startswith("struct<"):
        return {}
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return {field.name: str(field.type) for field in fields}


def _holds_images(table: Path, file: Any, column: str) -> bool:
    """Return whether the first value of a binary column begins like an image."""
    first = next(_values(table, file, [column], rows=1), {}).get(column)
    return isinstance(first, bytes) and SIGNATURE.match(first) is not None


def _class_names(table: Path, metadata: bytes | None) -> dict[str, Sequence[str]]:
    """Return the names of the class numbers of each column, by the metadata that Hugging Face writes."""
    if metadata is None:
        return {}
    with foreign_errors(table, DataError, "its Hugging Face metadata cannot be read"):
        plain = json.loads(metadata)
    names: dict[str, Sequence[str]] = {}
    for column, feature in _inner(_inner(plain, "info"), "features").items():
        label = feature if "names" in _mapping(feature) else _inner(feature, "feature")
        if label.get("_type") == "ClassLabel":
            values = label.get("names")
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise DataError(f"{table}: the class names of {column} in its Hugging Face metadata must be texts")
            names[column] = values
    return names


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _inner(value: Any, key: str) -> Mapping[str, Any]:
    return _mapping(_mapping(value).get(key))


def _values(table: Path, file: Any, columns: Sequence[str], *, rows: int = 1024) -> Iterator[dict[str, Any]]:
    """Yield the values of each row; at most `rows` of them are in memory."""
    with foreign_errors(table, DataError, DAMAGED):
        for batch in file.iter_batches(batch_size=rows, columns=list(columns)):
            yield from batch.to_pylist()


def _extract(table: Path, file: Any, layout: _Layout) -> dict[int, str]:
    """Write the images inside a table into the cache, unless they are there, and return {row: path}."""
    with foreign_errors(table, DataError):
        key = f"{sha256(table)} {layout.image}"
    cache = LruFolder(cache_folder() / "parquet", SUFFIX, CACHE_LIMIT, FREE_BYTES)
    entry = cache.path / f"{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:32]}{SUFFIX}"
    folder = entry.with_suffix(".images")
    try:
        cache.keep(entry)
        if not _is_complete(entry):
            cache.make_room(table.stat().st_size)
            entry.touch()
            folder.mkdir(exist_ok=True)
            for row, values in enumerate(_values(table, file, [layout.image], rows=BATCH_ROWS), 1):
                value = values[layout.image]
                image = _mapping(value) if layout.is_struct else {"bytes": value}
                if image.get("bytes") is not None:
                    _write(folder / _file_name(row, image.get("path")), image["bytes"])
            entry.write_text("complete")
        cache.mark_used(entry)
        names = os.listdir(folder)
    except OSError as error:
        raise MachineError(f"{folder}: the images of {table} cannot be written: {brief(error)}") from error
    return {int(name.partition("-")[0]): str(folder / name) for name in names if name[0].isdigit()}


def _is_complete(entry: Path) -> bool:
    return entry.exists() and entry.stat().st_size > 0


def _file_name(row: int, path: str | None) -> str:
    """Return the name of the file of an image: its row and the end of its own name."""
    own = re.sub(r"[^\w.-]", "_", PurePath(path or "").name, flags=re.ASCII)[-60:]
    return f"{row:08}-{own}" if own else f"{row:08}"


def _write(path: Path, data: bytes) -> None:
    """Write a file unless it is there; of two processes that write it at once, both write the same."""
    if not path.exists():
        part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
        part.write_bytes(data)
        part.replace(path)


def _text(value: Any, table: Path, row: int, layout: _Layout, column: str) -> str:
    """Return a value as text; class numbers become their names, None becomes an empty text."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "|".join(_text(item, table, row, layout, column) for item in value)
    names = layout.class_names.get(column)
    if names is not None and type(value) is int:
        if value == -1:  # no label
            return ""
        if not 0 <= value < len(names):
            raise DataError(f"{table}: line {row}: {column} must be in [0, {len(names) - 1}], got {value}")
        return names[value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise DataError(f"{table}: line {row}: {column} must be text, got bytes that are not UTF-8") from None
    return str(value)
