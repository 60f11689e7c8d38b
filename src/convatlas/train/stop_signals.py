"""SIGINT and SIGTERM while a run trains: what was trained is saved before the process stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """The process was asked to stop by a signal that Python has no exception for; the exit code is 128 + number."""


class StopSignals:
    """Handlers of SIGINT and SIGTERM, which call `save` and then the previous handlers.

    As a context manager it installs the handlers in the main thread and restores the previous ones at the end; in other
    threads it does nothing. A signal that the process ignores stays ignored. The default handler of SIGTERM becomes the
    exception `Terminated`, so that files and process groups are closed; that of SIGINT raises KeyboardInterrupt.
    save: called between two steps, when everything that a checkpoint contains is consistent.
    together: several ranks stop at the same step. The handlers then only note the signal; the ranks exchange
        `requested` and call `stop`.
    """

    def __init__(self, save: Callable[[], None], *, together: bool = False) -> None:
        self._save, self._together = save, together
        self._received = 0
        self._depth = 0
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived that nothing was done about yet."""
        return self._received != 0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                previous = signal.getsignal(number)
                if previous not in (signal.SIG_IGN, None):  # None: not installed from Python
                    self._previous[number] = previous
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, previous in self._previous.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, previous)
        if self.requested and kind is None:  # it arrived after the last step
            self._call_previous()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        impatient = number == self._received == signal.SIGINT and not self._together
        self._received = number
        if impatient:
            self._call_previous()
        elif not self._depth and not self._together:
            self.stop()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait for the end of the block, at which the state is consistent again."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self.requested and not self._depth and not self._together:
            self.stop()

    def stop(self) -> None:
        """Save, then do what the process does at the signal without these handlers."""
        self._depth += 1
        try:
            self._save()
        finally:
            self._depth -= 1
        self._call_previous()

    def _call_previous(self) -> None:
        number, self._received = self._received or int(signal.SIGTERM), 0
        previous = self._previous.get(number, signal.SIG_DFL)
        if callable(previous):
            previous(number, None)
        else:
            raise Terminated(128 + number)
