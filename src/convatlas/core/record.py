"""Frozen records: one validator and one plain-data form for specs, recipes, preprocessing, options and file headers.

A record is a frozen dataclass. Its field types say what is allowed, with bounds in `Annotated`:

    @dataclass(frozen=True)
    class Schedule(Record):
        epochs: Annotated[int, at_least(1)] = 20
        lr: Annotated[float, above(0)] = 0.1
        kind: Literal["constant", "cosine"] = "cosine"

A value that does not fit raises the class's error: "Schedule: epochs must be an integer >= 1, got 0". `to_plain` gives
dicts, lists, numbers and strings; `from_plain` reads them back and names the field that is unknown, missing or wrong.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from convatlas.core.choice import Choice, Template, choice_from_plain, has_choices, template_of
from convatlas.errors import ConvatlasError, SpecError, nearest


@dataclass(frozen=True)
class Bounds:
    """The finite numbers from `low` to `high`, without an open end."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above_low = value > self.low if self.low_open else value >= self.low
        below_high = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above_low and below_high

    def __str__(self) -> str:
        if self.high == math.inf:
            return "" if self.low == -math.inf else f" {'>' if self.low_open else '>='} {_limit(self.low)}"
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f" in {left}{_limit(self.low)}, {_limit(self.high)}{right}"


def _limit(value: float) -> str:
    """Return a bound as text, with all of its digits."""
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def at_least(low: float) -> Bounds:
    return Bounds(low)


def above(low: float) -> Bounds:
    return Bounds(low, low_open=True)


def between(low: float, high: float) -> Bounds:
    """Both ends included."""
    return Bounds(low, high)


def from_up_to(low: float, high: float) -> Bounds:
    """`low` included, `high` not: [low, high)."""
    return Bounds(low, high, high_open=True)


@dataclass(frozen=True)
class Kind:
    """What a number of a table scales with: "width", "depth" or "resolution"; such cells are integers >= 1."""

    name: str


class Inline:
    """Marks a field that is a record whose fields are merged into those of the outer record in plain data."""


