"""Predictions of videos: classes of the whole video, and along time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from convatlas.draw.frame_strip import frame_strip
from convatlas.tasks.classification.base import ClassPrediction
from convatlas.tasks.video.runs import Run, clock, merge_moments, span_texts

NUMBER = {"type": ["number", "null"]}


@dataclass(frozen=True, repr=False)
class Moment:
    """The prediction of one clip of a video: its start and end in seconds from the start of the file."""

    start: float
    end: float
    prediction: ClassPrediction

    @property
    def text(self) -> str:
        """The predicted classes, or "unknown"."""
        return self.prediction.text

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return self.prediction.probability or 0.0

    def to_plain(self) -> dict[str, Any]:
        plain = self.prediction.to_plain()
        return {"start": self.start, "end": self.end, **{key: plain[key] for key in MOMENT_FIELDS}}


MOMENT_FIELDS = ("label", "labels", "probability", "probabilities")
"""Fields of the prediction of a video that each of its moments has, too."""


@dataclass(frozen=True, repr=False)
class VideoPrediction(ClassPrediction):
    """Probabilities of the classes, averaged over evenly spaced clips of a video.

    seconds: duration of the video; None with an error. moments: predictions of single clips along time, if requested.
    """

    noun = "video"

    seconds: float | None = None
    moments: tuple[Moment, ...] = ()

    plain_fields: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **ClassPrediction.plain_fields,
        "seconds": {**NUMBER, "minimum": 0, "description": "Duration of the video; null with an error."},
        "moments": {
            "type": "array",
            "description": "Predictions of clips along time, if they were requested: start and end in seconds "
            "from the start of the file.",
            "items": {
                "type": "object",
                "properties": {
                    "start": {"type": "number", "minimum": 0}, "end": {"type": "number", "minimum": 0},
                    **{key: ClassPrediction.plain_fields[key] for key in MOMENT_FIELDS},
                },
                "required": ["start", "end", *MOMENT_FIELDS], "additionalProperties": False,
            },
        },
    }  # fmt: skip

    def with_top(self, top: int) -> Self:
        moments = tuple(replace(each, prediction=each.prediction.with_top(top)) for each in self.moments)
        return replace(super().with_top(top), moments=moments)

    def to_plain(self) -> dict[str, Any]:
        moments = [moment.to_plain() for moment in self.moments]
        return {**super().to_plain(), "seconds": self.seconds, "moments": moments}

    def to_rows(self, top: int) -> list[dict[str, Any]]:
        """Return the row of the whole video, whose start and end are empty, and one for each of its moments."""
        moments = [_row(self.source, each.start, each.end, each.prediction.to_row(top)) for each in self.moments]
        return [_row(self.source, None, None, self.to_row(top)), *moments]

    @property
    def runs(self) -> list[Run]:
        """Consecutive moments with the same predicted classes, as one."""
        return merge_moments(self.moments)

    def cells(self, top: int) -> tuple[str, ...]:
        return ("" if self.seconds is None else clock(self.seconds), *super().cells(top))

    def cell_rows(self, top: int) -> list[tuple[str, ...]]:
        """Return the cells of the whole video, then those of each run of its moments."""
        runs = self.runs
        blank = ("",) * (top - 1)
        step = 1.0
        if len(self.moments) > 1:
            step = (self.moments[-1].start - self.moments[0].start) / (len(self.moments) - 1)
        spans = span_texts(runs, step)
        return [
            self.cells(top),
            *((span, run.text, f"{run.probability:7.2%}", *blank) for span, run in zip(spans, runs, strict=True)),
        ]

    @classmethod
    def headings(cls, top: int) -> tuple[str, ...]:
        return ("time", *super().headings(top))

    def annotated(self, pixels: Tensor) -> Tensor:
        """Return frames (..., channels, h, w) of the video side by side."""
        return frame_strip(pixels)


def _row(source: str, start: float | None, end: float | None, row: dict[str, Any]) -> dict[str, Any]:
    return {"source": source, "start": start, "end": end, **{key: row[key] for key in row if key != "source"}}
