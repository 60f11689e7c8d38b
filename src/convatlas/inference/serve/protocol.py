"""Limits of connections: their number, and the time for the headers of a request and for reading a response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from convatlas.inference.serve.limits import Limits

LINGER_S = 2.0
"""Seconds for which a refused connection stays open, so that its client can read the reason."""

MAX_REFUSED = 64
"""Number of refused connections that stay open at the same time; further ones are reset."""


class _Timer:
    """Calls a function after some time, unless it is stopped or started again before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, call: Callable[[], object]) -> None:
        self.stop()
        self._handle = self._loop.call_later(seconds, call)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class LimitedProtocol(H11Protocol):  # type: ignore[misc]
    """HTTP/1.1 of one connection.

    Refused are a connection beyond the maximum number (503), headers that are not complete in time (408), and requests
    that are not HTTP (400). A connection is reset if its client does not read a response in time.
    """

    def __init__(self, limits: Limits, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self.limits = limits
        self.is_refused = False
        self._header_timer, self._write_timer = _Timer(self.loop), _Timer(self.loop)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        excess = len(self.connections) - self.limits.connections
        if excess > MAX_REFUSED:
            transport.abort()
        elif excess > 0:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"there are {self.limits.connections} connections already")
        else:
            self._expect_headers()

    def data_received(self, data: bytes) -> None:
        if not self.is_refused:
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is not h11.IDLE and not self.is_refused:
            self._header_timer.stop()

    def on_response_complete(self) -> None:
        self._expect_headers()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self.refuse(HTTPStatus.BAD_REQUEST, msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer.start(self.limits.request_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_timer.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._header_timer.stop()
        self._write_timer.stop()

    def refuse(self, status: HTTPStatus, reason: str) -> None:
        """Send a reason and close the connection; what the client still sends is ignored."""
        self.is_refused = True
        self._unset_keepalive_if_required()
        body = json.dumps({"detail": reason}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n"
        )
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            head += "Retry-After: 1\r\n"
        self.transport.write(head.encode() + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._header_timer.start(LINGER_S, self.transport.abort)

    def _expect_headers(self) -> None:
        self._header_timer.start(self.limits.header_s, self._end_waiting)

    def _end_waiting(self) -> None:
        """Close the connection because no headers were complete in time."""
        received, _ = self.conn.trailing_data
        if self.transport.is_closing() or not received:
            self.transport.abort()
        else:
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, f"the headers took more than {self.limits.header_s:g} s")
