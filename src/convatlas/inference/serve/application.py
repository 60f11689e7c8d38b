"""The ASGI application: POST /predict, GET / (the model), /health, /metrics, /docs and /openapi.json."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import prometheus_client as prometheus
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from convatlas.errors import DataError, printable, shorten
from convatlas.inference.images import EncodedImage
from convatlas.inference.model import Model
from convatlas.inference.options import refusal
from convatlas.inference.predict import to_prediction
from convatlas.inference.serve.batcher import Batcher, QueueFullError
from convatlas.inference.serve.form import FormReader
from convatlas.inference.serve.limits import Limits
from convatlas.inference.serve.middleware import RequestLimiter
from convatlas.inference.serve.pages import accepts_page, api_page, predict_page
from convatlas.inference.serve.token import read_token

TOP = 3
"""Default number of classes in `probabilities`, as in the command `predict`."""


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

    @app.get("/health", response_description="The server is running; needs no token.")
    def health() -> dict[str, str]:
        """Return that the server is running."""
        return {"status": "ok"}

    @app.get("/", response_model=None, response_description="The model.")
    def describe_model(request: Request) -> Response:
        """Return name, task, classes, engine, license and preprocessing of the model; for browsers, a page."""
        if accepts_page(request.headers.get("accept", "")):
            return predict_page()
        description = {
            "name": header.name, "task": header.task.name, "classes": list(header.classes), "engine": str(model.engine),
            "license": header.license or None, "input_px": header.preprocessing.resolution,
            "preprocessing": header.preprocessing.to_plain(),
            "options": ["threshold", *(header.task.options & {"top"})],
        }  # fmt: skip
        return JSONResponse(description, headers={"Vary": "Accept"})

    @app.get("/docs", include_in_schema=False)
    def describe_api(request: Request) -> Response:
        """Return a page that describes the API."""
        return api_page(app.openapi(), str(request.base_url))

    @app.get("/metrics", response_description="Metrics in the text format of Prometheus.")
    def report_metrics() -> Response:
        """Return the metrics in the format of Prometheus."""
        return Response(prometheus.generate_latest(registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": shorten(printable(f"{first['loc'][-1]}: {first['msg']}"), 200)}, 422)

    @app.post("/predict", openapi_extra=_REQUEST, responses=_RESPONSES, response_model=None)
    async def predict(
        request: Request,
        top: Annotated[
            int | None,
            Query(ge=1, description=f"Maximum number of classes in `probabilities`, of classifiers; by default {TOP}."),
        ] = None,
        threshold: Annotated[
            float | None,
            Query(ge=0, le=1, description="Minimum probability of a class or an object; by default the model's own."),
        ] = None,
    ) -> JSONResponse:
        """Predict the image in the body, or the images of a form; one prediction for each, in order."""
        start = time.perf_counter()
        if top is not None and "top" not in header.task.options:
            raise HTTPException(422, str(refusal(header.task, "top")))
        sent = await _read_images(request, limits)
        try:
            rows = await batcher.decode_outputs(sent)
        except QueueFullError:
            message = f"the queue is full ({limits.queue} images); try again later"
            raise HTTPException(503, message, headers={"Retry-After": "1"}) from None
        predictions = [
            to_prediction(name, row, header, threshold=threshold, top=top or TOP)
            for (name, _), row in zip(sent, rows, strict=True)
        ]
        num_readable = sum(not prediction.error for prediction in predictions)
        images.inc(num_readable)
        latency.observe(time.perf_counter() - start)
        plain = [prediction.to_plain() for prediction in predictions]
        # what is no error of reading is one of the network, such as NaN
        failed = any(each.error and not isinstance(row, DataError) for each, row in zip(predictions, rows, strict=True))
        return JSONResponse({"predictions": plain}, 200 if num_readable else 500 if failed else 422)

    schema = header.task.unreadable("", "").json_schema()
    # the description is made once, and then the same dict
    app.openapi().setdefault("components", {}).setdefault("schemas", {})["Prediction"] = schema
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
_PREDICTIONS = {
    "type": "object", "required": ["predictions"],
    "properties": {"predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}},
}  # fmt: skip
_DETAIL = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}


def _response(description: str, *schemas: dict[str, Any]) -> dict[str, Any]:
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: _response("One prediction for each image, in order; an unreadable image has an error.", _PREDICTIONS),
    400: _response("The form or the request is damaged, or has too many images.", _DETAIL),
    401: _response("The token is missing or wrong.", _DETAIL),
    408: _response("The request took or paused for too long.", _DETAIL),
    413: _response("The request has too many bytes.", _DETAIL),
    415: _response("The content type or encoding is not supported.", _DETAIL),
    422: _response("The request contains no readable image, or a bad parameter.", _PREDICTIONS, _DETAIL),
    500: _response("The network failed.", _PREDICTIONS),
    503: _response("The queue or the memory for requests is full.", _DETAIL),
}
