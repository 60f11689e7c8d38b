"""ASGI middleware that limits the size and the pace of requests, and counts responses by status."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import HTTPException

from convatlas.inference.serve.batcher import Limits


class RequestLimiter:
    """Refuses requests with too many bytes (413) or pauses that are too long (408).

    requests: a Prometheus counter with the label `status`.
    """

    def __init__(self, app: Any, limits: Limits, requests: Any) -> None:
        self.app, self.limits, self.requests = app, limits, requests

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, idle_s = self.limits.request_bytes, self.limits.idle_s
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        size = int(announced) if announced.isdigit() and int(announced) > limit else 0

        async def receive_limited() -> Any:
            nonlocal size
            if size <= limit:
                try:
                    message = await asyncio.wait_for(receive(), idle_s)
                except TimeoutError:
                    raise HTTPException(408, f"the request paused for more than {idle_s:.0f} s") from None
                size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413, f"a request must have at most {limit:,} bytes", {"Connection": "close"})
            return message

        async def send_counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.requests.labels(str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive_limited, send_counted)
