"""Pictures of a training: learning curves, and one page that shows what a network learned."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.data.decode import read_header, read_shares
from convatlas.errors import DataError
from convatlas.files import atomic
from convatlas.tasks import metrics
from convatlas.tasks.results import Result, Tags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convatlas.data.check import Check

INK, QUIET, RIGHT, WRONG, TRAIN = "#1f2933", "#9aa5b1", "#1f7a8c", "#d1495b", "#e09f3e"


def _figure(width: float, height: float) -> Figure:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, facecolor="white")


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _save(figure: Figure, path: Path) -> None:
    drawn = png(figure)
    with atomic(path) as file:
        file.write(drawn)


def _plain_axes(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    axes.tick_params(colors=INK, labelsize=8)


def _curves(loss_axes: Any, error_axes: Any, history: Sequence[dict[str, float]]) -> None:
    """Draw loss (log scale) and error against epochs, train and val, labelled at the lines.

    Of pictures of several classes, what is missing to a mean average precision of 1 stands for the error on val.
    """
    epochs = [row["epoch"] for row in history]
    tags = "val_map" in history[0]
    for axes, what in ((loss_axes, "loss"), (error_axes, "1 - mAP, %" if tags else "error, %")):
        for split, colour in (("train", TRAIN), ("val", RIGHT)):
            if f"{split}_loss" not in history[0] or (tags and what != "loss" and split == "train"):
                continue
            if what == "loss":
                values = [row[f"{split}_loss"] for row in history]
            else:
                values = [100 * (1 - row["val_map" if tags else f"{split}_accuracy"]) for row in history]
            axes.plot(epochs, values, color=colour, linewidth=1.8, marker="o", markersize=2.5, label=split)
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


def draw_rates(rates: Sequence[float], losses: Sequence[float], chosen: float, path: Path) -> None:
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
    """Return the confusion matrix: errors are coloured, and counted where there are few classes."""
    side = min(9.0, 2.2 + 0.42 * len(classes)) if len(classes) <= 20 else 7.0
    figure = _figure(side + 1, side)
    _confusion(figure.add_subplot(), result, classes)
    figure.tight_layout()
    return figure


def precision_recall(result: Tags, classes: Sequence[str]) -> Figure:
    """Return precision against recall, a line for each class; the ten with the lowest average precision in colour."""
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
    """Draw the confusion matrix; errors are coloured and counted, the diagonal is quiet."""
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
    """Draw the most probable classes as bars: the true one in one colour, a wrong first one in another."""
    top = probabilities.topk(min(3, len(classes)))
    for place, (p, label) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
        colour = RIGHT if label == truth else WRONG if place == 0 else QUIET
        axes.text(0.0, -place - 0.02, f"{classes[label][:14]}  {p:.1%}", fontsize=7.5, color=INK, va="bottom")
        axes.barh(-place - 0.18, max(p, 0.004), color=colour, height=0.22)
    axes.set_xlim(0, 1.05)
    axes.set_ylim(-3.0, 1.0)
    axes.set_axis_off()


def _seen(path: Path) -> NDArray[Any]:
    """Return a picture file for the eye (height, width, 3): deep ones stretched, of many channels the first ones."""
    header = read_header(path)
    share = read_shares(path, 3 if header.channels in (1, 3) else header.channels)
    share = share[:3] if len(share) > 2 else share[:1].expand(3, -1, -1)
    if header.deep:
        share = (share - share.min()) / (share.max() - share.min()).clamp(min=1e-12)
    return share.permute(1, 2, 0).numpy()


def draw_sheet(checked: Check, path: Path, *, columns: int = 10, rows: int = 24) -> None:
    """Save a contact sheet: training pictures of every class, then groups that are the same or nearly so."""
    lines: list[tuple[str, list[str]]] = []
    for label, name in enumerate(checked.classes[:rows]):
        good = [p for p in checked.pictures if label in p.labels and p.split == "train" and not p.broken]
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
    """Save a contact sheet of picture files with what was said about each: (file, answer, probability)."""
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
    pictures: Tensor,
    shown: Result,
    result: Result,
    history: Sequence[dict[str, float]],
    *,
    classes: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Save one page: pictures with their predicted probabilities, learning curves, confusion matrix.

    pictures: (n, channels, h, w) uint8, at most 16 are shown; `shown` is what the network says about them.
    result: the whole split that is summed up in the matrix.
    """
    count, columns = min(16, len(pictures)), 4
    figure = _figure(13, 7.4)
    figure.suptitle(title, x=0.03, y=0.975, ha="left", fontsize=14, weight="bold", color=INK)
    left = figure.add_gridspec(4, columns, left=0.03, right=0.61, top=0.9, bottom=0.04, wspace=0.12, hspace=0.12)
    for i in range(count):
        cell = left[divmod(i, columns)].subgridspec(1, 2, wspace=0.1)
        axes = figure.add_subplot(cell[0])
        axes.imshow(pictures[i].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray_r" if pictures.shape[1] == 1 else None)
        axes.set_axis_off()
        _bars(figure.add_subplot(cell[1]), shown.probabilities[i], int(shown.labels[i]), classes)
    right = figure.add_gridspec(
        2, 2, left=0.665, right=0.985, top=0.88, bottom=0.08, hspace=0.3, wspace=0.35, height_ratios=(1, 1.9)
    )
    _curves(figure.add_subplot(right[0, 0]), figure.add_subplot(right[0, 1]), history)
    _confusion(figure.add_subplot(right[1, :]), result, classes)
    figure.text(0.03, 0.925, "the three most probable classes:", fontsize=8.5, color=INK)
    for x, text, colour in ((0.187, "the true one", RIGHT), (0.262, "a wrong answer", WRONG), (0.35, "others", QUIET)):
        figure.text(x, 0.925, text, fontsize=8.5, color=colour, weight="bold")
    _save(figure, path)


def draw_latencies(points: Sequence[tuple[str, str, float, float]], what: str, batch: int, path: Path) -> None:
    """Save points (name, engine, milliseconds, value): `what` against the latency of `batch` pictures."""
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
    axes.set_xlabel(f"milliseconds for {batch} at once" if batch > 1 else "milliseconds for one picture", fontsize=8,
                    color=INK)  # fmt: skip
    figure.tight_layout()
    _save(figure, path)
