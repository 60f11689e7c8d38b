"""Specs: frozen records that look like the table printed in a paper, with cells typed by what they scale with.

A spec can be scaled, compared, written as plain data and read back; `build` turns it into a tree of modules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from convatlas.core.network import Network
from convatlas.errors import SpecError, nearest

Width = Annotated[int, "width"]
"""A number of channels or units."""
Depth = Annotated[int, "depth"]
"""How often a block is repeated."""
Resolution = Annotated[int, "resolution"]
"""Height and width of the square input, in pixels."""

SMALL = 32
"""The resolution, in pixels, of networks with a small stem where none is given."""

_KINDS = ("width", "depth", "resolution")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _kind(hint: Any) -> str | None:
    """Return "width", "depth" or "resolution" for a typed cell, which may be optional, else None."""
    notes = (note for option in _alternatives(hint) for note in getattr(option, "__metadata__", ()))
    return next((note for note in notes if note in _KINDS), None)


def _item_hint(hint: Any, index: int) -> Any:
    """Return the type of item `index` of a tuple type; Any where nothing is said."""
    for option in _alternatives(hint):
        arguments = get_args(option)
        if get_origin(option) is tuple and arguments:
            return arguments[0] if arguments[-1] is Ellipsis else arguments[min(index, len(arguments) - 1)]
    return Any


def _misfit(value: Any, hint: Any, path: str) -> str | None:
    """Return what is wrong with a value for a field of this type, naming the innermost cell, or None."""
    wrong = f"{path}: expected {_told(hint)}, got {value!r}"
    if hint is Any:
        return None
    if get_origin(hint) in (Union, UnionType):
        return wrong if all(_misfit(value, option, path) for option in get_args(hint)) else None
    if get_origin(hint) is Annotated:
        fits = not _misfit(value, get_args(hint)[0], path) and (_kind(hint) is None or value >= 1)
    elif get_origin(hint) is Literal:
        fits = value in get_args(hint)
    elif get_origin(hint) is tuple:
        arguments = get_args(hint)
        fits = isinstance(value, tuple) and (arguments[-1] is Ellipsis or len(value) == len(arguments))
        if fits:
            return next(
                filter(None, (_misfit(v, _item_hint(hint, i), f"{path}[{i}]") for i, v in enumerate(value))), None
            )
    elif isinstance(hint, type) and issubclass(hint, Record):
        fits = isinstance(value, hint)
    else:
        fits = type(value) is hint or (hint is float and type(value) is int)
    return None if fits else wrong


def _told(hint: Any) -> str:
    """Return a type as a reader of an error message knows it."""
    if kind := _kind(hint):
        return f"a {kind}, a whole number from 1 on"
    if get_origin(hint) is tuple:
        *items, last = get_args(hint)
        return f"a tuple of {'any length' if last is Ellipsis else len(items) + 1}"
    return getattr(hint, "__name__", None) or str(hint)


class Record:
    """Base of specs and their rows: a frozen dataclass; Width, Depth and Resolution cells are whole and positive."""

    @classmethod
    @cache
    def hints(cls) -> dict[str, Any]:
        """Return the type of each field, with the notes that make a cell a width, a depth or a resolution."""
        return get_type_hints(cls, include_extras=True)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            wrong = _misfit(getattr(self, field.name), self.hints()[field.name], f"{type(self).__name__}.{field.name}")
            if wrong:
                raise SpecError(wrong)

    def to_plain(self) -> dict[str, Any]:
        """Return the record as dicts, lists, numbers and strings, each dict naming its record type."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        return {"type": type(self).__name__} | {field.name: _plain(getattr(self, field.name)) for field in fields}


class Spec(Record):
    """A network as a table. Subclasses are frozen dataclasses with a `resolution` cell and a `build` method."""

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
        if self.resolution < self.minimum:
            raise SpecError(
                f"{type(self).__name__}.resolution: {self.resolution} px is too small; "
                f"this network needs at least {self.minimum} px"
            )

    def build(self, *, classes: int, channels: int) -> Network:
        """Grow the tree: (batch, channels, resolution, resolution) in, (batch, classes) out."""
        raise NotImplementedError

    def small(self, *, resolution: int = SMALL) -> Self:
        """Return this network with the stem for images up to 64 pixels: one 3x3 convolution that keeps their size."""
        if "small_stem" not in self.hints():
            raise SpecError(f"{type(self).__name__} has no small stem: its first layers are the network's own")
        changed: Self = dataclasses.replace(self, small_stem=True, resolution=resolution)  # type: ignore[type-var]
        return changed

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
            if not (isinstance(factor, int | float) and math.isfinite(factor) and factor > 0):
                raise SpecError(f"scaled: {name} is a positive factor, not {factor!r}")

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


