"""Choices in the cells of a record: `choose(3, 5)` instead of a value makes the record a template of many records."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convatlas.errors import ConvatlasError, SpecError


@dataclass(frozen=True)
class Choice:
    """The values that a cell may have. name: cells with the same name have the same value."""

    options: tuple[Any, ...]
    name: str = ""

    def __post_init__(self) -> None:
        if not self.options:
            raise SpecError("choose: must have at least one option")
        if not isinstance(self.name, str):
            raise SpecError(f"choose: name must be a text, got {self.name!r}")
        for i, option in enumerate(self.options):
            if any(type(option) is type(other) and option == other for other in self.options[:i]):
                raise SpecError(f"choose: the options must be different, got {option!r} twice")
            if has_choices(option):
                raise SpecError(f"choose: an option must not have choices of its own, got {option!r}")

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        return f"choose({', '.join(map(repr, self.options))}{name})"

    def to_plain(self) -> dict[str, Any]:
        """Return {"choose": [options]}, and the name if there is one."""
        return {"choose": _plain(self.options)} | ({"name": self.name} if self.name else {})


def choose(*options: Any, name: str = "") -> Any:
    """Return a choice for a cell of a record, such as `MBConvRow(choose(3, 6), choose(3, 5), 24, 2)`.

    The record is then a `Template`. name: choices with the same name and options are one choice. The type is Any, so
    that type checkers allow it wherever a value is allowed.
    """
    return Choice(options, name)


class Template:
    """A record some of whose cells are choices; what its class returns if it gets any.

    kind: the class of the record. choices: name -> options; a choice without a name has that of its cell, such as
    "rows[1].kernel". first: the record with the first option of every choice.
    Raises the error of the class if a value does not fit, or one option while the others are the first ones.
    """

    def __init__(self, kind: type[Any], values: Mapping[str, Any]) -> None:
        self.kind, self.values = kind, dict(values)
        self.choices: dict[str, tuple[Any, ...]] = {}
        for name, choice in _choices(self.values, ""):
            if self.choices.setdefault(name, choice.options) != choice.options:
                raise SpecError(f"choose: cells named {name!r} must have the same options")
        self.first = self.fill({})
        for name, options in self.choices.items():
            for option in options[1:]:
                self.fill({name: option})

    def fill(self, chosen: Mapping[str, Any]) -> Any:
        """Return the record with these options, and the first ones of other choices.

        Raises SpecError for a name or an option that is not there, and the error of the class for an option that does
        not fit the others.
        """
        for name, option in chosen.items():
            if name not in self.choices:
                raise SpecError(f"{self.kind.__name__}: there is no choice {name!r}")
            if not any(type(option) is type(each) and option == each for each in self.choices[name]):
                raise SpecError(f"{self.kind.__name__}: {name} must be one of {self.choices[name]}, got {option!r}")
        return self._build(chosen, "")

    def _build(self, chosen: Mapping[str, Any], path: str) -> Any:
        return self.kind(**{name: _filled(value, chosen, f"{path}{name}") for name, value in self.values.items()})

    def replaced(self, changes: Mapping[str, Any]) -> Template:
        """Return the template with other values, or choices, in these fields of the record."""
        return Template(self.kind, {**self.values, **changes})

    def narrowed(self, options: Mapping[str, Sequence[Any]]) -> Template:
        """Return the template with only these options of some choices, by their names."""
        return _narrowed(self, options, "")  # type: ignore[no-any-return]

    def matching(self, record: Any) -> dict[str, Any] | None:
        """Return the options that make the template this record, or None if it is none of its records."""
        chosen: dict[str, Any] = {}
        return chosen if _matches(self, record, "", chosen) else None

    def to_plain(self) -> dict[str, Any]:
        """Return what the record would be as plain data, with {"choose": [options]} for choices."""
        plain: dict[str, Any] = {} if self.kind.version is None else {"version": self.kind.version}
        if self.kind.tagged:
            plain["type"] = self.kind.__name__
        for name, value in self.values.items():
            plain |= _plain(value) if name in self.kind.inlined() else {name: _plain(value)}
        return plain

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and (self.kind, self.values) == (other.kind, other.values)

    __hash__ = None  # type: ignore[assignment]  # it holds a dict

    def __repr__(self) -> str:
        return f"{self.kind.__name__}({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self.__dict__.get("values", ()):
            raise AttributeError(f"{name}: fill the choices of the template first, or see `first`")
        return self.values[name]


def template_of(kind: type[Any], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Template:
    """Return the template for the arguments of a record's class; raises TypeError for arguments that do not fit."""
    fields = dataclasses.fields(kind)
    if len(arguments) > len(fields):
        raise TypeError(f"{kind.__name__}() takes {len(fields)} arguments, got {len(arguments)}")
    values = {field.name: value for field, value in zip(fields, arguments, strict=False)}
    return Template(kind, {**values, **named})


