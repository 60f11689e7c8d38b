"""Charts of training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from convatlas.draw.style import INK, QUIET, RIGHT, TRAIN, WRONG, new_figure, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MetricColumn(Protocol):
    """A metric of the history of a run: its key, the split and name that people read, and how it is printed."""

    @property
    def key(self) -> str: ...
    @property
    def heading(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def complement(self) -> bool: ...


History = Sequence[Mapping[str, float]]
"""One row of metrics for each epoch; keys as in metrics.csv."""


def draw_curves(loss_axes: Any, metric_axes: Any, history: History, columns: Sequence[MetricColumn]) -> None:
    """Draw the loss (log scale) and the task's metric against epochs, for train and val."""
    epochs = [row["epoch"] for row in history]
    for split, color in (("train", TRAIN), ("val", RIGHT)):
        if f"{split}_loss" in history[0]:
            _line(loss_axes, epochs, [row[f"{split}_loss"] for row in history], split, color)
    _epoch_axes(loss_axes, "loss")
    loss_axes.set_yscale("log")
    for set_formatter in (loss_axes.yaxis.set_major_formatter, loss_axes.yaxis.set_minor_formatter):
        set_formatter("{x:g}")
    loss_axes.tick_params(which="minor", colors=INK, labelsize=7)

    present = [column for column in columns if column.key in history[0]]
    name = present[-1].heading.split(" ", 1)[-1] if present else ""
    percent = bool(present) and present[-1].form.endswith("%")
    for column in present:
        if column.heading.split(" ", 1)[-1] != name:
            continue  # another metric than that of val
        split = column.heading.split(" ", 1)[0]
        values = [1 - row[column.key] if column.complement else row[column.key] for row in history]
        scaled = [100 * value for value in values] if percent else values
        _line(metric_axes, epochs, scaled, split, RIGHT if split == "val" else TRAIN)
    _epoch_axes(metric_axes, f"{name}, %" if percent else name)
    metric_axes.set_ylim(bottom=0)


def _line(axes: Any, epochs: Sequence[float], values: Sequence[float], label: str, color: str) -> None:
    axes.plot(epochs, values, color=color, linewidth=1.8, marker="o", markersize=2.5, label=label)


def _epoch_axes(axes: Any, title: str) -> None:
    plain_axes(axes)
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    axes.set_xlabel("epoch", fontsize=8, color=INK)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor")


def curves(history: History, columns: Sequence[MetricColumn], *, path: Path | None = None) -> Figure:
    """Return the learning curves of a run: loss and metric against epochs; saved if a path is given."""
    figure = new_figure(7, 2.8)
    left, right = figure.subplots(1, 2)
    draw_curves(left, right, history, columns)
    figure.tight_layout()
    return save_figure(figure, path)


def lr_finder(
    lrs: Sequence[float], losses: Sequence[float], suggestion: float, *, path: Path | None = None
) -> Figure:
    """Return the loss against the learning rate (log scale), and the suggested rate; saved if a path is given."""
    figure = new_figure(4.6, 3)
    axes = figure.add_subplot()
    axes.plot(lrs, losses, color=TRAIN, linewidth=1.8)
    axes.axvline(suggestion, color=RIGHT, linewidth=1.2)
    axes.text(suggestion, max(losses), f" {suggestion:.2g}", color=RIGHT, fontsize=8, va="top")
    axes.set_xscale("log")
    plain_axes(axes)
    axes.set_title("loss", loc="left", fontsize=9, color=INK)
    axes.set_xlabel("learning rate", fontsize=8, color=INK)
    figure.tight_layout()
    return save_figure(figure, path)


def confusion(counts: Tensor, classes: Sequence[str], *, path: Path | None = None) -> Figure:
    """Return the confusion matrix (true class, predicted class): errors are colored, and counted for few classes."""
    side = min(9.0, 2.2 + 0.42 * len(classes)) if len(classes) <= 20 else 7.0
    figure = new_figure(side + 1, side)
    draw_confusion(figure.add_subplot(), counts, classes)
    figure.tight_layout()
    return save_figure(figure, path)


