"""Videos as strips of frames for display."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from convatlas.core.resampling import resize
from convatlas.data.decode.files import memory_errors
from convatlas.data.decode.video import open_video
from convatlas.draw.frame_strip import STRIP, frame_strip
from convatlas.errors import DataError

MAX_HEIGHT = 128
"""Maximum height of a strip, in pixels."""


def display_video(name: str) -> NDArray[Any] | None:
    """Return evenly spaced frames of a video side by side, uint8 (height, width, 3), or None if it is unreadable."""
    frames = []
    try:
        with memory_errors(name), open_video(name) as video:
            for rgb in video.sampled(STRIP / max(video.seconds, 1e-3), count=STRIP):
                frame = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
                factor = MAX_HEIGHT / frame.shape[1]
                if factor < 1:
                    size = (MAX_HEIGHT, max(1, round(frame.shape[2] * factor)))
                    frame = resize(frame, size, "bilinear", antialias=True)
                frames.append(frame)
    except DataError:
        return None
    if not frames:  # the part is shorter than the rounding of timestamps
        return None
    array: NDArray[Any] = frame_strip(torch.stack(frames)).permute(1, 2, 0).numpy()
    return array
