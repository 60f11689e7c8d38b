"""Names of videos: a path, and which part of the video is meant."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

from convatlas.errors import DataError

FRAMES_PER_SECOND = 25.0
"""Frame rate of a folder of frames whose name has no `#fps=`: the default of ffmpeg."""

_FRAGMENT = re.compile(r"(.+)#((?:t|fps)=[^/\\#]*)", re.DOTALL)
_CLOCK = re.compile(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?|\.\d+)s?")
_FORM = "#t=START,END in seconds, such as #t=1.5,4 or #t=,4, and #fps=RATE for a folder of frames"


@dataclass(frozen=True)
class VideoName:
    """A video file or folder of frames, and the part of it that is meant, from `start` to `end` seconds.

    end: None for the end of the video. fps: frames per second of a folder of frames; None if the name has none.
    """

    path: str
    start: float = 0.0
    end: float | None = None
    fps: float | None = None

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> VideoName:
        """Read a name with the fragment of a URL, W3C Media Fragments 1.0: `film.mp4#t=1.5,4`, `frames#fps=10&t=2`.

        Times are seconds or `hours:minutes:seconds`. A file or folder that exists under the whole text is meant as it
        is. Raises DataError if the fragment is wrong.
        """
        text = os.fspath(text)
        match = _FRAGMENT.fullmatch(text)
        if match is None or _exists(text):
            return cls(text)
        start, end, fps = 0.0, None, None
        for part in match[2].split("&"):
            key, _, value = part.partition("=")
            if key == "t":
                first, comma, last = value.removeprefix("npt:").partition(",")
                start = _seconds(first, text) if first else 0.0
                end = _seconds(last, text) if comma and last else None
                if not (first or last) or (end is not None and end <= start):
                    raise DataError(f"{text}: the end of the time must be > its start, got {value!r}; write {_FORM}")
            elif key == "fps":
                fps = _rate(value, text)
            else:
                raise DataError(f"{text}: {part!r} is not known; write {_FORM}")
        return cls(match[1], start, end, fps)

    @property
    def is_whole(self) -> bool:
        """Whether all of the video is meant."""
        return self.start == 0 and self.end is None

    def __str__(self) -> str:
        """Return the name as `parse` reads it."""
        time = (
            ""
            if self.is_whole
            else f"t={_decimal(self.start)}" + ("" if self.end is None else f",{_decimal(self.end)}")
        )
        rate = "" if self.fps is None else f"fps={_decimal(self.fps)}"
        return self.path + "#" * bool(time or rate) + "&".join(filter(None, (time, rate)))


def _exists(text: str) -> bool:
    try:
        return os.path.lexists(text)
    except ValueError:  # a zero byte in the name
        return False


def _decimal(value: float) -> str:
    """Return a number without an exponent, to the nanosecond."""
    return f"{value:.9f}".rstrip("0").rstrip(".")


def _seconds(value: str, text: str) -> float:
    match = _CLOCK.fullmatch(value)
    if match is None:
        raise DataError(f"{text}: a time must be seconds or hours:minutes:seconds, got {value!r}; write {_FORM}")
    return 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + float(match[3])


def _rate(value: str, text: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise DataError(f"{text}: fps must be > 0, got {value!r}; write {_FORM}")
    return rate