def _rebuild(value: Any, hint: Any, change: Callable[[str | None, Any], Any]) -> Any:
    """Return a copy of a record in which each cell went through `change(kind, value)`."""
    if isinstance(value, Record):
        hints = value.hints()
        fields = dataclasses.fields(value)  # type: ignore[arg-type]
        return type(value)(**{f.name: _rebuild(getattr(value, f.name), hints[f.name], change) for f in fields})
    if isinstance(value, tuple):
        return tuple(_rebuild(item, _item_hint(hint, i), change) for i, item in enumerate(value))
    return change(_kind(hint), value)


def cells(record: Record, path: str = "") -> Iterator[tuple[str, Any, str | None]]:
    """Yield (path, value, kind) of every cell, such as ("maps[1]", 16, "width"); kind is None for plain cells.

    The first cell of a record, and of every row in it, is its "type".
    """

    def visit(value: Any, hint: Any, path: str) -> Iterator[tuple[str, Any, str | None]]:
        if isinstance(value, Record):
            yield from cells(value, path + ".")
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                yield from visit(item, _item_hint(hint, i), f"{path}[{i}]")
        else:
            yield path, value, _kind(hint)

    yield path + "type", type(record).__name__, None
    hints = record.hints()
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        yield from visit(getattr(record, field.name), hints[field.name], path + field.name)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def changed(record: AnyRecord, values: Mapping[str, Any]) -> AnyRecord:
    """Return the record with other values in the cells at these paths, such as {"rows[0].depth": 2}.

    Raises SpecError for a path that is not there, and for a value that does not fit.
    """
    known = [path for path, _, _ in cells(record)]
    for path in values:
        if path not in known:
            raise SpecError(f"{type(record).__name__} has no cell {path!r}{nearest(path, known)}")

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Record):
            fields = dataclasses.fields(value)  # type: ignore[arg-type]
            inner = path + "." if path else ""
            return type(value)(**{f.name: visit(getattr(value, f.name), inner + f.name) for f in fields})
        if isinstance(value, tuple):
            return tuple(visit(item, f"{path}[{i}]") for i, item in enumerate(value))
        return values.get(path, value)

    made: AnyRecord = visit(record, "")
    return made


def diff(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    """Return {path: (value in a, value in b)} of the cells that differ; None stands for a cell that is not there."""
    left = {path: value for path, value, _ in cells(a)}
    right = {path: value for path, value, _ in cells(b)}
    return {path: (left.get(path), right.get(path)) for path in left | right if left.get(path) != right.get(path)}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_plain()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_plain(
    data: Any, types: Mapping[str, type[Record]], path: str = "spec", *, known: Mapping[str, type[Record]] | None = None
) -> Any:
    """Build the record that `to_plain` wrote. `types` are the record types allowed at this place, by name.

    known: all record types that may stand for a base of theirs further inside; `types` where left out.
    Raises SpecError that names the field for unknown types, unknown or missing fields and values of a wrong type.
    """
    if not isinstance(data, Mapping) or "type" not in data:
        raise SpecError(f"{path}: expected a record with a 'type', got {data!r}")
    if not isinstance(data["type"], str):
        raise SpecError(f"{path}.type: expected the name of a record type, got {data['type']!r}")
    name = data["type"]
    if name not in types:
        raise SpecError(f"{path}.type: unknown record type {name!r}{nearest(str(name), types)}")
    known = types if known is None else known
    record, hints = types[name], types[name].hints()
    fields = {field.name: field for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    for given in data:
        if given != "type" and given not in fields:
            raise SpecError(f"{path}.{given}: {name} has no such field{nearest(given, fields)}")
    missing = [
        field.name
        for field in fields.values()
        if field.name not in data and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise SpecError(f"{path}.{missing[0]}: missing")
    values = {
        given: _read(value, hints[given], f"{path}.{given}", known) for given, value in data.items() if given != "type"
    }
    for given, value in values.items():
        if wrong := _misfit(value, hints[given], f"{path}.{given}"):
            raise SpecError(wrong)
    return record(**values)


def _read(value: Any, hint: Any, path: str, known: Mapping[str, type[Record]]) -> Any:
    """Turn lists into tuples and dicts into the records that the type hint allows, a subclass among `known`, too."""
    if isinstance(value, Mapping):
        options = [o for o in _alternatives(hint) if isinstance(o, type) and issubclass(o, Record)]
        rows = {o.__name__: o for o in options if dataclasses.is_dataclass(o)}
        rows |= {name: kind for name, kind in known.items() if issubclass(kind, tuple(options))}
        return from_plain(value, rows, path, known=known)
    if type(value) is int and float in _alternatives(hint):
        return float(value)
    if isinstance(value, list):
        return tuple(_read(item, _item_hint(hint, i), f"{path}[{i}]", known) for i, item in enumerate(value))
    return value
