"""Which stored frames of a video are shown at a frame rate: the reference of `Video.sampled`."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from convatlas.core.clips import tolerance


def sample_numbers(times: Sequence[float], end: float, rate: float, *, start: float = 0.0) -> list[int]:
    """Return the numbers of the frames that are shown at start, start + 1/rate, start + 2/rate, ... before `end`.

    times: when each frame appears, in seconds, in increasing order; a frame is shown until the next one appears.
    At a rate that divides the video's own, every second (third, ...) frame is taken.
    """
    numbers = []
    k = 0
    while (time := start + k / rate) < end - tolerance(rate):
        numbers.append(max(0, bisect.bisect_right(times, time + tolerance(rate)) - 1))
        k += 1
    return numbers
