"""Prediction of videos: by evenly spaced clips, and along time while the video is decoded."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from convatlas.errors import DataError
from convatlas.inference.contents import display_name, naming_errors, read_contents
from convatlas.inference.options import PredictOptions
from convatlas.inference.predict import Member, MemberGroup, predict_views, prefetch, to_prediction
from convatlas.inference.videos import VideoLike, check_every, load_clips, open_frames, single_clips, views_of
from convatlas.tasks.classification.base import ClassPrediction
from convatlas.tasks.prediction import Prediction
from convatlas.tasks.video.prediction import Moment, VideoPrediction
from convatlas.weights.modelfile import Header

Windows = list[tuple[float, float, Any]]
"""Start and end in seconds, and decoded outputs (classes,), of clips along time."""


def stream_videos(
    members: Sequence[Member], videos: Iterable[VideoLike], options: PredictOptions
) -> Iterator[Prediction]:
    """Yield one prediction for each video, in order; see `predict.stream`.

    Without `options.every`, the next videos are decoded while the clips of one are computed; with it, the next clips of
    the same one. Raises DataError as `predict.stream` does.
    """
    group = MemberGroup.of(members, options)
    if options.every is None:
        for source, row, seconds in group.rows(videos, load_clips):
            yield to_video_prediction(source, row, seconds, [], group.header, options)
        return
    for steps in group.preprocessings:
        check_every(options.every, steps)
    for number, video in enumerate(videos):
        yield _predict_along_time(group, video, display_name(video, "video", number))


def to_video_prediction(
    source: str, row: Any, seconds: float | None, windows: Windows, header: Header, options: PredictOptions
) -> Prediction:
    """Return the prediction of a video; see `to_prediction`. One that has none along time has none at all."""

    def predicted(row: Any) -> Prediction:
        return to_prediction(source, row, header, threshold=options.threshold, top=options.top)

    whole = predicted(row)
    if whole.error:
        return whole
    moments = []
    for start, end, decoded in windows:
        prediction = predicted(decoded)
        if prediction.error:
            return prediction
        assert isinstance(prediction, ClassPrediction)
        moments.append(Moment(start, end, prediction))
    assert isinstance(whole, VideoPrediction)
    return replace(whole, seconds=seconds, moments=tuple(moments))


def _predict_along_time(group: MemberGroup, video: VideoLike, name: str) -> Prediction:
    options = group.options
    try:
        with naming_errors(name):
            contents = read_contents(video, name, "video", fetch=options.fetch)
        views = []
        collected = [_Collected() for _ in group.members]
        for steps in group.preprocessings:
            members = [number for number, member in enumerate(group.members) if member.header.preprocessing == steps]
            with open_frames(contents, name, steps) as reader:
                for part in prefetch(reader.parts(options.every, options.batch_for(steps))):
                    if part.seconds is not None:
                        views.append(views_of(part))
                        continue
                    for number in members:
                        rows = predict_views(group.members[number], single_clips(part), options)
                        collected[number].add([reader.times(start) for start in part.starts], rows)
        row: Any = group.average([views])[0]
    except DataError as error:
        return to_video_prediction(name, error, None, [], group.header, options)
    return to_video_prediction(name, row, views[0].seconds, _averaged(group, collected), group.header, options)


@dataclass
class _Collected:
    """Start, end and outputs of clips along time, in few large blocks of memory.

    Small tensors between the large ones of the network would keep it from reusing memory: with a tensor for each clip,
    the memory grew by 1 MiB for every second of film.
    """

    times: list[tuple[float, float]] = field(default_factory=list)
    values: array[float] = field(default_factory=lambda: array("f"))

    def add(self, times: Sequence[tuple[float, float]], rows: Sequence[Tensor]) -> None:
        self.times += times
        self.values.extend(torch.stack(list(rows)).flatten().tolist())

    def windows(self) -> Windows:
        rows = torch.tensor(self.values, dtype=torch.float32).view(len(self.times), -1)
        return [(start, end, row) for (start, end), row in zip(self.times, rows, strict=True)]


def _averaged(group: MemberGroup, collected: Sequence[_Collected]) -> Windows:
    """Return clips along time with the mean of the members' outputs; of different clips, until the first one ends."""
    averaged: Windows = []
    for same in zip(*(each.windows() for each in collected)):  # noqa: B905 - members with longer clips have fewer
        start, end = same[0][0], max(end for _, end, _ in same)
        averaged.append((start, end, group.mean([row for _, _, row in same])))
    return averaged
