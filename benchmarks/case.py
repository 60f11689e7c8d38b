"""What a benchmark of training steps measures: a network, its batch size and its resolution."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """A network, its batch size, and its resolution in pixels; of detectors, the short side of resized images."""

    name: str
    batch: int
    resolution: int

    @classmethod
    def parse(cls, text: str, *, batch: int, resolution: int) -> Case:
        """Read NAME[:BATCH[:RESOLUTION]]; batch and resolution are the defaults."""
        name, *numbers = text.split(":")
        return cls(name, *[*map(int, numbers), *(batch, resolution)[len(numbers) :]])

    def __str__(self) -> str:
        return f"{self.name}:{self.batch}:{self.resolution}"
