"""Names of classes in figures: those that no installed font can draw, and those that are equal after shortening, get
numbers, which a legend explains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from convatlas.draw.style import NOTE, is_drawable, label
from convatlas.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND = "names"
"""The id of the legend's texts in a figure; a page, which has all fonts, removes them and lists the names itself."""

MAX_NAME = 24
"""Maximum length of the name of a class in a figure; of a longer one the middle is left out."""

MAX_ROWS = 12
"""Maximum number of names in the legend of a figure."""


class Names:
    """The labels of names in one figure.

    classes: names whose numbers are their places, from 1 on; others are numbered as they come.
    """

    def __init__(self, classes: Sequence[str] = ()) -> None:
        short = {name: label(name, MAX_NAME) for name in classes}
        count = Counter(short.values())
        self.numbers = {name: i for i, name in enumerate(classes, 1) if count[short[name]] > 1 or not is_drawable(name)}
        self._next = len(classes) + 1
        self._used: dict[str, int] = {}

    def label(self, name: object, limit: int = 60) -> str:
        """Return a name as one line of about `limit` characters, or its number such as "#3".

        In other texts than `classes`, only the words that no installed font can draw become numbers.
        """
        text = str(name)
        if text in self.numbers:
            return self._number(text)
        if not is_drawable(text):
            runs = groupby(printable(text).split(" "), key=is_drawable)
            parts = ((drawable, " ".join(words)) for drawable, words in runs)
            text = " ".join(part if drawable else self._number(part) for drawable, part in parts)
        return label(text, limit)

    def _number(self, name: str) -> str:
        if name not in self.numbers:
            self.numbers[name] = self._next
            self._next += 1
        self._used[name] = self.numbers[name]
        return f"#{self.numbers[name]}"

    def legend(self) -> str:
        """Return the numbered names that were used, in escapes, one a line; empty if there are none."""
        used = sorted(self._used.items(), key=lambda pair: pair[1])
        lines = [f"#{number}  {label(name)}" for name, number in used]
        more = [f"and {len(lines) - MAX_ROWS:,} more"] if len(lines) > MAX_ROWS else []
        return "\n".join([*lines[:MAX_ROWS], *more])

    def add_legend(self, figure: Figure) -> None:
        """Draw the legend below a figure, which becomes larger by its height."""
        text = self.legend()
        if not text:
            return
        width, height = figure.get_size_inches()
        extra = 0.13 * (text.count("\n") + 1) + 0.1
        axes_of_figure = [(axes, axes.get_position()) for axes in figure.axes]
        figure.set_size_inches(width, height + extra)
        scale, shift = height / (height + extra), extra / (height + extra)
        for axes, box in axes_of_figure:
            axes.set_position((box.x0, shift + box.y0 * scale, box.width, box.height * scale))
        for other in figure.texts:
            other.set_y(shift + other.get_position()[1] * scale)
        figure.text(0.01, 0.04 / (height + extra), text, fontsize=7, color=NOTE, va="bottom", gid=LEGEND)


def numbered(classes: Sequence[str]) -> dict[str, str]:
    """Return {"#3": name} of the classes that have a number in figures."""
    return {f"#{number}": printable(name) for name, number in Names(classes).numbers.items()}
