"""How many videos a split has, how long they are, and their frame rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any

from convatlas.data.inspect_videos import CheckedVideo
from convatlas.tasks.table import pluralize


@dataclass(frozen=True)
class VideoCounts:
    """Numbers of readable videos, and of those with a variable frame rate and shorter than a clip of default length.

    seconds: the sum of all. shortest, median, longest: durations in seconds. lowest_rate, highest_rate: average number
    of frames per second of a video. All of them are 0 for arrays, which have no times.
    """

    videos: int
    seconds: float
    shortest: float
    median: float
    longest: float
    lowest_rate: float
    highest_rate: float
    variable_rates: int
    short: int

    def text(self) -> str:
        """Return one line, such as "143 videos, 5:54 min; 0.9 s to 9.1 s, median 2.4 s; 10 to 30 frames per second"."""
        text = pluralize(self.videos, "video")
        if not self.seconds:
            return text
        rates = dict.fromkeys(f"{rate:.4g}" for rate in (self.lowest_rate, self.highest_rate))
        text += f", {_clock(self.seconds)}; {self.shortest:.2f} s to {self.longest:.2f} s, median {self.median:.2f} s"
        return f"{text}; {' to '.join(rates)} frames per second" + (
            f" ({self.variable_rates:,} variable)" if self.variable_rates else ""
        )

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)


def count_videos(videos: Sequence[CheckedVideo]) -> VideoCounts:
    """Return the numbers of readable videos."""
    readable = [video for video in videos if not video.unreadable]
    seconds = [video.seconds for video in readable] or [0.0]
    rates = [video.rate for video in readable] or [0.0]
    return VideoCounts(
        len(readable), sum(seconds), min(seconds), median_low(seconds), max(seconds), min(rates), max(rates),
        sum(video.variable_rate for video in readable), sum(video.is_short for video in readable),
    )  # fmt: skip


def _clock(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds with its largest unit, or as seconds."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2f} s"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02} h" if hours else f"{minutes}:{whole % 60:02} min"
