"""The protocol of inference engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor

from convatlas.errors import ConvatlasError, EngineError, printable, shorten


class Engine(Protocol):
    """Runs a network. Any number of threads may call an engine at the same time."""

    @property
    def name(self) -> str:
        """One of `select.ENGINES`."""
        ...

    def outputs(self, pixels: Tensor) -> Tensor:
        """Return outputs, float32 (n, outputs), for pixels (n, channels, size, size) of `Preprocessing.dtype`.

        Raises EngineError if the engine fails, for instance out of memory.
        """
        ...


@contextmanager
def runtime_errors(where: object, problem: str, error: type[ConvatlasError] = EngineError) -> Iterator[None]:
    """Turn whatever a runtime library raises inside into one line, without the locations in its source code."""
    try:
        yield
    except ConvatlasError:
        raise
    except Exception as cause:  # the errors of runtime libraries have no common class
        lines = [line.strip() for line in str(cause).splitlines() if line.strip() and "Exception from" not in line]
        reason = shorten(printable(" ".join(lines)), 300) or type(cause).__name__
        raise error(f"{where}: {problem} ({reason})") from cause
