"""Images side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from convatlas.draw.charts import History, MetricColumn, draw_bars, draw_confusion, draw_curves
from convatlas.draw.style import INK, QUIET, RIGHT, WRONG, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ImageArray = NDArray[Any] | None
"""An image (height, width, 3), floats from 0 to 1 or uint8; None leaves its place empty."""


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[ImageArray]]], *, columns: int = 10, path: Path | None = None
) -> Figure:
    """Return rows of images, each with a caption on the left; saved if a path is given."""
    width, height = 1.6 + 0.9 * columns, 0.95 * len(rows) + 0.2
    figure = new_figure(width, height)
    for number, (caption, images) in enumerate(rows):
        bottom = 1 - (number + 1) / (len(rows) + 0.2)
        figure.text(0.01, bottom + 0.4 / (len(rows) + 0.2), caption, fontsize=8, color=INK, va="center")
        for column, image in enumerate(images[:columns]):
            left = (1.6 + 0.9 * column) / width
            axes = figure.add_axes((left, bottom, 0.85 / width, 0.9 / (len(rows) + 0.2)))
            _show(axes, image)
    return save_figure(figure, path)


@dataclass(frozen=True)
class Captioned:
    """An image with a bold caption and a quiet note below it."""

    image: ImageArray
    caption: str
    note: str = ""


def captioned_images(images: Sequence[Captioned], *, columns: int = 6, path: Path | None = None) -> Figure:
    """Return images in a grid, each with its caption below; saved if a path is given."""
    rows = -(-len(images) // columns)
    height = 2.25 * rows
    figure = new_figure(1.9 * columns, height)
    for i, each in enumerate(images):
        row, column = divmod(i, columns)
        axes = figure.add_axes(((column + 0.04) / columns, 1 - (row + 0.82) / rows, 0.92 / columns, 0.78 / rows))
        _show(axes, each.image)
        left, top = (column + 0.04) / columns, 1 - (row + 0.84) / rows
        figure.text(left, top, each.caption[:26], fontsize=8, color=INK, va="top", weight="bold")
        figure.text(left, top - 0.17 / height, each.note, fontsize=6.5, color=QUIET, va="top")
    return save_figure(figure, path)


def _show(axes: Any, image: ImageArray) -> None:
    if image is not None:
        axes.imshow(image)
    axes.set_axis_off()


def overview(
    images: Tensor,
    probabilities: Tensor,
    labels: Tensor,
    confusion: Tensor,
    history: History,
    *,
    columns: Sequence[MetricColumn],
    classes: Sequence[str],
    title: str,
    path: Path | None = None,
) -> Figure:
    """Return one page: images with their most probable classes, learning curves, confusion matrix.

    images: (n, channels, h, w) uint8, of which at most 16 are shown, with probabilities (n, classes) and labels (n,).
    confusion: counts (classes, classes) over a whole split. columns: metrics of the learning curves.
    """
    count, per_row = min(16, len(images)), 4
    figure = new_figure(13, 7.4)
    figure.suptitle(title, x=0.03, y=0.975, ha="left", fontsize=14, weight="bold", color=INK)
    left = figure.add_gridspec(4, per_row, left=0.03, right=0.61, top=0.9, bottom=0.04, wspace=0.12, hspace=0.12)
    for i in range(count):
        cell = left[divmod(i, per_row)].subgridspec(1, 2, wspace=0.1)
        axes = figure.add_subplot(cell[0])
        axes.imshow(images[i].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray_r" if images.shape[1] == 1 else None)
        axes.set_axis_off()
        draw_bars(figure.add_subplot(cell[1]), probabilities[i], int(labels[i]), classes)
    right = figure.add_gridspec(
        2, 2, left=0.665, right=0.985, top=0.88, bottom=0.08, hspace=0.3, wspace=0.35, height_ratios=(1, 1.9)
    )
    draw_curves(figure.add_subplot(right[0, 0]), figure.add_subplot(right[0, 1]), history, columns)
    draw_confusion(figure.add_subplot(right[1, :]), confusion, classes)
    figure.text(0.03, 0.925, "the three most probable classes:", fontsize=8.5, color=INK)
    legend = ((0.187, "true class", RIGHT), (0.262, "wrong prediction", WRONG), (0.37, "others", QUIET))
    for x, text, color in legend:
        figure.text(x, 0.925, text, fontsize=8.5, color=color, weight="bold")
    return save_figure(figure, path)
