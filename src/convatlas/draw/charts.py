"""Charts of training, evaluation and benchmarks, from plain numbers.

Each function returns a matplotlib figure and, with a `path`, writes it as SVG, PNG or PDF, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from convatlas.draw.confusion import matrix_side, plot_confusion
from convatlas.draw.names import MAX_NAME, Names
from convatlas.draw.style import (
    INK,
    NOTE,
    QUIET,
    RIGHT,
    TRAIN,
    WRONG,
    default_settings,
    lay_out,
    new_figure,
    save_figure,
    style_axes,
)
from convatlas.draw.ticks import LARGEST, set_log_axis

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

NUM_HIGHLIGHTED = 10
"""Number of classes, those with the lowest average precision, whose precision-recall curve has a color and a name."""

TERM_COLORS = ("#5b8c5a", "#8a6fb0", "#c9788f", "#4f7cac", "#a68a64", "#7d8f99")
"""Lines of the terms of a loss."""

MAX_POINTS = 200
"""Maximum number of points of a precision-recall curve."""


@default_settings()
def curves(history: History, columns: Sequence[MetricColumn], *, path: str | Path | None = None) -> Figure:
    """Draw the learning curves of a run: loss (log scale) and metric against epochs, for train and val.

    A vertical line marks the best epoch, a dotted curve the learning rate.
    columns: the metrics of train and that of val. Those of train that are terms of the loss are drawn beside it;
    another one is drawn only if it is the metric of val.
    """
    figure = new_figure(7.4, 2.9)
    plot_loss(figure.add_subplot(1, 2, 1), history, columns)
    plot_metric(figure.add_subplot(1, 2, 2), history, columns)
    lay_out(figure)
    return save_figure(figure, path)


def plot_loss(axes: Any, history: History, columns: Sequence[MetricColumn] = ()) -> None:
    """Draw the loss of train and val on a logarithmic axis, and the learning rate as a share of its maximum.

    columns: those of terms of the loss are drawn, too.
    """
    for split in ("train", "val"):
        _plot_split(axes, history, split, f"{split}_loss")
    terms = [column for column in columns if _is_term(column)]
    for column, color in zip(terms, TERM_COLORS, strict=False):
        values = {row["epoch"]: row[column.key] for row in history if math.isfinite(row.get(column.key, math.nan))}
        axes.plot(list(values), list(values.values()), color=color, linewidth=1, label=column.heading,
                  marker="." if len(values) == 1 else "")  # fmt: skip
    set_log_axis(axes.yaxis, [y for line in axes.lines for y in line.get_ydata()])
    _style_epochs(axes, history, "loss")
    if terms:  # too many names for a line above the curves
        axes.legend(frameon=False, fontsize=6, labelcolor=INK, ncols=2, loc="best", handlelength=1.2)
    rates = [(row["epoch"], row["lr"]) for row in history if math.isfinite(row.get("lr", math.nan))]
    largest = max((rate for _, rate in rates), default=0.0)
    if largest > 0 and len(rates) > 1:
        epochs, heights = [epoch for epoch, _ in rates], [0.02 + 0.2 * rate / largest for _, rate in rates]
        axes.plot(epochs, heights, color=QUIET, linewidth=1, linestyle=":", transform=axes.get_xaxis_transform())
        axes.set_xlabel(f"epoch (dotted: learning rate, at most {largest:.2g})")


def plot_metric(axes: Any, history: History, columns: Sequence[MetricColumn]) -> None:
    """Draw the metric of val, and that of train if it is the same."""
    present = [column for column in columns if not _is_term(column) and any(column.key in row for row in history)]
    title = ""
    for column in present:
        split, _, metric = column.key.partition("_")
        if metric != present[-1].key.partition("_")[2]:
            continue
        percent = column.form.endswith("%")
        _plot_split(axes, history, split, column.key, factor=100 if percent else 1, complement=column.complement)
        title = column.heading.removeprefix(f"{split} ") + (", %" if percent else "")
    largest = max((y for line in axes.lines for y in line.get_ydata()), default=0.0)
    axes.set_ylim(0, 1.08 * largest if largest > 0 else 1)
    _style_epochs(axes, history, title)


def _is_term(column: MetricColumn) -> bool:
    """Return whether a column is a term of the training loss."""
    return column.key.startswith("train_") and column.key.endswith("_loss")


def _plot_split(
    axes: Any, history: History, split: str, key: str, *, factor: float = 1, complement: bool = False
) -> None:
    values = {
        row["epoch"]: min(factor * (1 - row[key] if complement else row[key]), LARGEST)
        for row in history
        if math.isfinite(row.get(key, math.nan))
    }
    if values:
        color, marker = (RIGHT if split == "val" else TRAIN), ("o" if len(values) <= 40 else "")
        size = 2.5 if len(values) > 1 else 5
        axes.plot(
            list(values), list(values.values()), color=color, linewidth=1.8, marker=marker, markersize=size, label=split
        )


def _style_epochs(axes: Any, history: History, title: str) -> None:
    """Mark the best epoch; the legend is above the curves, where it hides none."""
    style_axes(axes, x="epoch", title=title)
    handles = list(axes.lines)
    best = [row["epoch"] for row in history if row.get("best")]
    if len(history) > 1 and best and any(key.startswith("val_") for row in history for key in row):
        axes.axvline(best[-1], color=QUIET, linewidth=1, zorder=0)
        axes.annotate("best", (best[-1], 1), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                      xytext=(2, -1), va="top", fontsize=6.5, color=NOTE)  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(history) == 1:
        axes.set_xticks([history[0]["epoch"]])
    if handles:
        axes.legend(handles=handles, frameon=False, fontsize=7, labelcolor=INK, ncols=len(handles), loc="lower right",
                    bbox_to_anchor=(1.02, 0.985), handlelength=1.2, columnspacing=1, borderpad=0.2)  # fmt: skip


@default_settings()
def lr_finder(
    rates: Sequence[float], losses: Sequence[float], chosen: float, *, path: str | Path | None = None
) -> Figure:
    """Draw the loss against the learning rate (log scale), its minimum, and the learning rate that was chosen."""
    figure = new_figure(4.8, 3.1)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=TRAIN, linewidth=1.8)
    lowest = min(range(len(losses)), key=losses.__getitem__)
    axes.plot(rates[lowest], losses[lowest], color=WRONG, marker="o", markersize=5)
    inward = "left" if lowest < 0.85 * len(rates) else "right"
    axes.annotate(f"minimum {rates[lowest]:.2g}", (rates[lowest], losses[lowest]), textcoords="offset points",
                  xytext=(0, -11), ha=inward, fontsize=8, color=WRONG)  # fmt: skip
    axes.axvline(chosen, color=RIGHT, linewidth=1.2)
    axes.annotate(f"chosen {chosen:.2g}", (chosen, 1), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                  xytext=(-4, -3), ha="right", va="top", fontsize=8, color=RIGHT)  # fmt: skip
    set_log_axis(axes.xaxis, rates)
    axes.margins(y=0.2)
    style_axes(axes, x="learning rate", title="loss")
    lay_out(figure)
    return save_figure(figure, path)


@default_settings()
def confusion(counts: Tensor, classes: Sequence[str], *, path: str | Path | None = None) -> Figure:
    """Draw a confusion matrix; the color of a cell is its share of the true class.

    counts: (classes, classes), row = true class, column = predicted class; written into the cells of up to 20 classes,
    of up to 10 with the share. More than 40 classes are numbered from 1.
    """
    side = matrix_side(len(classes))
    figure = new_figure(side, side)
    names = Names(classes)
    plot_confusion(figure.add_subplot(), counts, classes, names)
    lay_out(figure)
    names.add_legend(figure)
    return save_figure(figure, path)


@default_settings()
def precision_recall(
    probabilities: Tensor, labels: Tensor, average_precisions: Tensor, classes: Sequence[str], *,
    path: str | Path | None = None,
) -> Figure:  # fmt: skip
    """Draw precision against recall, a line for each class; those with the lowest average precision have a color.

    probabilities, labels: (n, classes), labels 0 or 1. average_precisions: (classes,), NaN for a class without images.
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    names = Names(classes)
    order = average_precisions.nan_to_num(2).argsort(descending=True).tolist()
    for place, index in enumerate(order):
        truth = labels[:, index]
        if not truth.any():
            continue
        hits = truth[probabilities[:, index].argsort(descending=True)].cumsum(0)
        hits = hits[: int((hits < hits[-1]).sum()) + 1]  # with all images of the class, recall stays 1
        recall, precision = hits / hits[-1], hits / torch.arange(1, len(hits) + 1)
        shown = torch.linspace(0, len(hits) - 1, min(MAX_POINTS, len(hits))).long()
        how: dict[str, Any] = {"linewidth": 0.7, "color": QUIET}
        if place >= len(order) - NUM_HIGHLIGHTED:
            how = {
                "linewidth": 1.5,
                "label": f"{names.label(classes[index], MAX_NAME)} {average_precisions[index]:.2f}",
            }
        axes.plot(recall[shown], precision[shown], **how)
    style_axes(axes, x="recall", y="precision")
    axes.set_xlim(-0.02, 1.03)
    axes.set_ylim(-0.02, 1.05)
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(frameon=False, fontsize=7, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5),
                             title="average precision", title_fontproperties={"size": 7})  # fmt: skip
        legend.get_title().set_color(NOTE)
    lay_out(figure)
    names.add_legend(figure)
    return save_figure(figure, path)


