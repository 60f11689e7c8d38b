"""The memory for images and videos that are decoded at the same time."""

from __future__ import annotations

import threading


class PixelBudget:
    """Limits the pixels of the images in memory at the same time; first come, first served."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._turn, self._changed = threading.Lock(), threading.Condition()

    def take(self, pixels: int) -> None:
        """Wait until `pixels` are free, and take them; at most the whole budget."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels

    def give_back(self, pixels: int) -> None:
        """Make `pixels` free again."""
        with self._changed:
            self._free += pixels
            self._changed.notify_all()
