"""The image or the video that a row of a table names."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from convatlas.data.decode.video_name import VideoName
from convatlas.data.readers.csv_rows import first_column
from convatlas.data.readers.video_files import is_still
from convatlas.errors import DataError

MISSING = frozenset(("nan", "NaN", "NAN", "<NA>"))
"""What pandas and others write for a missing value, as text."""

START, END = ("start", "start_time", "time_start"), ("end", "end_time", "time_end")
FPS = ("fps", "frame_rate")


def find_file(place: str, folder: str, file: str, exists: Callable[[str], bool] = os.path.isfile) -> str:
    """Return the path of the file that a cell names: as it is written, without blanks, or in another normalization.

    Raises DataError that begins with `place`, the line of the table.
    """
    if not file.strip():
        raise DataError(f"{place}: no file")
    path = os.path.join(folder, file)
    if not exists(path):
        path = os.path.join(folder, file.strip())
        forms = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
        other = next(filter(exists, forms), None)
        if other is None:
            subject = f"{place.rpartition(': ')[2]}: {file.strip()}"
            raise DataError(f"{place}: {path} does not exist", kind="missing_files", subject=subject)
        path = other
    normal = os.path.normpath(path)
    # x/../a.png is a.png, unless x is a link
    return normal if ".." not in file or os.path.samefile(normal, path) else os.path.realpath(path)


@dataclass(frozen=True)
class VideoColumns:
    """The columns of a part of a video, "" for one that the table does not have.

    start, end: in seconds. fps: frames per second of a folder of frames; other videos have their own.
    """

    start: str = ""
    end: str = ""
    fps: str = ""

    @classmethod
    def among(cls, table: object, names: Sequence[str]) -> VideoColumns:
        """Return the columns among those of a table; raises DataError for two of one name."""
        return cls(*(first_column(table, names, accepted) for accepted in (START, END, FPS)))

    def find(self, place: str, folder: str, file: str, cells: Mapping[str, str]) -> str:
        """Return the name of the video of a row; raises DataError that begins with `place`, the line of the table.

        file: the cell of its path, which may have a fragment, such as film.mp4#t=1,4.
        """
        if not os.path.lexists(os.path.join(folder, file)):
            file = file.rstrip()  # blanks in front may belong to the name; see `find_file`
        whole = os.path.join(folder, file)
        try:
            name = VideoName.parse(whole)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        file = file.removesuffix(whole[len(name.path) :])
        name = replace(name, path=find_file(place, folder, file, os.path.exists))
        if is_still(name.path):
            raise DataError(f"{place}: {file} is an image, not a video")
        start, end, fps = (_number(place, cells, column) for column in (self.start, self.end, self.fps))
        if not name.is_whole and (start is not None or end is not None):
            raise DataError(f"{place}: {file} has a time, #t=, and a start or end in its own column; keep one of them")
        if start is not None or end is not None:
            name = replace(name, start=start or 0.0, end=end)
        if name.end is not None and name.end <= name.start:
            raise DataError(f"{place}: {self.end} must be > {name.start:g}, the start, got {name.end:g}")
        if fps == 0:
            raise DataError(f"{place}: {self.fps} must be a number > 0, got {cells[self.fps]}")
        if fps is not None and name.fps is None and os.path.isdir(name.path):
            name = replace(name, fps=fps)
        return str(name)


def _number(place: str, cells: Mapping[str, str], column: str) -> float | None:
    """Return the number >= 0 in a cell; None if it is empty or missing."""
    text = cells.get(column, "").strip()
    if not text or text in MISSING:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise DataError(f"{place}: {column} must be a number >= 0, got {text!r}")
    return value
