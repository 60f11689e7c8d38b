"""What every engine offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Engine(Protocol):
    """What runs a network."""

    @property
    def name(self) -> str: ...

    def outputs(self, pixels: Tensor) -> Tensor:
        """Return the outputs, float32 (n, classes), for pixels (n, channels, size, size) of `Preprocessing.dtype`."""
        ...
