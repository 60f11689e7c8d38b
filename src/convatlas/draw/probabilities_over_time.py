"""Probabilities of classes over the time of a video, a panel for each video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.draw.names import MAX_NAME, Names
from convatlas.draw.style import INK, PAPER, default_settings, label, lay_out, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES: tuple[dict[str, Any], ...] = (
    {"color": "#1f2933", "linestyle": "-", "marker": "o"},
    {"color": "#c43d50", "linestyle": "--", "marker": "s"},
    {"color": "#1f7a8c", "linestyle": "-.", "marker": "^"},
    {"color": "#e09f3e", "linestyle": (0, (5, 1)), "marker": "D"},
    {"color": "#6a4c93", "linestyle": ":", "marker": "v"},
    {"color": "#7d8f99", "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "X"},
)  # fmt: skip
"""How lines differ, also without color: in dashes, markers and brightness."""

MAX_MARKERS = 40
"""Maximum number of points of a line that have markers."""

STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)
"""Distances of ticks, in seconds or minutes."""

MINUTES = 180.0
"""Videos longer than so many seconds have minutes on their axis."""


@dataclass(frozen=True)
class VideoProbabilities:
    """times: middle of each clip, in seconds. probabilities: of each class, for each clip."""

    name: str
    times: Sequence[float]
    probabilities: Mapping[str, Sequence[float]]

    def leading(self, count: int) -> list[str]:
        """Return the classes with the highest probability of any clip, at most `count`, the highest first."""
        return sorted(self.probabilities, key=lambda name: -max(self.probabilities[name]))[:count]


@default_settings()
def probabilities_over_time(
    videos: Sequence[VideoProbabilities], *, classes: int = 5, path: str | Path | None = None
) -> Figure:
    """Draw the probabilities of the most probable classes over time, a panel for each video, at least one.

    classes: maximum number of lines in a panel: classes whose probability is highest at any time. A class has the same
    line in all panels, as far as there are enough of them. Returns a matplotlib figure and, with a `path`, writes it as
    SVG, PNG or PDF.
    """
    figure = new_figure(7.6, 0.25 + 1.85 * len(videos))
    panels = figure.subplots(len(videos), 1, squeeze=False)[:, 0]
    names = Names()
    styles: dict[str, int] = {}
    for axes, video in zip(panels, videos, strict=True):
        shown = video.leading(min(classes, len(LINES)))
        for name, style in _choose_lines(shown, styles).items():
            _plot_line(axes, video, name, names.label(name, MAX_NAME), LINES[style])
        style_axes(axes, y="probability", title=label(video.name, 70))
        axes.set_ylim(-0.02, 1.04)
        _style_time(axes, video.times)
        axes.legend(frameon=False, fontsize=7, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.04),
                    handlelength=4.2, labelspacing=0.7)  # fmt: skip
    lay_out(figure)
    names.add_legend(figure)
    return save_figure(figure, path)


def _choose_lines(shown: Sequence[str], before: dict[str, int]) -> dict[str, int]:
    """Return the line of each class of a panel, different ones; `before`, those of other panels, gets the new ones."""
    taken: dict[int, str] = {}
    for name in shown:
        if name in before:
            taken.setdefault(before[name], name)
    for name in shown:
        if name not in taken.values():
            free = next(style for style in _by_use(before) if style not in taken)
            taken[free] = name
            before.setdefault(name, free)
    styles = {name: style for style, name in taken.items()}
    return {name: styles[name] for name in shown}


def _by_use(before: dict[str, int]) -> list[int]:
    """Return the lines, the least used first."""
    return sorted(range(len(LINES)), key=list(before.values()).count)


def _plot_line(axes: Any, video: VideoProbabilities, name: str, text: str, line: dict[str, Any]) -> None:
    how = {"linewidth": 1.4, "markersize": 4, "markeredgecolor": PAPER, "markeredgewidth": 0.5, "label": text, **line}
    if len(video.times) > MAX_MARKERS:
        how["markevery"] = len(video.times) // 12
    axes.plot(video.times, video.probabilities[name], **how)


def _style_time(axes: Any, times: Sequence[float]) -> None:
    """Label the axis of time, in seconds or in minutes."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    margin = max(0.5, 0.03 * (times[-1] - times[0]))
    axes.set_xlim(times[0] - margin, times[-1] + margin)
    in_minutes = times[-1] > MINUTES
    axes.set_xlabel("minutes" if in_minutes else "seconds", fontsize=8, color=INK)
    unit = 60 if in_minutes else 1
    span = (times[-1] - times[0] + 2 * margin) / unit
    axes.xaxis.set_major_locator(MultipleLocator(unit * next((step for step in STEPS if span / step <= 10), span)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda time, _: f"{time / unit:g}"))
