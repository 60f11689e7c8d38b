"""Runs of equal predictions along time, and times as text."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from convatlas.tasks.classification.base import ClassPrediction
from convatlas.tasks.video.prediction import Moment, VideoPrediction
from convatlas.tasks.video.runs import Run, clock, merge_moments, span_texts


class Clip(NamedTuple):
    start: float
    end: float
    text: str
    probability: float


def test_consecutive_clips_of_one_class_are_one_run() -> None:
    clips = [Clip(0, 1.5, "a", 0.5), Clip(1, 2.5, "a", 0.75), Clip(2, 3.5, "b", 0.25), Clip(3, 4.5, "a", 1.0)]
    assert merge_moments(clips) == [Run(0, 2, "a", 0.625), Run(2, 3, "b", 0.25), Run(3, 4.5, "a", 1.0)]
    assert merge_moments([]) == []


def test_clips_with_gaps_between_them_end_where_they_end() -> None:
    assert [(run.start, run.end) for run in merge_moments([Clip(0, 1, "a", 1), Clip(5, 6, "b", 1)])] == [(0, 1), (5, 6)]


@pytest.mark.parametrize(
    ("seconds", "decimals", "text"),
    [(0, 0, "0:00"), (65.4, 0, "1:05"), (59.96, 1, "1:00.0"), (3599.6, 0, "1:00:00"), (7325.25, 2, "2:02:05.25"),
     (5, 1, "0:05.0")],
)  # fmt: skip
def test_clock(seconds: float, decimals: int, text: str) -> None:
    assert clock(seconds, decimals) == text


def test_spans_are_whole_seconds_unless_clips_begin_more_often_or_leave_gaps() -> None:
    runs = [Run(0, 2.96, "a", 1), Run(2.96, 4.4, "b", 1)]
    assert span_texts(runs, 1.0) == ["0:00-0:03", "0:03-0:05"]
    with_gap = [Run(0, 0.53, "a", 1), Run(1.0, 1.53, "b", 1)]
    assert span_texts(with_gap, 1.0) == ["0:00.0-0:00.6", "0:01.0-0:01.6"]
    assert span_texts(runs, 0.5) == ["0:00.0-0:03.0", "0:03.0-0:04.4"]


def test_a_prediction_has_one_form_in_tables_csv_and_json() -> None:
    def of(*labels: str, **probabilities: float) -> ClassPrediction:
        return ClassPrediction("x.mp4", "", probabilities, labels)

    moments = (
        Moment(0.0, 1.0, of("a", a=0.9, b=0.1)), Moment(1.0, 2.0, of("a", a=0.7, b=0.3)),
        Moment(2.0, 3.0, of(b=0.6, a=0.4)),
    )  # fmt: skip
    prediction = VideoPrediction("x.mp4", "", {"a": 0.6, "b": 0.4}, ("a",), 3.0, moments)
    assert prediction.headings(2) == ("time", "prediction", "most probable", "next")
    assert prediction.cell_rows(2) == [
        ("0:03", "a", " 60.00%  a", " 40.00%  b"), ("0:00-0:02", "a", " 80.00%", ""),
        ("0:02-0:03", "unknown", " 60.00%", ""),
    ]  # fmt: skip
    rows = prediction.to_rows(1)
    assert [(row["start"], row["end"], row["label"], row["class_1"]) for row in rows] == [
        (None, None, "a", "a"), (0, 1, "a", "a"), (1, 2, "a", "a"), (2, 3, None, "b"),
    ]  # fmt: skip
    plain = prediction.with_top(1).to_plain()
    assert set(plain) == set(prediction.json_schema()["required"])
    assert [moment["probabilities"] for moment in plain["moments"]] == [{"a": 0.9}, {"a": 0.7}, {"b": 0.6}]
    unreadable = VideoPrediction("x.mp4", "x.mp4: no such file")
    assert unreadable.cell_rows(1)[0][:2] == ("", "")
    assert list(unreadable.to_rows(1)[0]) == list(rows[0])
