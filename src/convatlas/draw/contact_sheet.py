"""Contact sheets: many images on one page, with captions.

An image is an array (h, w), (h, w, 1) or (h, w, 3): uint8, or floats in [0, 1]; None leaves its place empty. The images
of a row may come from a generator; one at a time is in memory at full size. Each function returns a matplotlib
figure and, with a `path`, writes it as SVG, PNG or PDF, too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from convatlas.draw.charts import History, MetricColumn, plot_loss, plot_metric
from convatlas.draw.confusion import plot_confusion
from convatlas.draw.names import Names
from convatlas.draw.style import INK, NOTE, QUIET, RIGHT, WRONG, default_settings, label, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ImageArray = NDArray[Any] | None

CAPTION_WIDTH, MAX_CAPTION_LINES = 22, 4
"""Maximum length of a line of the caption of a row, and of the lines that a line of text is wrapped into."""

MAX_PIXELS = 320
"""Larger images are shown with every second, third, ... pixel: still more than a page shows at this size."""

SHARP_BELOW = 64
"""Smaller images are shown pixel by pixel."""

STRIP_ASPECT, STRIP_WIDTH = 3.0, 3.8
"""Width over height from which images get wide, low places, as strips of frames do; width of these in inches."""


@dataclass(frozen=True)
class Captioned:
    """An image with a bold caption and a smaller note below it."""

    image: ImageArray
    caption: str
    note: str = ""


@default_settings()
def contact_sheet(
    rows: Sequence[tuple[str, Iterable[ImageArray]]],
    *,
    columns: int = 10,
    cell: float = 0.9,
    path: str | Path | None = None,
) -> Figure:
    """Draw rows of images, each row with a caption on the left; there are as many columns as the longest row needs.

    columns: maximum number of images of a row that are shown. cell: width of the place of an image, in inches.
    """
    shown = [
        (caption, [_small(image) for _, image in zip(range(columns), images, strict=False)]) for caption, images in rows
    ]
    columns = max([1, *(len(images) for _, images in shown)])
    names = Names()
    width, height = 1.8 + cell * columns, 0.95 * max(1, len(rows)) + 0.2
    figure = new_figure(width, height)
    for row, (caption, images) in enumerate(shown):
        bottom = 1 - 0.95 * (row + 1) / height
        lines = [_wrap(names.label(line, 200), CAPTION_WIDTH, MAX_CAPTION_LINES) for line in caption.split("\n")]
        figure.text(0.1 / width, bottom + 0.45 / height, "\n".join(lines), fontsize=8, color=INK, va="center")
        for column, image in enumerate(images):
            left = (1.75 + cell * column) / width
            _show(figure.add_axes((left, bottom, (cell - 0.05) / width, 0.9 / height)), image)
    names.add_legend(figure)
    return save_figure(figure, path)


@default_settings()
def captioned_images(images: Sequence[Captioned], *, columns: int = 6, path: str | Path | None = None) -> Figure:
    """Draw images in a grid of at most `columns`, each with its caption and note below."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    names = Names()
    captions = [_wrap(names.label(each.caption, 66), 22, 3) for each in images]
    notes = [_wrap(names.label(each.note, 78), 34, 3) for each in images]
    lines = max([1, *(text.count("\n") + 1 for text in captions)])
    aspect = min([each.image.shape[1] / each.image.shape[0] for each in images if each.image is not None], default=1.0)
    cell_width, image_height = (1.9, 1.75) if aspect < STRIP_ASPECT else (STRIP_WIDTH, 0.92 * STRIP_WIDTH / aspect)
    cell = image_height + 0.21 + 0.14 * lines + 0.12 * max([1, *(text.count("\n") + 1 for text in notes)])
    width, height = cell_width * columns, cell * rows
    figure = new_figure(width, height)
    for i, (each, caption, note) in enumerate(zip(images, captions, notes, strict=True)):
        row, column = divmod(i, columns)
        left, top = (column + 0.04) / columns, 1 - (row * cell + 0.06) / height
        bottom = top - image_height / height
        _show(figure.add_axes((left, bottom, 0.92 / columns, image_height / height)), _small(each.image))
        below = bottom - 0.06 / height
        figure.text(left, below, caption, fontsize=8, color=INK, va="top", weight="bold")
        below -= 0.14 * (caption.count("\n") + 1) / height
        figure.text(left, below, note, fontsize=6.5, color=NOTE, va="top")
    names.add_legend(figure)
    return save_figure(figure, path)


