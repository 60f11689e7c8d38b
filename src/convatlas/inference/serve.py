"""A model over HTTP: images in, JSON out, in batches across requests, within limits."""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prometheus_client as metrics
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile
from torch import Tensor

from convatlas.data.decode.headers import read_header
from convatlas.errors import DataError, RunError
from convatlas.inference.model import Model
from convatlas.inference.predict import EncodedImage, PredictOptions, load_views, probabilities, to_prediction

SLOWEST = 30.0
"""Seconds in which a client must send its next bytes."""


@dataclass(frozen=True)
class Limits:
    """What a server takes: images at once, seconds to wait for a batch to fill; bytes and images of a request,
    pixels of an image, and images that may wait.
    """  # fmt: skip

    batch: int = 16
    wait: float = 0.002
    bytes: int = 32 * 2**20
    images: int = 64
    pixels: int = 50_000_000
    queue: int = 1024


class FullError(Exception):
    """More images wait than may."""


class Batcher:
    """Images of all requests, read side by side and answered in batches; one thread runs the network."""

    def __init__(self, model: Model, limits: Limits, *, seen: Callable[[int], None] = lambda count: None) -> None:
        self.model, self.limits, self.seen = model, limits, seen
        self.waiting = 0
        self._queue: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue()
        self._readers = ThreadPoolExecutor(os.cpu_count(), "read")
        self._runner = ThreadPoolExecutor(1, "run")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._runner.shutdown(wait=False, cancel_futures=True)

    async def answers(self, images: list[EncodedImage]) -> list[Tensor | DataError]:
        """Return the probabilities (classes,) of each image, or why it cannot be read; raises FullError."""
        if self.waiting + len(images) > self.limits.queue:
            raise FullError
        self.waiting += len(images)
        try:
            return list(await asyncio.gather(*map(self._answer, images)))
        finally:
            self.waiting -= len(images)

    async def _answer(self, image: EncodedImage) -> Tensor | DataError:
        loop = asyncio.get_running_loop()
        try:
            views = await loop.run_in_executor(self._readers, self._read, image)
        except DataError as error:
            return error
        future: asyncio.Future[Tensor] = loop.create_future()
        self._queue.put_nowait((views, future))
        return await future

    def _read(self, image: EncodedImage) -> Tensor:
        width, height = read_header(Path(image.name), data=image.data).size
        if width * height > self.limits.pixels:
            raise DataError(f"{image.name}: {width} x {height} pixels are more than {self.limits.pixels:,}")
        return load_views(image, image.name, [self.model.header.preprocessing], PredictOptions())[0]

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            group = [await self._queue.get()]
            until = loop.time() + self.limits.wait
            while len(group) < self.limits.batch:
                left = until - loop.time()
                try:
                    group.append(
                        self._queue.get_nowait()
                        if left <= 0 or not self._queue.empty()
                        else await asyncio.wait_for(self._queue.get(), left)
                    )
                except (TimeoutError, asyncio.QueueEmpty):
                    break
            self.seen(len(group))
            views = torch.stack([views for views, _ in group])
            try:
                rows = await loop.run_in_executor(
                    self._runner, probabilities, self.model, views, self.limits.batch
                )  # fmt: skip
            except Exception as error:  # whatever happened, those who wait are told
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), row in zip(group, rows, strict=True):
                if not future.done():
                    future.set_result(row)


