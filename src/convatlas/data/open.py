"""Open data by name or path with the reader for its format."""

from __future__ import annotations

import os
from pathlib import Path

from convatlas.data.readers.arrays import read_npz
from convatlas.data.readers.digits import read_digits
from convatlas.data.readers.folder import read_image_folder
from convatlas.data.readers.idx import IDX_SETS, fetch_idx, has_idx_files, read_idx_folder
from convatlas.data.readers.table import parquet_shards, read_image_table, read_parquet_folder
from convatlas.data.readers.torchvision import FOLDERS, SETS, read_torchvision
from convatlas.data.source import Source
from convatlas.errors import DataError, nearest
from convatlas.system.cache import cache_folder
from convatlas.system.progress import Progress

TABLES = (".csv", ".tsv", ".parquet")
"""Suffixes of tables of images."""


def open_data(data: str | Path, *, download: bool = False, progress: Progress | None = None) -> Source:
    """Return the source that `data` names.

    data: a data set by its name, a folder of images or of the files of a data set, a table of images (.csv, .tsv,
        .parquet), or a NumPy file (.npz).
    download: allow to download a data set by name into the cache.
    Raises DataError for a missing or empty folder and unknown names.
    """
    if not str(data).strip():
        raise DataError("the data set has no name; give a name, a folder or a file")
    name = data if isinstance(data, str) else ""  # a Path is always a file or a folder
    if name == "digits":
        return read_digits()
    if name in IDX_SETS:
        folder = cache_folder() / name
        if not has_idx_files(folder) and not download:
            raise DataError(
                f"{name} is not in {folder}; download it with `fit --download`, or give a folder with its IDX files"
            )
        if download:
            fetch_idx(name, folder, progress=progress)
        return read_idx_folder(folder)
    if name in SETS:
        return read_torchvision(name, download=download, progress=progress)
    path = Path(data)
    if not os.path.lexists(path):
        path = Path(os.path.expanduser(path))
    if not os.path.exists(path):
        raise DataError(_missing(path, name))
    if not path.is_dir():
        if path.suffix.lower() in TABLES:
            return read_image_table(path, progress=progress)
        if path.suffix.lower() == ".npz":
            return read_npz(path)
        raise DataError(f"{path}: must be a folder, a table ({', '.join(TABLES)}) or a NumPy file (.npz)")
    present = [inside for inside in FOLDERS if (path / inside).is_dir()]
    if len(present) > 1:
        raise DataError(f"{path}: contains the data sets {', '.join(present)}; keep one of them in this folder")
    if present:
        return read_torchvision(FOLDERS[present[0]], path, progress=progress)
    if has_idx_files(path):
        return read_idx_folder(path)
    if parquet_shards(path):
        return read_parquet_folder(path, progress=progress)
    return read_image_folder(path, progress=progress)


def _missing(path: Path, name: str) -> str:
    """Return the message for a path where nothing is."""
    if os.path.islink(path):
        return f"{path}: a link to {os.readlink(path)}, which does not exist"
    if path.suffix.lower() in (*TABLES, ".npz"):
        return f"{path}: no such file"
    if not name or os.sep in name:
        return f"{path}: no such folder"
    known = ["digits", *IDX_SETS, *SETS]
    return f"{path}: no such folder{nearest(name, known)}; data sets by name: {', '.join(known)}"