class Record:
    """Base of all frozen records.

    error: what a wrong value raises. tagged: plain data names the record's type, for fields that accept several
    types. version: the format version that plain data carries, for records that are files.
    """

    error: ClassVar[type[ConvatlasError]] = SpecError
    tagged: ClassVar[bool] = False
    version: ClassVar[int | None] = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return a new record, or a `Template` if there are choices among the values."""
        if any(map(has_choices, args)) or any(map(has_choices, kwargs.values())):
            return template_of(cls, args, kwargs)
        return super().__new__(cls)

    @classmethod
    @cache
    def hints(cls) -> dict[str, Any]:
        """Return the type of each field, with the marks in its `Annotated`."""
        hints = get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name] for field in fields_of(cls)}

    @classmethod
    @cache
    def inlined(cls) -> dict[str, type[Record]]:
        """Return the fields whose own fields are merged into the others in plain data."""
        marked = {name: hint for name, hint in cls.hints().items() if _marks(hint, Inline)}
        return {name: get_args(hint)[0] for name, hint in marked.items()}

    def __post_init__(self) -> None:
        for name, hint in self.hints().items():
            problem = find_problem(getattr(self, name), hint, name)
            if problem:
                raise self.error(f"{type(self).__name__}: {problem}")

    def to_plain(self) -> dict[str, Any]:
        """Return the record as dicts, lists, numbers and strings."""
        plain: dict[str, Any] = {"version": self.version} if self.version is not None else {}
        if self.tagged:
            plain["type"] = type(self).__name__
        for field in fields_of(type(self)):
            value = to_plain(getattr(self, field.name))
            plain |= value if field.name in self.inlined() else {field.name: value}
        return plain

    @classmethod
    def from_plain(cls, data: Any, *, where: str = "", known: Mapping[str, type[Record]] | None = None) -> Self:
        """Build the record that `to_plain` wrote.

        where: names the file or the place in the error, such as "run.json"; the name of the type by default.
        known: the tagged record types, by name, that fields of their base types accept.
        Raises the class's error that names the field, if one is unknown, missing or of a wrong value or version.
        """
        where = where or cls.__name__
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            raise cls.error(f"{where}: must be a table of fields, got {data!r}")
        data = dict(data)
        if cls.version is not None:
            check_version(data.pop("version", None), cls.version, where, cls.error)
        if data.pop("type", cls.__name__) != cls.__name__:
            raise cls.error(f"{where}: must be a {cls.__name__}")
        values: dict[str, Any] = {}
        for name, kind in cls.inlined().items():
            inner = {field: data.pop(field) for field in kind.hints() if field in data}
            values[name] = kind.from_plain(inner, where=where, known=known)
        fields = {field.name: field for field in fields_of(cls)}
        for name in data:
            if name not in fields or name in values:
                raise cls.error(f"{where}: {name} is not a field of {cls.__name__}{nearest(name, fields)}")
        for name, field in fields.items():
            if name not in data | values and field.default is MISSING and field.default_factory is MISSING:
                raise cls.error(f"{where}: {name} is missing")
        for name, value in data.items():
            values[name] = _from_plain(value, cls.hints()[name], f"{where}.{name}", known or {}, cls.error)
            problem = find_problem(values[name], cls.hints()[name], name)
            if problem:
                raise cls.error(f"{where}: {problem}")
        return cls(**values)

    def replaced(self, changes: Mapping[str, Any], *, where: str = "") -> Self:
        """Return the record with new values in these fields, those of inlined records included.

        Raises the class's error for an unknown field and for a value that does not fit.
        """
        where = where or type(self).__name__
        own = [name for name in self.hints() if name not in self.inlined()]
        known = dict.fromkeys(own, "")
        for name, kind in self.inlined().items():
            known |= dict.fromkeys(kind.hints(), name)
        for name in changes:
            if name not in known:
                raise self.error(f"{where}: {name} is not a field of {type(self).__name__}{nearest(name, known)}")
        values: dict[str, Any] = {name: changes[name] for name in changes if not known[name]}
        for name in self.inlined():
            inner = {field: changes[field] for field in changes if known[field] == name}
            values[name] = getattr(self, name).replaced(inner, where=where)
        for name, value in values.items():
            values[name] = _from_plain(value, self.hints()[name], f"{where}.{name}", {}, self.error)
            problem = find_problem(values[name], self.hints()[name], name)
            if problem:
                raise self.error(f"{where}: {problem}")
        changed: Self = dataclasses.replace(self, **values)  # type: ignore[type-var]  # every subclass is a dataclass
        return changed


def fields_of(kind: type[Record]) -> tuple[dataclasses.Field[Any], ...]:
    """Return the dataclass fields of a record type."""
    return dataclasses.fields(kind)  # type: ignore[arg-type]  # every subclass is a dataclass


def to_plain(value: Any) -> Any:
    """Return records as dicts, tuples as lists, mappings as dicts; numbers, strings and None as they are."""
    if isinstance(value, Record):
        return value.to_plain()
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def check_version(found: Any, supported: int, where: str, error: type[ConvatlasError]) -> None:
    """Raise `error` unless `found` is a format version that this code reads."""
    if type(found) is not int or found < 1:
        raise error(f"{where}: version must be an integer >= 1, got {found!r}; the file is damaged or foreign")
    if found > supported:
        raise error(f"{where}: version must be <= {supported}, got {found}; upgrade convatlas to read it")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union type, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def item_hint(hint: Any, index: int) -> Any:
    """Return the type of item `index` of a tuple type; Any if it does not specify one."""
    for option in alternatives(hint):
        arguments = get_args(option)
        if get_origin(option) is tuple and arguments:
            return arguments[0] if arguments[-1] is Ellipsis else arguments[min(index, len(arguments) - 1)]
    return Any


def kind_of_cell(hint: Any) -> str | None:
    """Return "width", "depth" or "resolution" for a typed cell, which may be optional, else None."""
    marks = (mark for option in alternatives(hint) for mark in _marks(option, Kind))
    return next((mark.name for mark in marks), None)


def _marks(hint: Any, kind: type[Any]) -> list[Any]:
    return [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, kind)]


def find_problem(value: Any, hint: Any, path: str) -> str | None:
    """Return "<path> must be <constraint>, got <value>" for a value that does not fit its type, or None."""
    if hint is Any:
        return None
    if isinstance(value, Choice):
        return next(filter(None, (find_problem(option, hint, path) for option in value.options)), None)
    if isinstance(value, Template):
        return find_problem(value.first, hint, path)
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        fits = any(find_problem(value, option, path) is None for option in get_args(hint))
    elif origin is Annotated:
        base = get_args(hint)[0]
        problem = find_problem(value, base, path)
        if problem and isinstance(value, tuple):
            return problem
        fits = problem is None and all(value in bounds for bounds in _bounds(hint))
    elif origin is Literal:
        fits = any(type(value) is type(option) and value == option for option in get_args(hint))
    elif origin is tuple:
        arguments = get_args(hint)
        fits = isinstance(value, tuple) and (arguments[-1] is Ellipsis or len(value) == len(arguments))
        if fits:
            problems = (find_problem(item, item_hint(hint, i), f"{path}[{i}]") for i, item in enumerate(value))
            return next(filter(None, problems), None)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        key_hint, item = get_args(hint)
        fits = isinstance(value, Mapping) and all(find_problem(key, key_hint, path) is None for key in value)
        if fits:
            problems = (find_problem(inner, item, f"{path}.{key}") for key, inner in value.items())
            return next(filter(None, problems), None)
    elif isinstance(hint, type) and issubclass(hint, Record):
        fits = isinstance(value, hint)
    else:
        fits = type(value) is hint or (hint is float and type(value) is int)
    return None if fits else f"{path} must be {describe(hint)}, got {value!r}"


def _bounds(hint: Any) -> list[Bounds]:
    return _marks(hint, Bounds) or ([Bounds(1)] if _marks(hint, Kind) else [])


_NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def describe(hint: Any) -> str:
    """Return a field's type as an error message names it, such as "an integer >= 1 or null"."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(describe, get_args(hint)))
    if origin is Annotated:
        described = describe(get_args(hint)[0]) + "".join(map(str, _bounds(hint)))
        kind = kind_of_cell(hint)
        return f"a {kind}, {described}" if kind else described
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if origin is tuple:
        arguments = get_args(hint)
        if arguments[-1] is Ellipsis:
            return f"a list, each item {describe(arguments[0])}"
        return f"a list of {len(arguments)} items"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a table of fields"
    return _NAMES.get(hint) or getattr(hint, "__name__", None) or str(hint)


