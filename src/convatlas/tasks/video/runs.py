"""Runs: consecutive clips along time with the same predicted classes, and times as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import fmean
from typing import Protocol


class TimedPrediction(Protocol):
    """The prediction of a clip from `start` to `end` seconds."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def text(self) -> str: ...
    @property
    def probability(self) -> float: ...


@dataclass(frozen=True)
class Run:
    """A part of a video whose clips have the same predicted classes.

    start, end: in seconds. text: the classes, or "unknown". probability: mean probability of the most probable class.
    """

    start: float
    end: float
    text: str
    probability: float


def merge_moments(moments: Sequence[TimedPrediction]) -> list[Run]:
    """Return the runs of clips along time. Where clips of two runs overlap, the first ends where the next begins."""
    groups = [list(group) for _, group in groupby(moments, key=lambda moment: moment.text)]
    runs = []
    for number, group in enumerate(groups):
        end = group[-1].end if number + 1 == len(groups) else min(group[-1].end, groups[number + 1][0].start)
        runs.append(Run(group[0].start, end, group[0].text, fmean(moment.probability for moment in group)))
    return runs


def clock(seconds: float, decimals: int = 0) -> str:
    """Return a time as minutes:seconds, "1:05", from an hour on as hours:minutes:seconds, "1:00:05"."""
    units = round(seconds * 10**decimals)
    whole, rest = divmod(units, 10**decimals)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    text = f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{text}.{rest:0{decimals}}" if decimals else text


def span_texts(runs: Sequence[Run], step: float) -> list[str]:
    """Return the span of each run, such as "0:00-0:12".

    step: mean seconds from the start of one clip to that of the next; clearly below a second, times have a decimal. So
    they have where a run ends before the next one begins: whole seconds would hide that no clip is there.
    """
    has_gaps = any(run.end < following.start for run, following in pairwise(runs))
    decimals = 1 if step < 0.95 or has_gaps else 0
    starts = [run.start for run in runs]
    ends = [run.end if run.end in starts else _round_up(run.end, decimals) for run in runs]
    return [f"{clock(run.start, decimals)}-{clock(end, decimals)}" for run, end in zip(runs, ends, strict=True)]


def _round_up(seconds: float, decimals: int) -> float:
    units = 10.0**decimals
    return math.ceil(seconds * units - 0.01) / units
