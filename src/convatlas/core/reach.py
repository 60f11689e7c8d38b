"""Which pixels of the input the units of a map depend on, for each position: exact, cut at borders, offsets included.

Layers act on each axis for itself, so a position along an axis has an interval of pixels, and a unit the box of its
intervals. Between its ends an interval may have gaps, as behind dilated convolutions. One case is not exact: where one
of several branches reads nothing but padding along one axis, as in the corner behind a shift, its interval of the other
axis counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

Interval = tuple[int, int]
"""First and last pixel; first > last if there is none, as for a unit that reads only padding."""
Axis = tuple[Interval, ...]
"""The interval of each position along an axis."""

NONE: Interval = (2**62, -1)


class Reach:
    """The intervals of all positions of a map, axis by axis; computed when they are asked for.

    compute: returns the axes from those of the sources.
    """

    def __init__(self, compute: Callable[..., tuple[Axis, ...]], *sources: Reach) -> None:
        self._compute, self._sources = compute, sources
        self._axes: tuple[Axis, ...] | None = None

    @classmethod
    def of_input(cls, sizes: Sequence[int]) -> Reach:
        """Return the reach of the input itself: each position depends on its own pixel."""
        return cls(partial(_each_alone, tuple(sizes)))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The intervals; empty if a layer on the way does not say how it moves positions."""
        waiting = [self]
        while waiting:  # no recursion: networks have thousands of layers
            reach = waiting[-1]
            missing = [source for source in reach._sources if source._axes is None]
            if missing and reach._axes is None:
                waiting += missing
                continue
            if reach._axes is None:
                sources = [source._axes or () for source in reach._sources]
                reach._axes = reach._compute(*sources) if all(sources) else ()
            waiting.pop()
        return self._axes or ()

    def slide(
        self, out: Sequence[int], spans: Sequence[int], steps: Sequence[int], before: Sequence[int],
        dilations: Sequence[int],
    ) -> Reach:  # fmt: skip
        """Return the reach behind a window that slides over the axes.

        out: number of positions. spans: of the window. before: padding in front of the first pixel.
        """
        if set(spans) == set(steps) == {1} and not any(before):
            return self
        return Reach(partial(_slide, tuple(zip(out, spans, steps, before, dilations, strict=True))), self)

    def spread(self, windows: Sequence[tuple[int, int, int, int, int]]) -> Reach:
        """Return the reach behind a transposed convolution: (out, kernel, stride, padding, dilation) of each axis."""
        return Reach(partial(_spread, tuple(windows)), self)

    def pad(self, pairs: Sequence[tuple[int, int]]) -> Reach:
        """Return the reach with more positions before and after each axis; fewer where negative."""
        return Reach(partial(_pad, tuple(pairs)), self)

    def pool(self, sizes: Sequence[int]) -> Reach:
        """Return the reach behind adaptive pooling to these sizes."""
        return Reach(partial(_pool, tuple(sizes)), self)

    def resize(self, sizes: Sequence[int]) -> Reach:
        """Return the reach behind bilinear interpolation to these sizes, without alignment of the corners."""
        return Reach(partial(_resize, tuple(sizes)), self)


def unite(reaches: Sequence[Reach]) -> Reach:
    """Return the reach of units that depend on all of several maps, whose axes are equal or of one position."""
    different = list(dict.fromkeys(reaches))
    return different[0] if len(different) == 1 else Reach(_unite, *different)


UNKNOWN = Reach(tuple)
"""Of a signal whose positions are not known."""


def _each_alone(sizes: tuple[int, ...]) -> tuple[Axis, ...]:
    return tuple(tuple((i, i) for i in range(size)) for size in sizes)


def _hull(intervals: Iterable[Interval]) -> Interval:
    """Return the smallest interval around several."""
    firsts, lasts = zip(NONE, *intervals, strict=True)
    return min(firsts), max(lasts)


def _slide(windows: tuple[tuple[int, int, int, int, int], ...], axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    moved = []
    for axis, (out, span, step, before, dilation) in zip(axes, windows, strict=True):
        starts = (i * step - before for i in range(out))
        # the first tap that is not in the padding
        moved.append(
            tuple(_hull(axis[s + max(0, -(s // dilation)) * dilation : max(0, s + span) : dilation]) for s in starts)
        )
    return tuple(moved)


def _spread(windows: tuple[tuple[int, int, int, int, int], ...], axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    moved = []
    for axis, (out, kernel, stride, padding, dilation) in zip(axes, windows, strict=True):
        taps = [range(i + padding, i + padding - kernel * dilation, -dilation) for i in range(out)]
        moved.append(
            tuple(
                _hull(axis[at // stride] for at in each if not at % stride and 0 <= at // stride < len(axis))
                for each in taps
            )
        )
    return tuple(moved)


def _pad(pairs: tuple[tuple[int, int], ...], axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    return tuple(
        (NONE,) * before + axis[max(0, -before) : len(axis) + min(0, after)] + (NONE,) * after
        for axis, (before, after) in zip(axes, pairs, strict=True)
    )


def _pool(sizes: tuple[int, ...], axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    return tuple(
        tuple(_hull(axis[i * len(axis) // out : -(-(i + 1) * len(axis) // out)]) for i in range(out))
        for axis, out in zip(axes, sizes, strict=True)
    )


def _resize(sizes: tuple[int, ...], axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    moved = []
    for axis, out in zip(axes, sizes, strict=True):
        # position i is between two pixels, at ((2 i + 1) size / out - 1) / 2
        places = (max(0, (2 * i + 1) * len(axis) - out) for i in range(out))
        moved.append(tuple(_hull(axis[place // (2 * out) : -(-place // (2 * out)) + 1]) for place in places))
    return tuple(moved)


def _unite(*reaches: tuple[Axis, ...]) -> tuple[Axis, ...]:
    joined = []
    for axes in zip(*reaches, strict=True):
        size = max(map(len, axes))
        joined.append(
            tuple(map(lambda *each: _hull(each), *(axis * size if len(axis) == 1 else axis for axis in axes)))
        )
    return tuple(joined)