def _from_plain(
    value: Any, hint: Any, where: str, known: Mapping[str, type[Record]], error: type[ConvatlasError]
) -> Any:
    """Turn lists into tuples, integers into floats, and dicts into the records that the type allows."""
    if hint is not Any and isinstance(value, Mapping) and isinstance(value.get("choose"), list):
        listed = enumerate(value["choose"])
        read = [_from_plain(each, hint, f"{where}.choose[{i}]", known, error) for i, each in listed]
        return choice_from_plain(value, read, where, error)
    options = tuple(get_args(option)[0] if get_origin(option) is Annotated else option for option in alternatives(hint))
    records = tuple(option for option in options if isinstance(option, type) and issubclass(option, Record))
    if isinstance(value, Mapping) and records:
        return read_tagged(value, records, where, known, error)
    if isinstance(value, Mapping):
        mappings = [get_args(o)[1] for o in options if _is_mapping(o)]
        inner = mappings[0] if mappings else Any
        return {key: _from_plain(item, inner, f"{where}.{key}", known, error) for key, item in value.items()}
    if type(value) is int and float in options and int not in options:
        try:
            return float(value)
        except OverflowError:
            raise error(f"{where} must be a finite number, got an integer of {value.bit_length()} bits") from None
    if isinstance(value, list) and any(get_origin(option) is tuple for option in options):
        items = enumerate(value)
        typed = next(option for option in options if get_origin(option) is tuple)
        return tuple(_from_plain(item, item_hint(typed, i), f"{where}[{i}]", known, error) for i, item in items)
    return value


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def read_tagged(
    data: Any,
    bases: tuple[type[Record], ...],
    where: str,
    known: Mapping[str, type[Record]],
    error: type[ConvatlasError] = SpecError,
) -> Any:
    """Build a record whose type is named in the data: one of `bases`, or one of `known` that derives from them."""
    if not isinstance(data, Mapping):
        raise error(f"{where}: must be a table of fields, got {data!r}")
    allowed = {base.__name__: base for base in bases if dataclasses.is_dataclass(base) and not inspect.isabstract(base)}
    allowed |= {name: kind for name, kind in known.items() if issubclass(kind, bases)}
    untagged = [name for name, kind in allowed.items() if not kind.tagged]
    name: Any = untagged[0] if untagged and "type" not in data else data.get("type")
    if not isinstance(name, str) or name not in allowed:
        hint = nearest(name, allowed) if isinstance(name, str) else ""
        raise error(f"{where}: type must be the name of a known record type, got {name!r}{hint}")
    return allowed[name].from_plain(data, where=where, known=known)
