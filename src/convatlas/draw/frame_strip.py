"""Frame strips: frames of a video side by side, in the order of time."""

from __future__ import annotations

import torch
from torch import Tensor

STRIP = 6
"""Maximum number of frames in a strip."""

GAP = 2
"""Pixels between two frames."""


def frame_strip(frames: Tensor, count: int = STRIP) -> Tensor:
    """Return evenly spaced frames side by side: (..., channels, h, w) in, (channels, h, width of the strip) out.

    The first and the last frame are among them. An image (channels, h, w) is returned as it is.
    """
    frames = frames.reshape(-1, *frames.shape[-3:])
    count = min(count, len(frames))
    numbers = torch.linspace(0, len(frames) - 1, count).round().long()
    gap = frames.new_full((*frames.shape[1:3], GAP), 255)
    parts = [part for frame in frames[numbers] for part in (gap, frame)]
    return torch.cat(parts[1:], -1)
