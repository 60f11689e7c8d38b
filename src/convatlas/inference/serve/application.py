"""The ASGI application: POST /predict, GET / (the model), /health, /metrics and /openapi.json."""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import prometheus_client as prometheus
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile

from convatlas.errors import DataError
from convatlas.inference.model import Model
from convatlas.inference.predict import EncodedImage, to_prediction
from convatlas.inference.serve.batcher import Batcher, Limits, QueueFullError
from convatlas.inference.serve.middleware import RequestLimiter


def build_application(model: Model, limits: Limits, *, token: str | None = None) -> Any:
    """Return the ASGI application of a model.

    token: a secret that requests must carry, except those to /health.
    """
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

    def check_token(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "a token is required: Authorization: Bearer TOKEN")

    @app.get("/health")
    def health() -> dict[str, str]:
        """Return that the server is running."""
        return {"status": "ok"}

    @app.get("/")
    def describe_model(request: Request) -> dict[str, Any]:
        """Return name, task, classes, engine, license and preprocessing of the model."""
        check_token(request)
        return {
            "name": header.name, "task": header.task.name, "classes": list(header.classes), "engine": str(model.engine),
            "license": header.license, "preprocessing": header.preprocessing.to_plain(),
        }  # fmt: skip

    @app.get("/metrics")
    def report_metrics(request: Request) -> Response:
        """Return the metrics in the format of Prometheus."""
        check_token(request)
        return Response(prometheus.generate_latest(registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    @app.post("/predict", openapi_extra=_REQUEST, responses=_RESPONSES)
    async def predict(request: Request, top: int = 5, threshold: float | None = None) -> JSONResponse:
        """Predict the image in the body, or the images of a form.

        top: number of classes in `probabilities`. threshold: minimum probability of a predicted class.
        """
        check_token(request)
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
            if isinstance(row, DataError)
            else to_prediction(name, row, header, threshold)
            for (name, _), row in zip(sent, rows, strict=True)
        ]
        num_readable = sum(not prediction.error for prediction in predictions)
        images.inc(num_readable)
        latency.observe(time.perf_counter() - start)
        plain = [prediction.to_plain(top) for prediction in predictions]
        return JSONResponse({"predictions": plain}, 200 if num_readable else 422)

    return RequestLimiter(app, limits, requests)


async def _read_images(request: Request, limits: Limits) -> list[EncodedImage]:
    """Return the images of a request; raises HTTPException (4xx) if there are none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=limits.request_images, max_fields=limits.request_images) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            images = [EncodedImage(file.filename or f"image {i}", await file.read()) for i, file in enumerate(files)]
    elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
        images = [EncodedImage("image 0", await request.body())]
    else:
        raise HTTPException(415, f"content type must be image/... or multipart/form-data, got {kind}")
    images = [EncodedImage(name.replace("\0", " ").replace("\n", " ")[:200], data) for name, data in images]
    if not any(data for _, data in images):
        raise HTTPException(422, "the request contains no image")
    return images


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
    401: {"description": "The token is missing or wrong."},
    408: {"description": "The request paused for too long."},
    413: {"description": "The request has too many bytes."},
    415: {"description": "The content type is not supported."},
    422: {"description": "The request contains no readable image, or a bad parameter."},
    503: {"description": "The queue is full."},
}
