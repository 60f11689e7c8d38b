"""Charts of training, evaluation and benchmarks, from plain numbers.

Each function returns a matplotlib figure and, with a `path`, writes it as SVG, PNG or PDF, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from convatlas.draw.style import INK, QUIET, RIGHT, TRAIN, WRONG, label, lay_out, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MetricColumn(Protocol):
    """A metric of the history. key: "{split}_{metric}". form: its format. complement: 1 - value is drawn."""

    @property
    def key(self) -> str: ...
    @property
    def heading(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def complement(self) -> bool: ...


History = Sequence[Mapping[str, float]]
"""One row of metrics for each epoch; keys as in metrics.csv: epoch, train_loss, val_loss, val_accuracy, ..."""

MAX_CLASSES_IN_FULL = 20
"""Maximum number of classes for which a confusion matrix shows names and counts."""

MAX_NAME = 24
"""Maximum length of the name of a class in a figure; of a longer one the middle is left out."""

NUM_HIGHLIGHTED = 10
"""Number of classes, those with the lowest average precision, whose precision-recall curve has a color and a name."""


def curves(history: History, columns: Sequence[MetricColumn], *, path: str | Path | None = None) -> Figure:
    """Draw the learning curves of a run: loss (log scale) and metric against epochs, for train and val.

    columns: the metric of train and that of val. That of train is drawn only if it is the same metric.
    """
    figure = new_figure(7, 2.8)
    plot_loss(figure.add_subplot(1, 2, 1), history)
    plot_metric(figure.add_subplot(1, 2, 2), history, columns)
    lay_out(figure)
    return save_figure(figure, path)


def plot_loss(axes: Any, history: History) -> None:
    for split in ("train", "val"):
        _plot_split(axes, history, split, f"{split}_loss")
    _style_epochs(axes, "loss")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter("{x:g}")
    # the numbers between powers of ten are needed for a short range, and have no room in a long one
    axes.yaxis.set_minor_formatter("{x:g}" if high < 30 * low else "")
    axes.tick_params(which="minor", colors=INK, labelsize=7)


def plot_metric(axes: Any, history: History, columns: Sequence[MetricColumn]) -> None:
    present = [column for column in columns if any(column.key in row for row in history)]
    title = ""
    for column in present:
        split, _, metric = column.key.partition("_")
        if metric != present[-1].key.partition("_")[2]:
            continue
        percent = column.form.endswith("%")
        _plot_split(axes, history, split, column.key, factor=100 if percent else 1, complement=column.complement)
        title = column.heading.removeprefix(f"{split} ") + (", %" if percent else "")
    _style_epochs(axes, title)
    axes.set_ylim(bottom=0)


def _plot_split(
    axes: Any, history: History, split: str, key: str, *, factor: float = 1, complement: bool = False
) -> None:
    rows = [row for row in history if key in row]
    if rows:
        values = [factor * (1 - row[key] if complement else row[key]) for row in rows]
        color = RIGHT if split == "val" else TRAIN
        epochs = [row["epoch"] for row in rows]
        axes.plot(epochs, values, color=color, linewidth=1.8, marker="o", markersize=2.5, label=split)


def _style_epochs(axes: Any, title: str) -> None:
    style_axes(axes, x="epoch", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, labelcolor="linecolor")


def lr_finder(
    rates: Sequence[float], losses: Sequence[float], chosen: float, *, path: str | Path | None = None
) -> Figure:
    """Draw the loss against the learning rate (log scale), and the learning rate that was chosen."""
    figure = new_figure(4.6, 3)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=TRAIN, linewidth=1.8)
    axes.axvline(chosen, color=RIGHT, linewidth=1.2)
    axes.text(chosen, max(losses), f" {chosen:.2g}", color=RIGHT, fontsize=8, va="top")
    axes.set_xscale("log")
    style_axes(axes, x="learning rate", title="loss")
    lay_out(figure)
    return save_figure(figure, path)


def confusion(counts: Tensor, classes: Sequence[str], *, path: str | Path | None = None) -> Figure:
    """Draw a confusion matrix; errors are colored by their share of the true class.

    counts: (classes, classes), row = true class, column = predicted class; written into the cells of up to 20 classes.
    """
    side = min(9.0, 2.2 + 0.42 * len(classes)) if len(classes) <= MAX_CLASSES_IN_FULL else 7.0
    figure = new_figure(side + 1, side)
    plot_confusion(figure.add_subplot(), counts, classes)
    lay_out(figure)
    return save_figure(figure, path)


def plot_confusion(axes: Any, counts: Tensor, classes: Sequence[str]) -> None:
    counts = counts.double()
    errors = (counts / counts.sum(1, keepdim=True).clamp(min=1)).fill_diagonal_(0)
    axes.imshow(errors.numpy(), cmap="Reds", vmin=0, vmax=max(0.05, float(errors.max()) * 1.3))
    if len(classes) <= MAX_CLASSES_IN_FULL:
        for row, column in torch.nonzero(counts).tolist():
            correct = row == column
            axes.text(
                column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=7,
                color=QUIET if correct else INK, weight="normal" if correct else "bold",
            )  # fmt: skip
        names = [label(name, MAX_NAME) for name in classes]
        names_are_short = max(map(len, names)) <= 2
        axes.set_xticks(range(len(names)), names, **({} if names_are_short else {"rotation": 60, "ha": "right"}))
        axes.set_yticks(range(len(names)), names)
    style_axes(axes, x="predicted", y="true")
    axes.tick_params(labelsize=7, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def precision_recall(
    probabilities: Tensor, labels: Tensor, average_precisions: Tensor, classes: Sequence[str], *,
    path: str | Path | None = None,
) -> Figure:  # fmt: skip
    """Draw precision against recall, a line for each class; those with the lowest average precision have a color.

    probabilities, labels: (n, classes), labels 0 or 1. average_precisions: (classes,), NaN for a class without images.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    order = average_precisions.nan_to_num(2).argsort(descending=True).tolist()
    for place, index in enumerate(order):
        truth = labels[:, index]
        if not truth.any():
            continue
        hits = truth[probabilities[:, index].argsort(descending=True)].cumsum(0)
        recall, precision = hits / truth.sum(), hits / torch.arange(1, len(hits) + 1)
        if place >= len(order) - NUM_HIGHLIGHTED:
            name = f"{label(classes[index], MAX_NAME)} {average_precisions[index]:.2f}"
            axes.plot(recall, precision, linewidth=1.3, label=name)
        else:
            axes.plot(recall, precision, linewidth=0.7, color=QUIET)
    style_axes(axes, x="recall", y="precision")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    lay_out(figure)
    return save_figure(figure, path)


