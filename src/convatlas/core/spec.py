"""Specs: frozen records in the form of a paper's table, whose cells are typed as width, depth or resolution.

A spec can be scaled, compared, written as plain data and read back; `build` turns it into a tree of modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from convatlas.core.network import Network
from convatlas.core.record import Kind, Record, at_least, fields_of, item_hint, kind_of_cell
from convatlas.core.table import Table
from convatlas.errors import SpecError, nearest

Width = Annotated[int, Kind("width")]
"""A number of channels or units."""
Depth = Annotated[int, Kind("depth")]
"""How often a block is repeated."""
Resolution = Annotated[int, Kind("resolution")]
"""Height and width of the square input, in pixels."""
Frames = Annotated[int, at_least(1)]
"""A number of frames of a clip."""

SMALL = 32
"""Default resolution, in pixels, of networks with a stem for small images."""

MAX_FACTORS = {"width": 2.0**16, "depth": 2.0**10}
"""Largest factors of `Spec.scaled`; with larger ones layers have no size that fits 64 bits, or are built for hours."""


class Row(Record):
    """A row of a paper's table; plain data names its type."""

    tagged = True


class Spec(Row):
    """A network as a table. Subclasses are frozen dataclasses with a `resolution` cell and a `build` method."""

    predicts: ClassVar[str] = "classes"
    """What the network computes for an image; a task with the same word can train it."""
    reads: ClassVar[str] = "images"
    """What one input is: "images" (channels, h, w) or "clips" (channels, frames, h, w); a task has the same word."""

    resolution: Resolution

    @property
    def minimum(self) -> int:
        """The smallest resolution, in pixels, at which every layer has an output."""
        return 1

    def input_shape(self, channels: int) -> tuple[int, ...]:
        """Return (channels, *space) of one input."""
        return channels, self.resolution, self.resolution

    def __post_init__(self) -> None:
        super().__post_init__()
        if {"widths", "depths"} <= self.hints().keys():
            widths, depths = getattr(self, "widths"), getattr(self, "depths")  # noqa: B009  # of subclasses
            if len(widths) != len(depths):
                raise SpecError(
                    f"{type(self).__name__}: depths must have one value for each of {len(widths)} widths, got {depths}"
                )
        if self.resolution < self.minimum:
            raise SpecError(
                f"{type(self).__name__}: resolution must be >= {self.minimum} px for this network, "
                f"got {self.resolution} px"
            )

    def _repr_html_(self) -> str:
        cells = ((field.name, repr(getattr(self, field.name))) for field in fields_of(type(self)))
        return Table((type(self).__name__, ""), tuple(cells))._repr_html_()

    def build(self, *, classes: int, channels: int) -> Network:
        """Return the network: (batch, channels, resolution, resolution) -> (batch, classes)."""
        raise NotImplementedError

    @property
    def training_note(self) -> str:
        """What a training should state about the network in one line; usually empty."""
        return ""

    def for_training(self, *, pretrained: bool, images: int) -> Self:
        """Return the network for a training from pretrained or random weights, with so many images at once."""
        return self

    def small(self, *, resolution: int = SMALL) -> Self:
        """Return this network with the stem for images up to 64 pixels: one 3x3 convolution that keeps their size."""
        if "small_stem" not in self.hints():
            raise SpecError(f"{type(self).__name__} has no small stem: there is one stem, that of the paper")
        return self.replaced({"small_stem": True, "resolution": resolution})

    @staticmethod
    def round_width(width: float) -> int:
        """Round a scaled width to a multiple of 8, never below 90 % of it (MobileNet and EfficientNet code)."""
        rounded = max(8, int(width + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * width else rounded

    def scaled(self, *, width: float = 1.0, depth: float = 1.0, resolution: int | None = None) -> Self:
        """Return this network with widths and depths multiplied and, if given, another resolution in pixels.

        Widths are rounded by `round_width`, depths up (EfficientNet, section 3.3); a factor of 1 changes nothing.
        """
        for name, factor in (("width", width), ("depth", depth)):
            most = MAX_FACTORS[name]
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= most:
                raise SpecError(f"scaled: {name} must be a factor in (0, {most:,.0f}], got {factor!r}")

        def scale(kind: str | None, value: Any) -> Any:
            if value is None:
                return None
            if kind == "width" and width != 1:
                return self.round_width(value * width)
            if kind == "depth" and depth != 1:
                return math.ceil(value * depth)
            if kind == "resolution" and resolution is not None:
                return resolution
            return value

        scaled: Self = _rebuild(self, type(self), scale)
        return scaled


class ClipSpec(Spec):
    """A network that reads clips: (batch, channels, frames, resolution, resolution) -> (batch, classes)."""

    reads = "clips"

    frames: Frames

    def input_shape(self, channels: int) -> tuple[int, ...]:
        return channels, self.frames, self.resolution, self.resolution


def _rebuild(value: Any, hint: Any, change: Callable[[str | None, Any], Any]) -> Any:
    """Return a copy of a record in which each cell went through `change(kind, value)`."""
    if isinstance(value, Record):
        hints = value.hints()
        fields = fields_of(type(value))
        return type(value)(**{f.name: _rebuild(getattr(value, f.name), hints[f.name], change) for f in fields})
    if isinstance(value, tuple):
        return tuple(_rebuild(item, item_hint(hint, i), change) for i, item in enumerate(value))
    return change(kind_of_cell(hint), value)


def cells(record: Record, path: str = "") -> Iterator[tuple[str, Any, str | None]]:
    """Yield (path, value, kind) of every cell, such as ("maps[1]", 16, "width"); kind is None for plain cells.

    The first cell of a record, and of every row in it, is its "type".
    """

    def visit(value: Any, hint: Any, path: str) -> Iterator[tuple[str, Any, str | None]]:
        if isinstance(value, Record):
            yield from cells(value, path + ".")
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                yield from visit(item, item_hint(hint, i), f"{path}[{i}]")
        else:
            yield path, value, kind_of_cell(hint)

    yield path + "type", type(record).__name__, None
    hints = record.hints()
    for field in fields_of(type(record)):
        yield from visit(getattr(record, field.name), hints[field.name], path + field.name)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def replace_cells(record: AnyRecord, values: Mapping[str, Any]) -> AnyRecord:
    """Return the record with new values in the cells at these paths, such as {"rows[0].depth": 2}.

    Raises SpecError for an unknown path and for a value that does not fit.
    """
    known = [path for path, _, _ in cells(record)]
    for path in values:
        if path not in known:
            raise SpecError(f"{type(record).__name__} has no cell {path!r}{nearest(path, known)}")

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Record):
            fields = fields_of(type(value))
            inner = path + "." if path else ""
            return type(value)(**{f.name: visit(getattr(value, f.name), inner + f.name) for f in fields})
        if isinstance(value, tuple):
            return tuple(visit(item, f"{path}[{i}]") for i, item in enumerate(value))
        return values.get(path, value)

    result: AnyRecord = visit(record, "")
    return result


def diff(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    """Return {path: (value in a, value in b)} of the cells that differ; None stands for a missing cell.

    Raises SpecError for other values, such as the name of a network.
    """
    for each in (a, b):
        if not isinstance(each, Record):
            raise SpecError(f"diff: expected specs, such as ca.spec('resnet50'), got {each!r}")
    left = {path: value for path, value, _ in cells(a)}
    right = {path: value for path, value, _ in cells(b)}
    return {path: (left.get(path), right.get(path)) for path in left | right if left.get(path) != right.get(path)}
