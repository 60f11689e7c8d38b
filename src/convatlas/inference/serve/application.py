"""The ASGI application: POST /predict, GET / (the model), /health, /metrics and /openapi.json."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import prometheus_client as prometheus
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from convatlas.errors import ConvatlasError, DataError, printable, shorten
from convatlas.inference.model import Model
from convatlas.inference.predict import EncodedImage, to_prediction
from convatlas.inference.serve.batcher import Batcher, QueueFullError
from convatlas.inference.serve.form import FormReader
from convatlas.inference.serve.limits import Limits
from convatlas.inference.serve.middleware import RequestLimiter
from convatlas.inference.serve.token import read_token


def build_application(model: Model, limits: Limits, *, token: str | None = None) -> Any:
    """Return the ASGI application of a model.

    token: a secret that requests must carry, except those to /health; see `read_token`.
    """
    token = read_token(token)
    registry = prometheus.CollectorRegistry()
    requests = prometheus.Counter("convatlas_requests", "Requests by status.", ["status"], registry=registry)
    images = prometheus.Counter("convatlas_images", "Images predicted.", registry=registry)
    latency = prometheus.Histogram("convatlas_seconds", "Seconds from request to response.", registry=registry)
    sizes = prometheus.Histogram(
        "convatlas_batch", "Images in a batch.", buckets=[1, 2, 4, 8, 16, 32, 64], registry=registry
    )
    batcher = Batcher(model, limits, on_batch=sizes.observe)
    queued = prometheus.Gauge("convatlas_queued", "Images in the queue.", registry=registry)
    queued.set_function(lambda: batcher.queued)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    header = model.header
    app = FastAPI(
        title=f"convatlas: {header.name}", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
        description=f"Image {header.task.name}.",
    )  # fmt: skip

    @app.get("/health")
    def health() -> dict[str, str]:
        """Return that the server is running."""
        return {"status": "ok"}

    @app.get("/")
    def describe_model() -> dict[str, Any]:
        """Return name, task, classes, engine, license and preprocessing of the model."""
        return {
            "name": header.name, "task": header.task.name, "classes": list(header.classes), "engine": str(model.engine),
            "license": header.license, "preprocessing": header.preprocessing.to_plain(),
        }  # fmt: skip

    @app.get("/metrics")
    def report_metrics() -> Response:
        """Return the metrics in the format of Prometheus."""
        return Response(prometheus.generate_latest(registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    @app.post("/predict", openapi_extra=_REQUEST, responses=_RESPONSES)
    async def predict(request: Request, top: int = 5, threshold: float | None = None) -> JSONResponse:
        """Predict the image in the body, or the images of a form.

        top: number of classes in `probabilities`. threshold: minimum probability of a predicted class.
        """
        if top < 1:
            raise HTTPException(422, f"top must be an integer >= 1, got {top}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise HTTPException(422, f"threshold must be in [0, 1], got {threshold}")
        start = time.perf_counter()
        sent = await _read_images(request, limits)
        try:
            rows = await batcher.decode_outputs(sent)
        except QueueFullError:
            message = f"the queue is full ({limits.queue} images); try again later"
            raise HTTPException(503, message, headers={"Retry-After": "1"}) from None
        predictions = [
            header.task.unreadable(name, str(row))
            if isinstance(row, ConvatlasError)
            else to_prediction(name, row, header, threshold)
            for (name, _), row in zip(sent, rows, strict=True)
        ]
        num_readable = sum(not prediction.error for prediction in predictions)
        images.inc(num_readable)
        latency.observe(time.perf_counter() - start)
        plain = [prediction.to_plain(top) for prediction in predictions]
        # what is no error of reading is one of the network, such as NaN
        failed = any(each.error and not isinstance(row, DataError) for each, row in zip(predictions, rows, strict=True))
        return JSONResponse({"predictions": plain}, 200 if num_readable else 500 if failed else 422)

    limiter = RequestLimiter(app, limits, requests, token)
    reserved = prometheus.Gauge(
        "convatlas_reserved_bytes", "Bytes reserved for requests and responses.", registry=registry
    )
    reserved.set_function(lambda: limiter.reserved_bytes)
    return limiter


async def _read_images(request: Request, limits: Limits) -> list[EncodedImage]:
    """Return the images of a request; raises HTTPException (4xx) if there are none."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = await _read_form(request, content_type, limits.request_images)
    elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
        body = bytearray()
        await _read_body(request, body.extend, body.clear)
        images = [EncodedImage("image 0", bytes(body))]
    else:
        raise HTTPException(415, f"content type must be image/... or multipart/form-data, got {shorten(kind, 80)}")
    if not any(data for _, data in images):
        raise HTTPException(422, "the request contains no image")
    return images


async def _read_form(request: Request, content_type: str, max_images: int) -> list[EncodedImage]:
    try:
        form = FormReader(content_type, max_images)
        await _read_body(request, form.write, form.clear)
        return [EncodedImage(printable(name), data) for name, data in form.images()]
    except DataError as error:
        raise HTTPException(400, str(error)) from None


async def _read_body(request: Request, write: Callable[[bytes], None], clear: Callable[[], None]) -> None:
    """Read the body of a request piece by piece; what was read is dropped if it is refused."""
    try:
        async for chunk in request.stream():
            write(chunk)
    except BaseException:
        clear()  # the traceback refers to it while the rest of the body arrives
        raise


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REQUEST: dict[str, Any] = {
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
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "One prediction for each image, in order; an unreadable image has an error."},
    400: {"description": "The form or the request is damaged, or has too many images."},
    401: {"description": "The token is missing or wrong."},
    408: {"description": "The request took or paused for too long."},
    413: {"description": "The request has too many bytes."},
    415: {"description": "The content type or encoding is not supported."},
    422: {"description": "The request contains no readable image, or a bad parameter."},
    500: {"description": "The network failed."},
    503: {"description": "The queue or the memory for requests is full."},
}
