"""ASGI middleware that refuses requests without a token, too large, too slow or too many, and counts responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from convatlas.inference.serve.limits import Limits
from convatlas.inference.serve.token import has_token, is_public

SMALL_BYTES = 2**20
"""Requests up to this size may use all of `Limits.body_bytes`, larger ones three quarters, so that photos have room."""

LINGER_S = 30.0
"""Seconds for which the rest of a refused upload is read and dropped, so that its client reads the response."""

LINGER_IDLE_S = 5.0
"""Seconds without a byte after which the rest of a refused upload is no longer expected."""

CLIENT_CLOSED_REQUEST = 499
"""Status in the metrics of an upload that its client broke off; it is never sent."""

logger = logging.getLogger(__name__)


class RequestLimiter:
    """Refuses requests with too many bytes (413), that are too slow (408), or that have no room in memory (503).

    requests: a Prometheus counter with the label `status`. token: required (401), if there is one, except by what
    `is_public` names. reserved_bytes: memory reserved for the bodies and responses of all requests.
    """

    def __init__(self, app: Any, limits: Limits, requests: Any, token: str | None = None) -> None:
        self.app, self.limits, self.requests, self.token = app, limits, requests, token
        self.reserved_bytes = 0

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server leaves out the body
            scope = {**scope, "method": "GET"}
        exchange = _Exchange(self, scope, receive, send)
        try:
            refusal = exchange.check_headers()
            await (refusal or self.app)(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            logger.warning("a request was not completed before the server stopped")
        finally:
            exchange.release()


class _Exchange:
    """One request and its response."""

    def __init__(self, limiter: RequestLimiter, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        self._limiter, self._limits, self._receive, self._send = limiter, limiter.limits, receive, send
        self._headers = dict(scope["headers"])
        self._path, self._client = scope["path"], scope.get("client")
        self._announced = int(self._headers.get(b"content-length", b"0"))
        self._has_arrived = not (self._announced or b"transfer-encoding" in self._headers)
        self._received = 0
        self._reserved = 0
        self._deadline = asyncio.get_running_loop().time() + self._limits.request_s

    def check_headers(self) -> JSONResponse | None:
        """Return the response to a request that is refused by its headers; room for its body is reserved otherwise."""
        token, encoding = self._limiter.token, self._headers.get(b"content-encoding", b"identity").strip().lower()
        try:
            accept = self._headers.get(b"accept", b"").decode("latin-1")
            is_allowed = token is None or has_token(self._headers.get(b"authorization", b""), token)
            if not (is_allowed or is_public(self._path, accept)):
                message = "a token is required: Authorization: Bearer TOKEN"
                raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})
            if b"transfer-encoding" in self._headers and b"content-length" in self._headers:
                raise HTTPException(400, "a request must not have both Content-Length and Transfer-Encoding")
            if encoding not in (b"identity", b""):
                name = encoding.decode("latin-1")[:40]
                raise HTTPException(415, f"Content-Encoding must be identity, got {name}; send the file as it is")
            self._reserve(self._announced)
        except HTTPException as error:
            return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        return None

    def _reserve(self, size: int) -> None:
        """Reserve memory for a body of `size` bytes, as far as it is not reserved yet."""
        if size > self._limits.request_bytes:
            raise HTTPException(413, f"a request must have at most {self._limits.request_bytes:,} bytes")
        more = size - self._reserved
        room = self._limits.max_body_bytes * (1 if size <= SMALL_BYTES else 0.75)
        if more > 0 and self._limiter.reserved_bytes + more > room:
            message = f"the requests in memory have {self._limiter.reserved_bytes:,} bytes; try again later"
            raise HTTPException(503, message, {"Retry-After": "1"})
        self._add_reserved(max(0, more))

    def _add_reserved(self, size: int) -> None:
        self._reserved += size
        self._limiter.reserved_bytes += size

    def release(self) -> None:
        """Release the memory of the request."""
        self._limiter.reserved_bytes -= self._reserved
        self._reserved = 0

    async def receive(self) -> Any:
        """Return the next message of the request. Raises HTTPException if it is too large or too slow."""
        if self._has_arrived:
            return await self._receive()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(self._deadline, loop.time() + self._limits.idle_s)):
                message = await self._receive()
        except TimeoutError:
            slow = loop.time() >= self._deadline
            what = f"took more than {self._limits.request_s:g}" if slow else f"paused for {self._limits.idle_s:g}"
            raise HTTPException(408, f"the request {what} s") from None
        except asyncio.CancelledError:
            raise HTTPException(503, "the server stops", {"Retry-After": "1"}) from None
        if message["type"] == "http.disconnect":
            self._has_arrived = True
            size = f" of {self._announced:,}" if self._announced else ""
            host = self._client[0] if self._client else "unknown"
            logger.warning("%s: the upload broke off after %s%s bytes", host, f"{self._received:,}", size)
            raise HTTPException(CLIENT_CLOSED_REQUEST, "the upload broke off")
        self._received += len(message.get("body", b""))
        self._reserve(self._received)
        self._has_arrived = not message.get("more_body", False)
        return message

    async def send(self, message: Any) -> None:
        """Send a message of the response. Before the last one, the rest of the body of the request is dropped."""
        if message["type"] == "http.response.start":
            self._limiter.requests.labels(str(message["status"])).inc()
            if not self._has_arrived:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await self._send(message)
            return
        if not self._has_arrived:  # the application has dropped what it has
            self.release()
        self._add_reserved(len(message.get("body", b"")))
        await self._send({**message, "more_body": True})
        if not message.get("more_body", False):
            if not self._has_arrived:
                await self._drop_body()
            await self._send({"type": "http.response.body", "body": b""})  # waits until the client has read

    async def _drop_body(self) -> None:
        now = asyncio.get_running_loop().time()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(now + LINGER_S, max(now + LINGER_IDLE_S, self._deadline))):
                while not self._has_arrived:
                    async with asyncio.timeout(LINGER_IDLE_S):
                        message = await self._receive()
                    self._has_arrived = message["type"] == "http.disconnect" or not message.get("more_body", False)
