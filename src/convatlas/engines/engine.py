"""The protocol of inference engines."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Engine(Protocol):
    """Runs a network."""

    @property
    def name(self) -> str:
        """One of `select.ENGINES`."""
        ...

    def outputs(self, pixels: Tensor) -> Tensor:
        """Return outputs, float32 (n, outputs), for pixels (n, channels, size, size) of `Preprocessing.dtype`."""
        ...
