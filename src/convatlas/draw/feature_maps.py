"""Feature maps: rows of small gray images, one row for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from convatlas.draw.frame_strip import frame_strip
from convatlas.draw.style import INK, NOTE, default_settings, label, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL, CAPTION = 0.95, 1.75
"""Side of a map, and width of the caption of a row, in inches."""

FRAMES = 3
"""Number of frames of a map of a clip that are shown."""


class MapRow(NamedTuple):
    """The maps of one layer: (k, h, w), of clips (k, frames, h, w), each with a note such as "channel 12"."""

    caption: str
    maps: Tensor
    notes: Sequence[str]


@default_settings()
def feature_maps(rows: Sequence[MapRow], *, path: str | Path | None = None) -> Figure:
    """Draw the maps of each layer in a row; black is the smallest value of a map, white its largest."""
    columns = max(1, *(len(row.maps) for row in rows)) if rows else 1
    figure = new_figure(CAPTION + CELL * columns, 0.1 + 1.15 * CELL * max(1, len(rows)))
    plot_feature_maps(figure, rows)
    return save_figure(figure, path)


def plot_feature_maps(area: Any, rows: Sequence[MapRow]) -> None:
    """Draw rows of maps into a figure or subfigure, captions on the left; see `feature_maps`."""
    columns = max([1, *(len(row.maps) for row in rows)])
    share = CAPTION / (CAPTION + CELL * columns)
    inch = area.dpi / area.bbox.height  # as a share of the height
    grid = area.add_gridspec(
        max(1, len(rows)), columns, left=share, right=0.995, top=1 - 0.17 * inch, bottom=0.005, wspace=0.06, hspace=0.2
    )
    for number, row in enumerate(rows):
        for column, (values, note) in enumerate(zip(row.maps, row.notes, strict=True)):
            axes = area.add_subplot(grid[number, column])
            axes.imshow(to_gray(values), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
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
        strip = frame_strip((gray * 255).unsqueeze(1), FRAMES)[0]
        return (strip / 255).numpy(force=True)
    return gray.numpy(force=True)
