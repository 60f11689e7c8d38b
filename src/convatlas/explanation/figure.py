"""The figure of an explanation: the image, its heat map, the curves that measure it, and the feature maps by stage."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convatlas.draw.feature_maps import CELL, MapRow, plot_feature_maps, size_of_maps
from convatlas.draw.frame_strip import frame_strip
from convatlas.draw.heat_map import FINE, enlarge, enlargement, overlay, plot_curves
from convatlas.draw.objects import class_color, draw_objects
from convatlas.draw.style import INK, NOTE, default_settings, label, new_figure, save_figure
from convatlas.explanation.faithfulness import Faithfulness
from convatlas.explanation.feature_maps import StageMaps
from convatlas.tasks.score import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE = 2.7
"""Height of a plot of curves in inches."""

LINE, CAPTION_LINE = 0.19, 0.25
"""Height of a line of text, and of the caption of an image, in inches."""

CLIP_CELL = 1.4
"""Width of a feature map of a clip, a strip of frames, in inches."""

OUTLINED = " (outline: half of the maximum)"

BOLD_WRAP, WRAP = 11, 15
"""Characters per inch of the first line, which is bold, and of the others."""


@dataclass(frozen=True)
class Parts:
    """What is drawn of an explanation.

    lines: texts above the images; the first one is bold. view: ([frames,] channels, h, w). heatmap: ([frames,] h, w).
    grid: the size at which the heat map was computed.
    """

    lines: Sequence[str]
    score: Score
    view: Tensor
    heatmap: Tensor
    grid: tuple[int, ...]
    faithfulness: Faithfulness | None
    stages: Sequence[StageMaps]

    @property
    def is_fine(self) -> bool:
        """Whether the heat map is one of single pixels; see `draw.heat_map.FINE`."""
        return self.grid[-1] >= FINE * self.heatmap.shape[-1]

    def image(self) -> Tensor:
        """Return the image with the box of the score, or a strip of frames, (3, h, w) uint8."""
        frames = [_as_rgb(frame) for frame in self.view.reshape(-1, *self.view.shape[-3:])]
        return frame_strip(torch.stack([self._with_box(frame) for frame in frames]))

    def map(self) -> Tensor:
        """Return the heat map over the image, or a strip of frames, (3, h, w) uint8."""
        frames = self.view.reshape(-1, *self.view.shape[-3:])
        maps = self.heatmap.reshape(-1, *self.heatmap.shape[-2:])
        drawn = [overlay(frame, values, fine=self.is_fine) for frame, values in zip(frames, maps, strict=True)]
        return frame_strip(torch.stack([self._with_box(frame) for frame in drawn]))

    def _with_box(self, frame: Tensor) -> Tensor:
        """Return an image, which may be enlarged, with the box of the score."""
        if self.score.box is None:
            return frame
        box = torch.tensor([self.score.box]) * frame.shape[-1] / self.view.shape[-1]
        return draw_objects(frame, box, [self.score.label], colors=[class_color(self.score.index)])


def _as_rgb(pixels: Tensor) -> Tensor:
    """Return an image (channels, h, w) as it is shown: (3, h, w) uint8, small ones enlarged."""
    shown = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1].expand(3, -1, -1)
    return enlarge(shown.round().clamp(0, 255).byte() if shown.is_floating_point() else shown, enlargement(pixels))


def curves_of(measured: Faithfulness) -> list[tuple[str, str, dict[str, Tensor]]]:
    """Return title, label of the horizontal axis, and curves of the plots of insertion and deletion."""
    maps = {"heat map": measured.heatmap, "edge map": measured.edges, "random map": measured.random}
    own = measured.heatmap
    return [
        (f"insertion, area {own.insertion_area:.2f}", "pixels inserted, %", {k: c.insertion for k, c in maps.items()}),
        (f"deletion, area {own.deletion_area:.2f}", "pixels deleted, %", {k: c.deletion for k, c in maps.items()}),
    ]


def map_rows(stages: Sequence[StageMaps]) -> list[MapRow]:
    """Return the strongest feature maps of each stage as rows of a figure."""
    return [
        MapRow(f"{stage.path}, {stage.count:,} channels", stage.maps, [f"channel {k}" for k in stage.channels])
        for stage in stages
    ]


@default_settings()
def draw_explanation(parts: Parts, *, path: str | Path | None = None) -> Figure:
    """Draw one page: the image and its heat map, curves below, and the feature maps by stage on the right.

    Clips are strips of frames above the curves and the feature maps.
    """
    is_clip = parts.view.ndim == 4
    images = {"frames" if is_clip else "image": parts.image(), f"heat map{OUTLINED * (not parts.is_fine)}": parts.map()}
    rows = map_rows(parts.stages)
    plots = curves_of(parts.faithfulness) if parts.faithfulness is not None else []
    left = 2 * (CURVE + 0.3)
    right, maps = size_of_maps(rows, CLIP_CELL if is_clip else CELL) if rows else (0.0, 0.0)
    width, (rows_shown, columns_shown) = left + right, next(iter(images.values())).shape[1:]
    limits = [int(width * (WRAP if number else BOLD_WRAP)) for number in range(len(parts.lines))]
    lines = [textwrap.wrap(label(line, 300), limit) for line, limit in zip(parts.lines, limits, strict=True)]
    texts = [(piece, "normal" if number else "bold") for number, pieces in enumerate(lines) for piece in pieces]
    aspect = rows_shown / columns_shown
    shown = 2 * (width * aspect + CAPTION_LINE) if is_clip else min(1.2, aspect) * left / 2 + CAPTION_LINE
    curves, head = CURVE * bool(plots), LINE * len(texts) + 0.15
    height = head + (shown + max(curves, maps) if is_clip else max(shown + curves, maps))
    figure = new_figure(width, height)
    for number, (text, weight) in enumerate(texts):
        y = 1 - (0.16 + LINE * number) / height
        figure.text(0.1 / width, y, text, fontsize=9 if weight == "bold" else 8, color=INK, va="center", weight=weight)
    place = partial(_place, figure, width, height)
    _show_images(place(0, head, width if is_clip else left, shown), images, columns=1 if is_clip else 2)
    if plots:
        _plot(place(0, head + shown, left, curves), plots)
    if rows:
        plot_feature_maps(place(left, head + shown * is_clip, right, maps), rows)
    return save_figure(figure, path)


def _place(
    figure: Any, width: float, height: float, left: float, top: float, own_width: float, own_height: float
) -> Any:
    """Return a part of a figure of that width and height as a subfigure; all in inches, from the upper left corner."""
    sides = [(left, own_width, width), (top, own_height, height)]
    across, down = ([max(part, 1e-6) for part in (start, size, whole - start - size)] for start, size, whole in sides)
    return figure.add_subfigure(figure.add_gridspec(3, 3, width_ratios=across, height_ratios=down)[1, 1])


def _show_images(area: Any, images: Mapping[str, Tensor], *, columns: int) -> None:
    """Show images (3, h, w) below their captions."""
    rows, caption_share = len(images) // columns, CAPTION_LINE * area.dpi / area.bbox.height
    grid = area.add_gridspec(
        rows, columns, left=0.012, right=0.988, top=1 - caption_share, bottom=0, wspace=0.03,
        hspace=caption_share * rows / (1 - caption_share * rows),
    )  # fmt: skip
    for cell, (caption, pixels) in zip(grid, images.items(), strict=True):
        axes = area.add_subplot(cell)
        axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="antialiased")
        axes.set_anchor("NW")
        axes.set_axis_off()
        axes.set_title(caption, loc="left", fontsize=8, color=NOTE, pad=3)


def _plot(area: Any, plots: Sequence[tuple[str, str, Mapping[str, Tensor]]]) -> None:
    """Plot curves beside each other."""
    grid = area.add_gridspec(1, len(plots), left=0.09, right=0.985, top=0.88, bottom=0.18, wspace=0.28)
    for number, (title, x, values) in enumerate(plots):
        plot_curves(area.add_subplot(grid[number]), values, title=title, x=x, legend=number > 0)
