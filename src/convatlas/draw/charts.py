"""Charts of training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.data.decode.headers import read_header
from convatlas.data.decode.pixels import read_shares
from convatlas.draw.style import INK, QUIET, RIGHT, TRAIN, WRONG, _figure, _plain_axes, _save
from convatlas.tasks.classification import metrics
from convatlas.tasks.classification.results import Result, Tags

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _curves(loss_axes: Any, error_axes: Any, history: Sequence[dict[str, float]]) -> None:
    """Draw loss (log scale) and error against epochs, train and val, labeled at the lines.

    Of images of several classes, what is missing to a mean average precision of 1 stands for the error on val.
    """
    epochs = [row["epoch"] for row in history]
    tags = "val_map" in history[0]
    for axes, what in ((loss_axes, "loss"), (error_axes, "1 - mAP, %" if tags else "error, %")):
        for split, color in (("train", TRAIN), ("val", RIGHT)):
            if f"{split}_loss" not in history[0] or (tags and what != "loss" and split == "train"):
                continue
            if what == "loss":
                values = [row[f"{split}_loss"] for row in history]
            else:
                values = [100 * (1 - row["val_map" if tags else f"{split}_accuracy"]) for row in history]
            axes.plot(epochs, values, color=color, linewidth=1.8, marker="o", markersize=2.5, label=split)
        _plain_axes(axes)
        if what == "loss":
            axes.set_yscale("log")
            for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                ticks("{x:g}")
            axes.tick_params(which="minor", colors=INK, labelsize=7)
        else:
            axes.set_ylim(bottom=0)
        axes.set_title(what, loc="left", fontsize=9, color=INK)
        axes.set_xlabel("epoch", fontsize=8, color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8, labelcolor="linecolor")


def curves(history: Sequence[dict[str, float]]) -> Figure:
    """Return the learning curves of a run."""
    figure = _figure(7, 2.8)
    left, right = figure.subplots(1, 2)
    _curves(left, right, history)
    figure.tight_layout()
    return figure


def draw_curves(history: Sequence[dict[str, float]], path: Path) -> None:
    """Save the learning curves of a run as PNG."""
    _save(curves(history), path)


def draw_lr_finder(rates: Sequence[float], losses: Sequence[float], chosen: float, path: Path) -> None:
    """Save the loss against the learning rate of a search, and the rate that was chosen."""
    figure = _figure(4.6, 3)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=TRAIN, linewidth=1.8)
    axes.axvline(chosen, color=RIGHT, linewidth=1.2)
    axes.text(chosen, max(losses), f" {chosen:.2g}", color=RIGHT, fontsize=8, va="top")
    axes.set_xscale("log")
    _plain_axes(axes)
    axes.set_title("loss", loc="left", fontsize=9, color=INK)
    axes.set_xlabel("learning rate", fontsize=8, color=INK)
    figure.tight_layout()
    _save(figure, path)


def confusion(result: Result, classes: Sequence[str]) -> Figure:
    """Return the confusion matrix: errors are colored, and counted where there are few classes."""
    side = min(9.0, 2.2 + 0.42 * len(classes)) if len(classes) <= 20 else 7.0
    figure = _figure(side + 1, side)
    _confusion(figure.add_subplot(), result, classes)
    figure.tight_layout()
    return figure


def precision_recall(result: Tags, classes: Sequence[str]) -> Figure:
    """Return precision against recall, a line for each class; the ten with the lowest average precision in color."""
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot()
    precisions = result.precisions
    order = precisions.nan_to_num(2).argsort(descending=True).tolist()
    for place, label in enumerate(order):
        truth = result.labels[:, label]
        if not truth.any():
            continue
        hits = truth[result.probabilities[:, label].argsort(descending=True)].cumsum(0)
        recall, precision = hits / truth.sum(), hits / torch.arange(1, len(hits) + 1)
        if place >= len(order) - 10:
            axes.plot(recall, precision, linewidth=1.3, label=f"{classes[label]} {precisions[label]:.2f}")
        else:
            axes.plot(recall, precision, linewidth=0.7, color=QUIET)
    _plain_axes(axes)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall", fontsize=8, color=INK)
    axes.set_ylabel("precision", fontsize=8, color=INK)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure


def reliability(result: Result) -> Figure:
    """Return accuracy against confidence: on the diagonal, a network is right as often as it says."""
    figure = _figure(3.6, 3.4)
    axes = figure.add_subplot()
    rows = metrics.reliability(*result.answers)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--")
    total = sum(count for _, _, count in rows)
    for confidence, accuracy, count in rows:
        axes.plot([confidence] * 2, [confidence, accuracy], color=WRONG, linewidth=1)
        axes.scatter(confidence, accuracy, s=12 + 160 * count / total, color=RIGHT, zorder=3, linewidths=0)
    _plain_axes(axes)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability of the answer", fontsize=8, color=INK)
    axes.set_ylabel("share that is right", fontsize=8, color=INK)
    figure.tight_layout()
    return figure


def _confusion(axes: Any, result: Result, classes: Sequence[str]) -> None:
    """Draw the confusion matrix; errors are colored and counted, the diagonal is quiet."""
    counts = result.confusion.double()
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
        turned = {} if longest <= 2 else {"rotation": 60, "ha": "right"}
        axes.set_xticks(range(len(classes)), classes, **turned)
        axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(labelsize=7, length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("predicted", fontsize=8, color=INK)
    axes.set_ylabel("true", fontsize=8, color=INK)


def _bars(axes: Any, probabilities: Tensor, truth: int, classes: Sequence[str]) -> None:
    """Draw the most probable classes as bars: the true one in one color, a wrong first one in another."""
    top = probabilities.topk(min(3, len(classes)))
    for place, (p, label) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
        color = RIGHT if label == truth else WRONG if place == 0 else QUIET
        axes.text(0.0, -place - 0.02, f"{classes[label][:14]}  {p:.1%}", fontsize=7.5, color=INK, va="bottom")
        axes.barh(-place - 0.18, max(p, 0.004), color=color, height=0.22)
    axes.set_xlim(0, 1.05)
    axes.set_ylim(-3.0, 1.0)
    axes.set_axis_off()


def _seen(path: Path) -> NDArray[Any]:
    """Return an image file for the eye (height, width, 3): deep ones stretched, of many channels the first ones."""
    header = read_header(path)
    share = read_shares(path, 3 if header.channels in (1, 3) else header.channels)
    share = share[:3] if len(share) > 2 else share[:1].expand(3, -1, -1)
    if header.high_bit_depth:
        share = (share - share.min()) / (share.max() - share.min()).clamp(min=1e-12)
    return share.permute(1, 2, 0).numpy()


def draw_latencies(points: Sequence[tuple[str, str, float, float]], what: str, batch: int, path: Path) -> None:
    """Save points (name, engine, milliseconds, value): `what` against the latency of `batch` images."""
    figure = _figure(6.4, 4)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for name, engine, milliseconds, value in points:
        axes.scatter(milliseconds, value, s=30, color=RIGHT, linewidths=0)
        axes.annotate(f"{name}\n{engine}", (milliseconds, value), textcoords="offset points", xytext=(6, -3),
                      fontsize=7, color=INK)  # fmt: skip
    _plain_axes(axes)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.25, y=0.2)
    least, most = axes.get_xlim()
    if most < 30 * least:  # hardly a power of ten: the numbers between are needed, and have room
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="minor", colors=QUIET, labelsize=6)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.set_title(what, loc="left", fontsize=9, color=INK)
    axes.set_xlabel(f"milliseconds for {batch} at once" if batch > 1 else "milliseconds for one image", fontsize=8,
                    color=INK)  # fmt: skip
    figure.tight_layout()
    _save(figure, path)
