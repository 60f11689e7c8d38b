"""The protocol of inference engines."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from convatlas.errors import ConvatlasError, EngineError, foreign_errors, printable, shorten


class Engine(Protocol):
    """Runs a network. Any number of threads may call an engine at the same time."""

    @property
    def name(self) -> str:
        """One of `select.ENGINES`."""
        ...

    def outputs(self, pixels: Any) -> Any:
        """Return outputs, float32 (n, outputs), for pixels (n, *Preprocessing.item_shape) of `Preprocessing.dtype`.

        Detectors take a list of whole images (channels, h, w), and return a list with what they found in each.
        Raises EngineError if the engine fails, for instance out of memory.
        """
        ...


def runtime_errors(
    where: object, problem: str, error: type[ConvatlasError] = EngineError
) -> AbstractContextManager[None]:
    """Turn whatever a runtime library raises inside into one line, without the locations in its source code."""
    return foreign_errors(where, error, problem, _describe)


def _describe(cause: BaseException) -> str:
    lines = [line.strip() for line in str(cause).splitlines() if line.strip() and "Exception from" not in line]
    return shorten(printable(" ".join(lines)), 300) or type(cause).__name__
