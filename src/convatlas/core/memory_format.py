"""The memory format channels_last: the values of a pixel lie side by side."""

from __future__ import annotations

import torch

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Number of axes -> torch's name of channels_last: of images (n, c, h, w), and of clips (n, c, t, h, w).

In memory, a clip in channels_last_3d is equal to an image of t * h rows in channels_last.
"""
