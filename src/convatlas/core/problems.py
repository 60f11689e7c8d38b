"""Problems of a data set, collected so that all of them can be reported at once."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from convatlas.errors import DataError

NO_DATA = "no_data"
"""Kind of the errors of an argument that names no data."""


class Problems:
    """The errors of a data set. A reader collects them and continues; `stop` raises them as one error."""

    def __init__(self) -> None:
        self.errors: list[DataError] = []

    def add(self, error: DataError, kind: str = "") -> None:
        """Add an error; `kind` is used unless the error has its own."""
        error.kind = error.kind or kind
        self.errors.append(error.with_traceback(None))  # frames would keep every row in memory

    def of(self, kind: str) -> Collector:
        """Return a context manager that adds a DataError from inside, as one of this kind, and continues after it."""
        return Collector(self, kind)

    @property
    def subjects(self) -> set[str]:
        return {error.subject for error in self.errors}

    def stop(self, data: object, *, allowed: Collection[str] = ()) -> None:
        """Raise a DataError for the errors whose kinds are not `allowed`, if any: the first, and the number of others.

        data: the argument that names the data set, for the command that lists the others.
        """
        errors = [error for error in self.errors if error.kind not in allowed]
        if not errors:
            return
        first, *others = errors
        if not others:
            raise first
        more = f"{len(others):,} more problem{'s' if len(others) > 1 else ''}"
        named = isinstance(data, str | Path)
        fix = f"`convatlas data check {shlex.quote(str(data))}` lists" if named else "`convatlas.check_data` lists"
        raise DataError(f"{first}; {more}; {fix} them", kind=first.kind, subject=first.subject)


@dataclass(frozen=True)
class Collector:
    """Adds a DataError that is raised inside to problems. It can be entered any number of times."""

    problems: Problems
    kind: str

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, DataError):
            return False
        self.problems.add(error, self.kind)
        return True