def _wrap(text: str, width: int, lines: int) -> str:
    """Return text in at most that many lines; those of a longer one are cut."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" ...", break_on_hyphens=False))


@default_settings()
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
    figure = new_figure(13, 7)
    names = Names(classes)
    figure.suptitle(label(title, 110), x=0.03, y=0.975, ha="left", fontsize=14, weight="bold", color=INK)
    left = figure.add_gridspec(4, 4, left=0.03, right=0.6, top=0.88, bottom=0.03, wspace=0.1, hspace=0.16)
    for i in range(min(16, len(images))):
        cell = left[divmod(i, 4)].subgridspec(1, 2, wspace=0.08, width_ratios=(1.3, 1))
        axes = figure.add_subplot(cell[0])
        _show(axes, _small(images[i].permute(1, 2, 0).numpy()), gray="gray_r")
        _frame(axes, wrong=int(probabilities[i].argmax()) != int(labels[i]))
        _plot_top_classes(figure.add_subplot(cell[1]), probabilities[i], int(labels[i]), classes, names)
    right = figure.add_gridspec(
        2, 2, left=0.645, right=0.99, top=0.9, bottom=0.075, hspace=0.3, wspace=0.25, height_ratios=(1, 2)
    )
    plot_loss(figure.add_subplot(right[0, 0]), history)
    plot_metric(figure.add_subplot(right[0, 1]), history, columns)
    plot_confusion(figure.add_subplot(right[1, :]), confusion, classes, names)
    figure.text(0.03, 0.92, "the three most probable classes:", fontsize=8.5, color=INK)
    for x, text, color in ((0.187, "true class", RIGHT), (0.262, "wrong prediction", WRONG), (0.37, "others", NOTE)):
        figure.text(x, 0.92, text, fontsize=8.5, color=color, weight="bold")
    names.add_legend(figure)
    return save_figure(figure, path)


def _small(image: ImageArray) -> ImageArray:
    """Return a copy of an image at a size for the eye; a view would keep the whole image."""
    if image is None:
        return None
    step = max(1, max(image.shape[:2]) // MAX_PIXELS)
    small = image[::step, ::step].copy()
    return small[..., 0] if small.ndim == 3 and small.shape[2] == 1 else small


def _show(axes: Any, image: ImageArray, *, gray: str = "gray") -> None:
    """Show an image without axes."""
    axes.set_axis_off()
    if image is None:
        return
    limits = {"cmap": gray, "vmin": 0, "vmax": 255 if image.dtype.kind == "u" else 1} if image.ndim == 2 else {}
    axes.imshow(image, interpolation="nearest" if max(image.shape) < SHARP_BELOW else "antialiased", **limits)


def _frame(axes: Any, *, wrong: bool) -> None:
    """Draw a frame around an image: a thick one in the color of errors, or a thin one."""
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=WRONG if wrong else QUIET, linewidth=3 if wrong else 0.6)


def _plot_top_classes(axes: Any, probabilities: Tensor, truth: int, classes: Sequence[str], names: Names) -> None:
    """Draw the most probable classes as bars: the true one in one color, a wrong first one in another."""
    top = probabilities.topk(min(3, len(classes)))
    for place, (p, index) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
        color = RIGHT if index == truth else WRONG if place == 0 else QUIET
        axes.text(0.0, -place, f"{names.label(classes[index], 14)}  {p:.1%}", fontsize=8, color=INK, va="bottom")
        axes.barh(-place - 0.14, max(p, 0.004), color=color, height=0.2)
    axes.set_xlim(0, 1.05)
    axes.set_ylim(-2.6, 0.7)
    axes.set_axis_off()
