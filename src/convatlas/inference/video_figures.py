"""Figures of predicted videos: a contact sheet of their frames, and probabilities over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convatlas.core.resampling import resize
from convatlas.data.decode.video import open_video
from convatlas.draw.contact_sheet import contact_sheet
from convatlas.draw.frame_strip import STRIP
from convatlas.draw.probabilities_over_time import VideoProbabilities, probabilities_over_time
from convatlas.errors import DataError
from convatlas.inference.contents import EncodedFile
from convatlas.tasks.prediction import Prediction
from convatlas.tasks.video.prediction import VideoPrediction

SHEET_SIDE = 256
"""Maximum height and width of a frame on a contact sheet, in pixels."""


def draw_video_sheet(videos: Sequence[tuple[Any, Prediction]], path: Path) -> None:
    """Write a contact sheet: a row for each video, with its prediction and evenly spaced frames."""
    rows = []
    for video, prediction in videos:
        assert isinstance(prediction, VideoPrediction)
        share = "" if prediction.probability is None else f"{prediction.probability:.1%}  "
        caption = f"{prediction.text}\n{share}{Path(prediction.source).name}"
        rows.append((caption, _read_frames(video, prediction)))
    contact_sheet(rows, columns=STRIP, path=path)


def _read_frames(video: Any, prediction: VideoPrediction) -> list[NDArray[np.uint8]]:
    """Return evenly spaced frames of a video; none if it is no longer readable."""
    data = video.data if isinstance(video, EncodedFile) else None
    rate = STRIP / max(prediction.seconds or 0, 1e-3)
    try:
        with open_video(prediction.source, data=data) as opened:
            return [_small(rgb) for k in range(STRIP) for rgb in opened.sampled(rate, first=k, count=1)]
    except DataError:
        return []


def _small(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = SHEET_SIDE / max(rgb.shape[:2])
    if factor >= 1:
        return rgb
    height, width = (max(1, round(side * factor)) for side in rgb.shape[:2])
    small = resize(torch.from_numpy(rgb).permute(2, 0, 1), (height, width), "bilinear", antialias=True)
    return small.permute(1, 2, 0).numpy()


def plot_over_time(predictions: Sequence[Prediction], path: Path) -> None:
    """Plot the probabilities of videos that were predicted along time, with all classes."""
    panels = []
    for prediction in predictions:
        assert isinstance(prediction, VideoPrediction)
        moments = prediction.moments
        probabilities = {
            name: [moment.prediction.probabilities[name] for moment in moments] for name in prediction.probabilities
        }
        times = [(moment.start + moment.end) / 2 for moment in moments]
        panels.append(VideoProbabilities(prediction.source, times, probabilities))
    probabilities_over_time(panels, path=path)
