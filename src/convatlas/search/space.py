"""Search spaces: names, each with its choices. A candidate has one choice for every name.

`SpecSpace` is the space of a spec with choices in its cells; what its candidates make is a spec.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.core.choice import Template
from convatlas.core.record import Record
from convatlas.core.table import Table
from convatlas.errors import ConvatlasError, SearchError, nearest

Candidate = dict[str, Any]
"""Name -> choice."""

Codes = NDArray[np.int64]
"""Candidates (n, names): the index of each choice."""

LEAST_DRAWN, MAX_DRAWN = 10_000, 100
"""How many candidates `Space.sample` draws, and for each that it should return, before it returns fewer."""


MAX_MORE = 64
"""How many times as many candidates as are missing are drawn at once, where few of them are allowed."""

MAX_LISTED = 100_000
"""Largest space whose candidates are listed when random ones are not enough."""


class Space:
    """All combinations of choices that are allowed.

    choices: name -> its choices, such as {"kernel": [3, 5, 7], "block": ["plain", "residual"]}. Choices that are all
    numbers are ordered: near ones are alike. allowed: returns whether a candidate may be chosen; a constraint that can
    be computed before the evaluation, such as parameters below a limit.
    Raises SearchError if there is no name, a name without choices, or a choice that is there twice.
    """

    def __init__(
        self, choices: Mapping[str, Iterable[Any]], *, allowed: Callable[[Candidate], bool] | None = None
    ) -> None:
        if not isinstance(choices, Mapping) or not choices:
            raise SearchError(f"Space: must be a mapping of names to choices, got {choices!r}")
        self.choices: dict[str, tuple[Any, ...]] = {}
        for name, values in choices.items():
            if not isinstance(name, str):
                raise SearchError(f"Space: names must be texts, got {name!r}")
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise SearchError(f"Space: {name} must have a list of choices, got {values!r}")
            self.choices[name] = listed = tuple(map(_plain_number, values))
            if not listed:
                raise SearchError(f"Space: {name} must have at least one choice")
            for i, value in enumerate(listed):
                if isinstance(value, np.ndarray) or value != value:
                    raise SearchError(f"Space: {name} must have choices that can be compared, got {value!r}")
                if _index(listed[:i], value) < i:
                    raise SearchError(f"Space: {name} must have different choices, got {value!r} twice")
        self.allowed = allowed
        self.names = tuple(self.choices)
        self._counts = np.array([len(values) for values in self.choices.values()])

    def __repr__(self) -> str:
        rows = tuple((name, ", ".join(map(str, values))) for name, values in self.choices.items())
        return repr(Table(("name", "choices"), rows))

    @property
    def size(self) -> int:
        """The number of combinations; of which some may not be allowed."""
        return math.prod(map(len, self.choices.values()))

    @property
    def ordered(self) -> NDArray[np.bool_]:
        """Whether each column of `positions` is ordered: the choices of the name are numbers."""
        return np.array(self._ordered_choices)

    @property
    def _ordered_choices(self) -> list[bool]:
        return [all(_is_number(value) for value in values) for values in self.choices.values()]

    def positions(self, codes: Codes) -> NDArray[np.float32]:
        """Return the place of each choice among those of its name, (n, names): ranks from 0 to 1 of ordered choices,
        else indices."""
        places = []
        for values, is_ordered in zip(self.choices.values(), self._ordered_choices, strict=True):
            ranks = np.argsort(np.argsort(values)) / max(1, len(values) - 1) if is_ordered else np.arange(len(values))
            places.append(ranks)
        return np.array([place[column] for place, column in zip(places, codes.T, strict=True)], dtype=np.float32).T

    def encode(self, candidate: Mapping[str, Any]) -> Codes:
        """Return a candidate as (names,); raises SearchError for a name or a choice that is not there."""
        for name in candidate:
            if name not in self.choices:
                raise SearchError(f"Space: no name {name!r}{nearest(str(name), self.names)}")
        codes = []
        for name, values in self.choices.items():
            if name not in candidate:
                raise SearchError(f"Space: the candidate must have a choice for {name}")
            if (index := _index(values, _plain_number(candidate[name]))) == len(values):
                raise SearchError(
                    f"Space: {name} must be one of {', '.join(map(str, values))}, got {candidate[name]!r}"
                )
            codes.append(index)
        return np.array(codes, dtype=np.int64)

    def decode(self, codes: Codes) -> Candidate:
        """Return the candidate of codes (names,)."""
        return {name: values[code] for (name, values), code in zip(self.choices.items(), codes.tolist(), strict=True)}

    def named(self, codes: Codes) -> dict[str, int]:
        """Return the index of the choice of each name, of codes (names,)."""
        return dict(zip(self.names, codes.tolist(), strict=True))

    def all(self) -> Codes:
        """Return all candidates that are allowed, (n, names), in order."""
        every = itertools.product(*(range(count) for count in self._counts.tolist()))
        return self._only_allowed(np.array(list(every), dtype=np.int64))

    def sample(self, number: int, random: np.random.Generator) -> Codes:
        """Return different candidates at random, (number, names), or fewer if no more are found."""
        found: dict[bytes, NDArray[np.int64]] = {}
        more, left = 1, max(LEAST_DRAWN, MAX_DRAWN * number)
        while (missing := number - len(found)) > 0 and left > 0:
            size = min(missing * more, left)
            left -= size
            new = self._only_allowed(random.integers(0, self._counts, (size, len(self._counts))))
            found |= {row.tobytes(): row for row in new}
            more = min(MAX_MORE, 2 * more) if len(new) < size / 10 else 1  # few are allowed
        if len(found) < number and self.size <= MAX_LISTED:
            every = self.all()
            return every[random.permutation(len(every))[:number]]
        return np.array(list(found.values()), dtype=np.int64).reshape(-1, len(self._counts))[:number]

    def mutate(self, codes: Codes, random: np.random.Generator, *, changes: int = 1) -> Codes:
        """Return copies of candidates (n, names) in which up to `changes` choices are drawn again; those allowed."""
        mutants = codes.copy()
        rows = np.arange(len(mutants))
        for _ in range(changes):
            columns = random.integers(0, len(self._counts), len(mutants))
            mutants[rows, columns] = random.integers(0, self._counts[columns])
        return self._only_allowed(mutants)

    def crossover(self, first: Codes, second: Codes, random: np.random.Generator) -> Codes:
        """Return candidates with each choice from one of two parents (n, names); those allowed."""
        return self._only_allowed(np.where(random.random(first.shape) < 0.5, first, second))

    def value(self, candidate: Candidate) -> Any:
        """Return what an evaluation gets for a candidate: the candidate itself, as a dict of its own."""
        return dict(candidate)

    def is_allowed(self, candidate: Candidate) -> bool:
        """Return whether a candidate may be chosen."""
        return self.allowed is None or bool(self.allowed(self.value(candidate)))

    def _only_allowed(self, codes: Codes) -> Codes:
        if type(self) is Space and self.allowed is None:
            return codes
        allowed: Codes = codes[np.array([self.is_allowed(self.decode(row)) for row in codes], dtype=bool)]
        return allowed


class SpecSpace(Space):
    """The records that a template makes, such as all specs of `EfficientNet((MBConvRow(choose(3, 6), ...), ...))`.

    allowed: gets a record. A combination that the class of the record refuses is not allowed.
    """

    def __init__(self, template: Any, *, allowed: Callable[[Any], bool] | None = None) -> None:
        if not isinstance(template, Template):
            raise SearchError(f"space: must have choices, such as choose(3, 5), in its cells, got {template!r}")
        super().__init__(template.choices, allowed=allowed)
        self.template = template

    def value(self, candidate: Candidate) -> Any:
        """Return the record of a candidate; raises the error of its class if the choices do not fit each other."""
        return self.template.fill(candidate)

    def is_allowed(self, candidate: Candidate) -> bool:
        try:
            record = self.value(candidate)
        except ConvatlasError:
            return False
        return self.allowed is None or bool(self.allowed(record))

    def encode(self, candidate: Mapping[str, Any] | Record) -> Codes:
        """Return a candidate, or a record of the space, as (names,); raises SearchError for a record that is none."""
        if not isinstance(candidate, Record):
            return super().encode(candidate)
        chosen = self.template.matching(candidate)
        if chosen is None:
            raise SearchError(f"space: {type(candidate).__name__} must be a network of the space, got {candidate}")
        return super().encode(chosen)


def space_of(space: Any) -> Space:
    """Return a space as it is, or that of a spec with choices."""
    return space if isinstance(space, Space) else SpecSpace(space)


def _plain_number(value: Any) -> Any:
    """Return a number of numpy as one of Python, and everything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _index(values: Sequence[Any], value: Any) -> int:
    """Return the index of the first equal value; the length if there is none. True is not 1."""
    return next((i for i, each in enumerate(values) if type(each) is type(value) and each == value), len(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