def precision_recall(
    probabilities: Tensor, labels: Tensor, average_precisions: Tensor, classes: Sequence[str], *,
    path: Path | None = None,
) -> Figure:  # fmt: skip
    """Return precision against recall, a line for each class; the ten with the lowest average precision in color.

    probabilities, labels: (n, classes). average_precisions: (classes,), nan for a class without images.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    order = average_precisions.nan_to_num(2).argsort(descending=True).tolist()
    for rank, label in enumerate(order):
        truth = labels[:, label]
        if not truth.any():
            continue
        hits = truth[probabilities[:, label].argsort(descending=True)].cumsum(0)
        recall, precision = hits / truth.sum(), hits / torch.arange(1, len(hits) + 1)
        if rank >= len(order) - 10:
            axes.plot(recall, precision, linewidth=1.3, label=f"{classes[label]} {average_precisions[label]:.2f}")
        else:
            axes.plot(recall, precision, linewidth=0.7, color=QUIET)
    plain_axes(axes)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall", fontsize=8, color=INK)
    axes.set_ylabel("precision", fontsize=8, color=INK)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return save_figure(figure, path)


def reliability(bins: Sequence[tuple[float, float, int]], *, path: Path | None = None) -> Figure:
    """Return accuracy against confidence; on the diagonal, accuracy equals confidence.

    bins: (mean confidence, accuracy, number of predictions) of each bin.
    """
    figure = new_figure(3.6, 3.4)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--")
    total = sum(count for _, _, count in bins)
    for confidence, accuracy, count in bins:
        axes.plot([confidence] * 2, [confidence, accuracy], color=WRONG, linewidth=1)
        axes.scatter(confidence, accuracy, s=12 + 160 * count / total, color=RIGHT, zorder=3, linewidths=0)
    plain_axes(axes)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("confidence", fontsize=8, color=INK)
    axes.set_ylabel("accuracy", fontsize=8, color=INK)
    figure.tight_layout()
    return save_figure(figure, path)


def draw_confusion(axes: Any, counts: Tensor, classes: Sequence[str]) -> None:
    """Draw a confusion matrix; errors are colored and counted."""
    counts = counts.double()
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    wrong = share.clone().fill_diagonal_(0)
    axes.imshow(wrong.numpy(), cmap="Reds", vmin=0, vmax=max(0.05, float(wrong.max()) * 1.3))
    if len(classes) <= 20:
        for row, column in torch.nonzero(counts).tolist():
            on_diagonal = row == column
            axes.text(
                column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=7,
                color=QUIET if on_diagonal else INK, weight="normal" if on_diagonal else "bold",
            )  # fmt: skip
        longest = max(map(len, classes))
        rotation = {} if longest <= 2 else {"rotation": 60, "ha": "right"}
        axes.set_xticks(range(len(classes)), classes, **rotation)
        axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(labelsize=7, length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("predicted", fontsize=8, color=INK)
    axes.set_ylabel("true", fontsize=8, color=INK)


def draw_bars(axes: Any, probabilities: Tensor, truth: int, classes: Sequence[str]) -> None:
    """Draw the most probable classes as bars: the true one in one color, a wrong first one in another."""
    top = probabilities.topk(min(3, len(classes)))
    for rank, (p, label) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
        color = RIGHT if label == truth else WRONG if rank == 0 else QUIET
        axes.text(0.0, -rank - 0.02, f"{classes[label][:14]}  {p:.1%}", fontsize=7.5, color=INK, va="bottom")
        axes.barh(-rank - 0.18, max(p, 0.004), color=color, height=0.22)
    axes.set_xlim(0, 1.05)
    axes.set_ylim(-3.0, 1.0)
    axes.set_axis_off()


def latencies(
    points: Sequence[tuple[str, str, float, float]], metric: str, batch: int, *, path: Path | None = None
) -> Figure:
    """Return a metric against the latency of a batch: points (name, engine, milliseconds, value)."""
    figure = new_figure(6.4, 4)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for name, engine, milliseconds, value in points:
        axes.scatter(milliseconds, value, s=30, color=RIGHT, linewidths=0)
        axes.annotate(f"{name}\n{engine}", (milliseconds, value), textcoords="offset points", xytext=(6, -3),
                      fontsize=7, color=INK)  # fmt: skip
    plain_axes(axes)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.25, y=0.2)
    least, most = axes.get_xlim()
    if most < 30 * least:  # hardly a power of ten: the numbers between are needed, and have room
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="minor", colors=QUIET, labelsize=6)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.set_title(metric, loc="left", fontsize=9, color=INK)
    axes.set_xlabel(f"milliseconds for {batch} images" if batch > 1 else "milliseconds for one image", fontsize=8,
                    color=INK)  # fmt: skip
    figure.tight_layout()
    return save_figure(figure, path)
