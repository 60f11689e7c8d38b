"""Images side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from convatlas.draw.charts import _bars, _confusion, _curves, _seen
from convatlas.draw.style import INK, QUIET, RIGHT, WRONG, _figure, _save
from convatlas.errors import DataError
from convatlas.tasks.classification.results import Result

if TYPE_CHECKING:
    from convatlas.data.check import Check


def draw_sheet(checked: Check, path: Path, *, columns: int = 10, rows: int = 24) -> None:
    """Save a contact sheet: training images of every class, then groups that are the same or nearly so."""
    lines: list[tuple[str, list[str]]] = []
    for label, name in enumerate(checked.classes[:rows]):
        good = [p for p in checked.images if label in p.labels and p.split == "train" and not p.unreadable]
        step = max(1, len(good) // columns)
        lines.append((f"{name}\n{len(good):,}", [p.name for p in good[::step][:columns]]))
    for what, groups in (("copies", checked.same), ("nearly", checked.near)):
        for group in groups[:6]:
            told = ", ".join(dict.fromkeys(f"{p.split}/{checked.named(p)}" for p in group))
            lines.append((f"{what}\n{told[:24]}", [p.name for p in group[:columns]]))
    figure = _figure(1.6 + 0.9 * columns, 0.95 * len(lines) + 0.2)
    for row, (told, names) in enumerate(lines):
        top = 1 - (row + 1) / (len(lines) + 0.2)
        figure.text(0.01, top + 0.4 / (len(lines) + 0.2), told, fontsize=8, color=INK, va="center")
        for column, name in enumerate(names):
            axes = figure.add_axes(((1.6 + 0.9 * column) / (1.6 + 0.9 * columns), top, 0.85 / (1.6 + 0.9 * columns),
                                    0.9 / (len(lines) + 0.2)))  # fmt: skip
            with suppress(DataError):
                axes.imshow(_seen(Path(name)))
            axes.set_axis_off()
    _save(figure, path)


def draw_answers(answers: Sequence[tuple[str, str, float]], path: Path, *, columns: int = 6) -> None:
    """Save a contact sheet of image files with what was said about each: (file, answer, probability)."""
    rows = -(-len(answers) // columns)
    width, height = 1.9 * columns, 2.25 * rows
    figure = _figure(width, height)
    for i, (name, answer, probability) in enumerate(answers):
        row, column = divmod(i, columns)
        axes = figure.add_axes(((column + 0.04) / columns, 1 - (row + 0.82) / rows, 0.92 / columns, 0.78 / rows))
        with suppress(DataError):
            axes.imshow(_seen(Path(name)))
        axes.set_axis_off()
        left, top = (column + 0.04) / columns, 1 - (row + 0.84) / rows
        figure.text(left, top, answer[:26], fontsize=8, color=INK, va="top", weight="bold")
        told = f"{probability:.1%}  {Path(name).name[:22]}"
        figure.text(left, top - 0.17 / height, told, fontsize=6.5, color=QUIET, va="top")
    _save(figure, path)


def draw_overview(
    images: Tensor,
    shown: Result,
    result: Result,
    history: Sequence[dict[str, float]],
    *,
    classes: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Save one page: images with their predicted probabilities, learning curves, confusion matrix.

    images: (n, channels, h, w) uint8, at most 16 are shown; `shown` is what the network says about them.
    result: the whole split that is summed up in the matrix.
    """
    count, columns = min(16, len(images)), 4
    figure = _figure(13, 7.4)
    figure.suptitle(title, x=0.03, y=0.975, ha="left", fontsize=14, weight="bold", color=INK)
    left = figure.add_gridspec(4, columns, left=0.03, right=0.61, top=0.9, bottom=0.04, wspace=0.12, hspace=0.12)
    for i in range(count):
        cell = left[divmod(i, columns)].subgridspec(1, 2, wspace=0.1)
        axes = figure.add_subplot(cell[0])
        axes.imshow(images[i].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray_r" if images.shape[1] == 1 else None)
        axes.set_axis_off()
        _bars(figure.add_subplot(cell[1]), shown.probabilities[i], int(shown.labels[i]), classes)
    right = figure.add_gridspec(
        2, 2, left=0.665, right=0.985, top=0.88, bottom=0.08, hspace=0.3, wspace=0.35, height_ratios=(1, 1.9)
    )
    _curves(figure.add_subplot(right[0, 0]), figure.add_subplot(right[0, 1]), history)
    _confusion(figure.add_subplot(right[1, :]), result, classes)
    figure.text(0.03, 0.925, "the three most probable classes:", fontsize=8.5, color=INK)
    for x, text, color in ((0.187, "the true one", RIGHT), (0.262, "a wrong answer", WRONG), (0.35, "others", QUIET)):
        figure.text(x, 0.925, text, fontsize=8.5, color=color, weight="bold")
    _save(figure, path)
