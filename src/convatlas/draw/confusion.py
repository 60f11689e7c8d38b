"""The cells of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convatlas.draw.names import MAX_NAME, Names
from convatlas.draw.style import INK, QUIET, RIGHT_CELL, WRONG_CELL, style_axes

MAX_CLASSES_IN_FULL = 20
"""Maximum number of classes for which a confusion matrix shows counts."""

MAX_CLASSES_WITH_NAMES = 40
"""Maximum number of classes for which a confusion matrix shows names; those of more classes are numbers from 1."""

MAX_CLASSES_WITH_SHARES = 10
"""Maximum number of classes for which a confusion matrix shows percentages of the true class, too."""

WHITE = "#fefefe"
"""The color of text on dark cells; not the color of paper, which is dark on a dark page."""

DARK_BELOW = 0.22
"""The luminance below which white text has more contrast than dark text."""


def matrix_side(classes: int) -> float:
    """Return the side in inches of the figure of a confusion matrix."""
    if classes > MAX_CLASSES_WITH_NAMES:
        return 6.4
    cell = 0.44 if classes <= MAX_CLASSES_WITH_SHARES else 0.36 if classes <= MAX_CLASSES_IN_FULL else 0.18
    return 1.6 + max(1.6, cell * classes)


def plot_confusion(axes: Any, counts: Tensor, classes: Sequence[str], names: Names) -> None:
    """Draw a confusion matrix: correct predictions in one color, errors in another, darker for a larger share."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    counts = counts.double()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    n = len(classes)
    if n <= MAX_CLASSES_IN_FULL:
        axes.add_patch(Rectangle((0.5, 0.5), n, n, linewidth=0, alpha=0.07, facecolor=QUIET))
        for row, column in torch.nonzero(counts).tolist():
            _plot_cell(axes, row, column, int(counts[row, column]), float(shares[row, column]), n)
        axes.set_aspect("equal")
        axes.set_xlim(0.5, n + 0.5)
        axes.set_ylim(n + 0.5, 0.5)
    else:
        colors = torch.tensor(to_rgba(WRONG_CELL)).expand(n, n, 4).clone()
        colors[torch.arange(n), torch.arange(n)] = torch.tensor(to_rgba(RIGHT_CELL))
        colors[..., 3] = shares**0.5  # of many classes most shares are small
        axes.imshow(colors.numpy(), interpolation="nearest", extent=(0.5, n + 0.5, n + 0.5, 0.5))
    if n <= MAX_CLASSES_WITH_NAMES:
        labels = [names.label(name, MAX_NAME) for name in classes]
        short = max(map(len, labels)) * n <= 28
        axes.set_xticks(
            range(1, n + 1), labels, **({} if short else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"})
        )
        axes.set_yticks(range(1, n + 1), labels)
    style_axes(axes, x="predicted class", y="true class")
    axes.tick_params(labelsize=8 if n <= MAX_CLASSES_WITH_SHARES else 7, length=0)
    for spine in axes.spines.values():
        spine.set_visible(n > MAX_CLASSES_IN_FULL)
        spine.set_color(QUIET)


def _plot_cell(axes: Any, row: int, column: int, count: int, share: float, classes: int) -> None:
    from matplotlib.patches import Rectangle

    color = RIGHT_CELL if row == column else WRONG_CELL
    x, y = column + 1, row + 1
    opacity = min(1.0, 0.1 + share)
    axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, linewidth=0, alpha=opacity, facecolor=color))
    dark = _luminance(color, opacity) < DARK_BELOW
    with_shares = classes <= MAX_CLASSES_WITH_SHARES
    text = {"ha": "center", "va": "center", "color": WHITE if dark else INK}
    axes.text(x, y - (0.1 if with_shares else 0), f"{count:,}", fontsize=9 if with_shares else 7, weight="bold",
              **text)  # fmt: skip
    if with_shares:
        axes.text(x, y + 0.2, f"{share:.0%}" if share >= 0.005 else "<1%", fontsize=6.5, **text)


def _luminance(color: str, opacity: float) -> float:
    """Return the relative luminance of a color on white paper, from 0 to 1 (WCAG 2)."""
    from matplotlib.colors import to_rgb

    blend = [opacity * channel + 1 - opacity for channel in to_rgb(color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in blend]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