def reliability(bins: Sequence[tuple[float, float, int]], *, path: str | Path | None = None) -> Figure:
    """Draw accuracy against confidence; a calibrated network is on the diagonal (Guo et al. 2017, figure 1).

    bins: (mean confidence, accuracy, number of predictions) of each bin that is not empty.
    """
    figure = new_figure(3.6, 3.4)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--")
    total = sum(count for _, _, count in bins)
    for confidence, accuracy, count in bins:
        axes.plot([confidence] * 2, [confidence, accuracy], color=WRONG, linewidth=1)
        axes.scatter(confidence, accuracy, s=12 + 160 * count / total, color=RIGHT, zorder=3, linewidths=0)
    style_axes(axes, x="confidence", y="accuracy")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    lay_out(figure)
    return save_figure(figure, path)


def latencies(
    rows: Sequence[tuple[str, str, float, float]], *, value: str, batch: int = 1, path: str | Path | None = None
) -> Figure:
    """Draw a value, such as accuracy, against latency (log scale).

    rows: (model, engine, milliseconds, value). value: the title of the y axis, with its unit. batch: images per call.
    """
    figure = new_figure(6.4, 4)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for model, engine, milliseconds, height in rows:
        axes.scatter(milliseconds, height, s=30, color=RIGHT, linewidths=0)
        text = f"{label(model, MAX_NAME)}\n{label(engine, MAX_NAME)}"
        axes.annotate(text, (milliseconds, height), textcoords="offset points", xytext=(6, -3),
                      fontsize=7, color=INK)  # fmt: skip
    style_axes(axes, x=f"milliseconds for {batch} images" if batch > 1 else "milliseconds per image", title=value)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.25, y=0.2)
    left, right = axes.get_xlim()
    if right < 30 * left:  # hardly a power of ten: minor ticks need labels, and there is room for them
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="minor", colors=QUIET, labelsize=6)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    lay_out(figure)
    return save_figure(figure, path)
