"""Contact sheets: many images on one page, with captions.

An image is an array (h, w), (h, w, 1) or (h, w, 3): uint8, or floats in [0, 1]; None leaves its place empty. The images
of a row may come from a generator; then one at a time is in memory at full size. Each function returns a matplotlib
figure and, with a `path`, writes it as SVG, PNG or PDF, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from convatlas.draw.charts import History, MetricColumn, plot_confusion, plot_loss, plot_metric
from convatlas.draw.style import INK, QUIET, RIGHT, WRONG, label, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ImageArray = NDArray[Any] | None

MAX_CAPTION = 20
"""Maximum length of a line of the caption of a row; of a longer one the middle is left out."""

MAX_PIXELS = 320
"""Larger images are shown with every second, third, ... pixel: still more than a page shows at this size."""


@dataclass(frozen=True)
class Captioned:
    """An image with a bold caption and a smaller note below it."""

    image: ImageArray
    caption: str
    note: str = ""


def contact_sheet(
    rows: Sequence[tuple[str, Iterable[ImageArray]]], *, columns: int = 10, path: str | Path | None = None
) -> Figure:
    """Draw rows of images, at most `columns` in a row, each row with a caption on the left."""
    width, height = 1.6 + 0.9 * columns, 0.95 * len(rows) + 0.2
    figure = new_figure(width, height)
    for row, (caption, images) in enumerate(rows):
        bottom = 1 - 0.95 * (row + 1) / height
        text = "\n".join(label(line, MAX_CAPTION) for line in caption.split("\n"))
        figure.text(0.01, bottom + 0.4 / height, text, fontsize=8, color=INK, va="center")
        for column, image in zip(range(columns), images, strict=False):
            left = (1.6 + 0.9 * column) / width
            _show(figure.add_axes((left, bottom, 0.85 / width, 0.9 / height)), image)
    return save_figure(figure, path)


def captioned_images(images: Sequence[Captioned], *, columns: int = 6, path: str | Path | None = None) -> Figure:
    """Draw images in a grid, each with its caption and note below."""
    rows = -(-len(images) // columns)
    width, height = 1.9 * columns, 2.25 * rows
    figure = new_figure(width, height)
    for i, each in enumerate(images):
        row, column = divmod(i, columns)
        left, top = (column + 0.04) / columns, 1 - (row + 0.84) / rows
        _show(figure.add_axes((left, top + 0.02 / rows, 0.92 / columns, 0.78 / rows)), each.image)
        figure.text(left, top, label(each.caption, 26), fontsize=8, color=INK, va="top", weight="bold")
        figure.text(left, top - 0.17 / height, label(each.note, 32), fontsize=6.5, color=QUIET, va="top")
    return save_figure(figure, path)


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
    path: str | Path | None = None,
) -> Figure:
    """Draw one page about a classifier: images with their most probable classes, learning curves, confusion matrix.

    images: (n, channels, h, w) uint8, of which at most 16 are shown, with probabilities (n, classes) and labels (n,).
    confusion, history, columns: as in `charts.confusion` and `charts.curves`.
    """
    figure = new_figure(13, 7.4)
    figure.suptitle(label(title, 110), x=0.03, y=0.975, ha="left", fontsize=14, weight="bold", color=INK)
    left = figure.add_gridspec(4, 4, left=0.03, right=0.61, top=0.9, bottom=0.04, wspace=0.12, hspace=0.12)
    for i in range(min(16, len(images))):
        cell = left[divmod(i, 4)].subgridspec(1, 2, wspace=0.1)
        _show(figure.add_subplot(cell[0]), images[i].permute(1, 2, 0).numpy(), gray="gray_r")
        _plot_top_classes(figure.add_subplot(cell[1]), probabilities[i], int(labels[i]), classes)
    right = figure.add_gridspec(
        2, 2, left=0.665, right=0.985, top=0.88, bottom=0.08, hspace=0.3, wspace=0.35, height_ratios=(1, 1.9)
    )
    plot_loss(figure.add_subplot(right[0, 0]), history)
    plot_metric(figure.add_subplot(right[0, 1]), history, columns)
    plot_confusion(figure.add_subplot(right[1, :]), confusion, classes)
    figure.text(0.03, 0.925, "the three most probable classes:", fontsize=8.5, color=INK)
    for x, text, color in ((0.187, "true class", RIGHT), (0.262, "wrong prediction", WRONG), (0.37, "others", QUIET)):
        figure.text(x, 0.925, text, fontsize=8.5, color=color, weight="bold")
    return save_figure(figure, path)


def _show(axes: Any, image: ImageArray, *, gray: str = "gray") -> None:
    """Show an image without axes, at a size for the eye."""
    axes.set_axis_off()
    if image is None:
        return
    step = max(1, max(image.shape[:2]) // MAX_PIXELS)
    small = image[::step, ::step].copy()  # a view would keep the whole image
    if small.ndim == 3 and small.shape[2] == 1:
        small = small[..., 0]
    limits = {"cmap": gray, "vmin": 0, "vmax": 255 if small.dtype.kind == "u" else 1} if small.ndim == 2 else {}
    axes.imshow(small, **limits)


def _plot_top_classes(axes: Any, probabilities: Tensor, truth: int, classes: Sequence[str]) -> None:
    """Draw the most probable classes as bars: the true one in one color, a wrong first one in another."""
    top = probabilities.topk(min(3, len(classes)))
    for place, (p, index) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
        color = RIGHT if index == truth else WRONG if place == 0 else QUIET
        axes.text(0.0, -place - 0.02, f"{label(classes[index], 14)}  {p:.1%}", fontsize=7.5, color=INK, va="bottom")
        axes.barh(-place - 0.18, max(p, 0.004), color=color, height=0.22)
    axes.set_xlim(0, 1.05)
    axes.set_ylim(-3.0, 1.0)
    axes.set_axis_off()