@default_settings()
def reliability(
    bins: Sequence[tuple[float, float, int]], *, start: float = 0.0, path: str | Path | None = None
) -> Figure:
    """Draw accuracy against confidence; a calibrated network is on the diagonal (Guo et al. 2017, figure 1).

    bins: (mean confidence, accuracy, number of predictions) of each bin that is not empty. start: the lowest possible
    confidence, 1 / classes for the most probable of several classes.
    """
    figure = new_figure(3.8, 4.2)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    axes.plot([start, 1], [start, 1], color=QUIET, linewidth=1, linestyle="--")
    largest = max((count for _, _, count in bins), default=1)
    for confidence, accuracy, count in bins:
        axes.plot([confidence] * 2, [confidence, accuracy], color=WRONG, linewidth=1)
        axes.scatter(confidence, accuracy, s=16 + 70 * count / largest, color=RIGHT, zorder=3, linewidths=0)
        below.bar(confidence, count, width=0.045 * (1 - start), color=RIGHT, alpha=0.75)
        below.text(confidence, count, f"{count:,}", fontsize=6, color=INK, ha="center", va="bottom")
    margin = 0.04 * (1 - start)
    low = min([start, *(accuracy for _, accuracy, _ in bins)])
    style_axes(axes, y="accuracy")
    axes.set_xlim(start - margin, 1 + margin)
    axes.set_ylim(low - 0.04 * (1 - low), 1 + 0.04 * (1 - low))
    axes.tick_params(labelbottom=False)
    style_axes(below, x="confidence", y="predictions")
    below.set_ylim(0, 1.25 * largest)
    below.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    lay_out(figure)
    return save_figure(figure, path)