def has_choices(value: Any) -> bool:
    """Return whether a value is a choice, or has one inside."""
    if type(value) is tuple or type(value) is list:
        return any(map(has_choices, value))
    return isinstance(value, Choice | Template)


def _choices(value: Any, path: str) -> Iterator[tuple[str, Choice]]:
    if isinstance(value, Choice):
        yield value.name or path, value
    elif isinstance(value, Template):
        yield from _choices(value.values, f"{path}." if path else "")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _choices(item, f"{path}{name}")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _choices(item, f"{path}[{i}]")


def _filled(value: Any, chosen: Mapping[str, Any], path: str) -> Any:
    if isinstance(value, Choice):
        return chosen.get(value.name or path, value.options[0])
    if isinstance(value, Template):
        return value._build(chosen, f"{path}.")
    if isinstance(value, tuple | list):
        return tuple(_filled(item, chosen, f"{path}[{i}]") for i, item in enumerate(value))
    return value


def _narrowed(value: Any, options: Mapping[str, Sequence[Any]], path: str) -> Any:
    if isinstance(value, Choice):
        return Choice(tuple(options.get(value.name or path, value.options)), value.name)
    if isinstance(value, Template):
        inner = f"{path}." if path else ""
        return Template(
            value.kind, {name: _narrowed(each, options, f"{inner}{name}") for name, each in value.values.items()}
        )
    if isinstance(value, tuple | list):
        return tuple(_narrowed(item, options, f"{path}[{i}]") for i, item in enumerate(value))
    return value


def _matches(pattern: Any, value: Any, path: str, chosen: dict[str, Any]) -> bool:
    """Return whether a value is one of those of a pattern; adds the options to `chosen`."""
    if isinstance(pattern, Choice):
        options = [option for option in pattern.options if _is_same(option, value)]
        return bool(options) and chosen.setdefault(pattern.name or path, options[0]) == options[0]
    if isinstance(pattern, Template):
        if type(value) is not pattern.kind:
            return False
        inner = f"{path}." if path else ""
        return all(
            _matches(pattern.values.get(name, default), getattr(value, name), f"{inner}{name}", chosen)
            for name, default in (
                (field.name, getattr(pattern.first, field.name)) for field in dataclasses.fields(pattern.kind)
            )
        )
    if isinstance(pattern, tuple):
        return (
            isinstance(value, tuple) and len(pattern) == len(value)
            and all(_matches(p, v, f"{path}[{i}]", chosen) for i, (p, v) in enumerate(zip(pattern, value, strict=True)))
        )  # fmt: skip
    return bool(pattern == value)


def _is_same(option: Any, value: Any) -> bool:
    """Return whether a value is an option; 0 is 0.0, but True is not 1."""
    return bool(option == value) and isinstance(option, bool) == isinstance(value, bool)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.to_plain() if hasattr(value, "to_plain") else value


def choice_from_plain(data: Mapping[str, Any], options: list[Any], where: str, error: type[ConvatlasError]) -> Choice:
    """Return the choice of plain data {"choose": [...], "name": ...}; raises `error` that names the place."""
    if unknown := set(data) - {"choose", "name"}:
        raise error(f"{where}: {min(map(str, unknown))} is not a field of a choice; those are choose and name")
    try:
        return Choice(tuple(options), data.get("name", ""))
    except SpecError as problem:
        raise error(f"{where}: {problem}") from problem
