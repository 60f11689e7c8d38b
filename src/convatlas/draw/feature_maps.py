"""Feature maps: rows of small gray images, one row for each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from convatlas.draw.frame_strip import frame_strip
from convatlas.draw.heat_map import enlarge
from convatlas.draw.style import INK, NOTE, label

CELL, CAPTION = 0.95, 1.75
"""Width of a map, and of the caption of a row, in inches."""

LINE, BORDER = 0.17, 0.01
"""Height of the notes above a row, and of the border below the last one, in inches."""

FRAMES = 3
"""Number of frames of a map of a clip that are shown."""

MIN_SIDE = 32
"""Smaller frames are enlarged, because the gap between two frames is of `GAP` pixels."""


class MapRow(NamedTuple):
    """The maps of one layer: (k, h, w), of clips (k, frames, h, w), each with a note such as "channel 12"."""

    caption: str
    maps: Tensor
    notes: Sequence[str]


def size_of_maps(rows: Sequence[MapRow], cell: float = CELL) -> tuple[float, float]:
    """Return width and height of rows of maps in inches. cell: width of a map; it is at most as high as wide."""
    columns = max(len(row.maps) for row in rows)
    return CAPTION + cell * columns, sum(LINE + height for height in _heights(rows, cell)) + BORDER


def _heights(rows: Sequence[MapRow], cell: float) -> list[float]:
    """Return the height of the maps of each row in inches; all frames of clips are equally wide."""
    heights = []
    for row in rows:
        *frames, height, width = row.maps.shape[1:]
        heights.append(cell * min(1.0, height / (width * (FRAMES if frames else 1))))
    return heights


def plot_feature_maps(area: Any, rows: Sequence[MapRow]) -> None:
    """Draw the maps of each layer in a row; black is the smallest value of a map, white its largest.

    area: a figure or subfigure; see `size_of_maps`.
    """
    columns = max(len(row.maps) for row in rows)
    width, height = (side / area.dpi for side in (area.bbox.width, area.bbox.height))
    heights = [part for own in _heights(rows, (width - CAPTION) / columns) for part in (LINE, own)]
    grid = area.add_gridspec(
        2 * len(rows), columns, height_ratios=heights, left=CAPTION / width, right=0.995, top=1,
        bottom=BORDER / height, wspace=0.06, hspace=0,
    )  # fmt: skip
    for number, row in enumerate(rows):
        for column, (values, note) in enumerate(zip(row.maps, row.notes, strict=True)):
            axes = area.add_subplot(grid[2 * number + 1, column])
            axes.imshow(to_gray(values), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_anchor("W")
            axes.set_axis_off()
            axes.set_title(label(note, 24), fontsize=6, color=NOTE, pad=2)
            if not column:
                axes.annotate(
                    label(row.caption, 60).replace(", ", ",\n"), (0, 0.5), xytext=(-6, 0), xycoords="axes fraction",
                    textcoords="offset points", ha="right", va="center", fontsize=7.5, color=INK,
                )  # fmt: skip


def to_gray(values: Tensor) -> Any:
    """Return a map (h, w) as grays from 0, its smallest value, to 1, its largest; of a clip, a strip of frames."""
    low, high = values.min(), values.max()
    gray = (values - low) / (high - low) if high > low else values * 0
    if gray.ndim == 3:
        frames = enlarge((gray * 255).unsqueeze(1), math.ceil(MIN_SIDE / max(gray.shape[-2:])))
        return (frame_strip(frames, FRAMES)[0] / 255).numpy(force=True)
    return gray.numpy(force=True)