def application(model: Model, limits: Limits, *, token: str | None = None) -> Any:
    """Return the ASGI application: POST /predict, GET / (the model), /health, /metrics and /openapi.json."""
    registry = metrics.CollectorRegistry()
    requests = metrics.Counter("convatlas_requests", "Requests by status.", ["status"], registry=registry)
    images = metrics.Counter("convatlas_images", "Images answered.", registry=registry)
    latency = metrics.Histogram("convatlas_seconds", "Seconds from request to answer.", registry=registry)
    sizes = metrics.Histogram(
        "convatlas_batch", "Images in a batch.", buckets=[1, 2, 4, 8, 16, 32, 64], registry=registry
    )
    batcher = Batcher(model, limits, seen=sizes.observe)
    metrics.Gauge("convatlas_waiting", "Images that wait.", registry=registry).set_function(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    header = model.header
    app = FastAPI(
        title=f"convatlas: {header.name}", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Names what is in images.",
    )  # fmt: skip

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "this server wants a token: Authorization: Bearer ...")

    @app.get("/health")
    def health() -> dict[str, str]:
        """Say that the server is there."""
        return {"status": "ok"}

    @app.get("/")
    def about(request: Request) -> dict[str, Any]:
        """Say which model answers, and what it knows."""
        allowed(request)
        return {
            "name": header.name, "task": header.task, "classes": list(header.classes), "engine": str(model.engine),
            "license": header.license, "preprocessing": header.preprocessing.to_plain(),
        }  # fmt: skip

    @app.get("/metrics")
    def counted(request: Request) -> Response:
        """Return the counters, as Prometheus reads them."""
        allowed(request)
        return Response(metrics.generate_latest(registry), media_type=metrics.CONTENT_TYPE_LATEST)

    @app.post("/predict", openapi_extra=_ASKED, responses=_ANSWERED)
    async def predict(request: Request, top: int = 5, threshold: float | None = None) -> JSONResponse:
        """Name what is in the image that is the body, or in the images of a form."""
        allowed(request)
        if top < 1 or (threshold is not None and not 0 <= threshold <= 1):
            raise HTTPException(422, "top is a number from 1 on, threshold a probability from 0 to 1")
        begun = time.perf_counter()
        try:
            found = await batcher.answers(await _images_in(request, limits))
        except FullError:
            message = f"more than {limits.queue} images wait already; come back"
            raise HTTPException(503, message, headers={"Retry-After": "1"}) from None
        told: list[dict[str, Any]] = []
        for (name, _), row in zip(request.state.images, found, strict=True):
            if isinstance(row, DataError):
                told.append({"source": name, "error": str(row)})
                continue
            answer = to_prediction(name, row, header, threshold)
            likely = dict(list(answer.probabilities.items())[:top])
            told.append({
                "source": name, "answer": answer.text, "label": answer.label, "probability": answer.probability,
                "labels": list(answer.labels), "probabilities": likely,
            })  # fmt: skip
        good = sum("error" not in each for each in told)
        images.inc(good)
        latency.observe(time.perf_counter() - begun)
        return JSONResponse({"predictions": told}, 200 if good else 422)

    return _Bounded(app, limits, requests)


async def _images_in(request: Request, limits: Limits) -> list[EncodedImage]:
    """Return the images of a request; raises HTTPException, a 4xx with its reason, where there are none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=limits.images, max_fields=limits.images) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            found = [EncodedImage(file.filename or f"image {i}", await file.read()) for i, file in enumerate(files)]
    elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
        found = [EncodedImage("image 0", await request.body())]
    else:
        raise HTTPException(415, f"{kind}: send an image as image/..., or images as multipart/form-data")
    found = [EncodedImage(name.replace("\0", " ").replace("\n", " ")[:200], data) for name, data in found]
    if not found or not any(data for _, data in found):
        raise HTTPException(422, "the request holds no image")
    request.state.images = found
    return found


class _Bounded:
    """What stands before an application: counts what comes in, and refuses what is too much or too slow."""

    def __init__(self, app: Any, limits: Limits, requests: Any) -> None:
        self.app, self.limits, self.requests = app, limits, requests

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        taken = int(said) if said.isdigit() and int(said) > self.limits.bytes else 0

        async def counted() -> Any:
            nonlocal taken
            if taken <= self.limits.bytes:
                try:
                    message = await asyncio.wait_for(receive(), SLOWEST)
                except TimeoutError:
                    raise HTTPException(408, f"nothing came for {SLOWEST:.0f} s") from None
                taken += len(message.get("body", b""))
            if taken > self.limits.bytes:
                raise HTTPException(413, f"more than {self.limits.bytes:,} bytes", {"Connection": "close"})
            return message

        async def noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.requests.labels(str(message["status"])).inc()
            await send(message)

        await self.app(scope, counted, noted)


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ASKED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}
_ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {"description": "One prediction for each image, in order; those that cannot be read carry an error."},
    401: {"description": "No token, or a wrong one."},
    408: {"description": "The request came too slowly."},
    413: {"description": "The request is too large."},
    415: {"description": "The request is of another type."},
    422: {"description": "No image of the request can be read."},
    503: {"description": "Too many images wait."},
}


def listen(host: str, port: int) -> socket.socket:
    """Take an address, a free port if it is 0; raises RunError if it is taken or is none of this machine."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(found[0], found[1])
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
    except OSError as error:
        raise RunError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from error
    return listening


def run(
    model: Model, limits: Limits, listening: socket.socket, *, token: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:  # fmt: skip
    """Serve until the process is told to stop (SIGINT, SIGTERM); what was accepted is answered first."""
    app = application(model, limits, token=token)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=60, backlog=2048, server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with torch.inference_mode():
        model.engine.outputs(torch.zeros(1, *_shape(model), dtype=model.header.preprocessing.dtype))
    listening.listen(2048)  # who comes before the server is up waits
    host, port = listening.getsockname()[:2]
    say(f"{model.header.name} on http://{host}:{port} ({model.engine}); stop with Ctrl-C")
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        return
    if not server.started:
        raise RunError(f"{host}:{port}: the server did not start")


def _shape(model: Model) -> tuple[int, int, int]:
    steps = model.header.preprocessing
    return steps.channels, steps.size, steps.size
