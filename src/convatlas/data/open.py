"""Open a data set: the one file that knows all readers."""

from __future__ import annotations

from pathlib import Path

from convatlas.data.readers.digits import Digits
from convatlas.data.readers.folder import ImageFolder
from convatlas.data.readers.idx import IDX_PARTS, IdxFolder, _idx_file
from convatlas.data.source import Source
from convatlas.errors import DataError, nearest
from convatlas.system.cache import cache_folder
from convatlas.system.progress import Progress


def find(data: str | Path, *, download: bool = False, progress: Progress | None = None) -> Source:
    """Return the source that `data` names.

    A data set by its name, a folder of images or of the files of a data set, a table that lists images (.csv, .tsv,
    .parquet), or a NumPy file (.npz).

    Data sets by name are taken from the cache; `download` allows to fetch them there.
    Raises DataError for a missing or empty folder and unknown names.
    """
    from convatlas.data.readers.arrays import npz
    from convatlas.data.readers.idx import IDX_SETS, fetch_idx
    from convatlas.data.readers.table import ImageList
    from convatlas.data.readers.torchvision import FOLDERS, SETS, torchvision_set

    name = data if isinstance(data, str) else ""  # a Path is always a folder
    if name == "digits":
        return Digits()
    if name in IDX_SETS:
        folder = cache_folder() / name
        if not any(_idx_file(folder, part) for part in IDX_PARTS.values()) and not download:
            raise DataError(
                f"{name} is not in {folder}; `fit --download` fetches it, or give a folder of its IDX files"
            )
        if download:
            fetch_idx(name, folder, progress=progress)
        return IdxFolder(folder)
    if name in SETS:
        return torchvision_set(name, download=download)
    folder = Path(data)
    if not folder.exists():
        known = ["digits", *IDX_SETS, *SETS]
        raise DataError(f"{folder}: no such folder{nearest(name, known)}; data by name: {', '.join(known)}")
    if not folder.is_dir():
        if folder.suffix.lower() in (".csv", ".tsv", ".parquet"):
            return ImageList(folder)
        if folder.suffix.lower() == ".npz":
            return npz(folder)
        raise DataError(f"{folder}: expected a folder, a table (.csv, .tsv, .parquet) or a NumPy file (.npz)")
    for inside, held in FOLDERS.items():
        if (folder / inside).is_dir():
            return torchvision_set(held, folder)
    if any(_idx_file(folder, part) for part in IDX_PARTS.values()):
        return IdxFolder(folder)
    return ImageFolder(folder)
