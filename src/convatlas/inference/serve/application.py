"""The ASGI application: POST /predict, GET / (the model), /health, /metrics, /docs and /openapi.json."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import prometheus_client as prometheus
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import DataError, printable, shorten
from convatlas.inference.along_time import to_video_prediction
from convatlas.inference.contents import EncodedFile
from convatlas.inference.model import Model
from convatlas.inference.options import PredictOptions, refusal
from convatlas.inference.predict import to_prediction
from convatlas.inference.serve.batcher import Batcher, QueueFullError
from convatlas.inference.serve.form import FormReader
from convatlas.inference.serve.limits import Limits
from convatlas.inference.serve.middleware import RequestLimiter
from convatlas.inference.serve.pages import accepts_page, api_page, predict_page
from convatlas.inference.serve.token import read_token
from convatlas.inference.serve.videos import PredictedVideo
from convatlas.inference.videos import check_every
from convatlas.system.quantities import SIZE, TIME
from convatlas.tasks.prediction import Prediction
from convatlas.weights.modelfile import Header

TOP = 3
"""Default number of classes in `probabilities`, as in the command `predict`."""


def build_application(model: Model, limits: Limits, *, token: str | None = None) -> Any:
    """Return the ASGI application of a model.

    token: a secret that requests must carry, except those to /health; see `read_token`.
    """
    token = read_token(token)
    registry = prometheus.CollectorRegistry()
    requests = prometheus.Counter("convatlas_requests", "Requests by status.", ["status"], registry=registry)
    header, noun = model.header, model.header.task.noun
    nouns = f"{noun.capitalize()}s"
    predicted = prometheus.Counter(f"convatlas_{noun}s", f"{nouns} predicted.", registry=registry)
    latency = prometheus.Histogram("convatlas_seconds", "Seconds from request to response.", registry=registry)
    sizes = prometheus.Histogram(
        "convatlas_batch", "Images or clips in a batch.", buckets=[1, 2, 4, 8, 16, 32, 64], registry=registry
    )
    batcher = Batcher(model, limits, on_batch=sizes.observe)
    queued = prometheus.Gauge("convatlas_queued", f"{nouns} in the queue.", registry=registry)
    queued.set_function(lambda: batcher.queued)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    name = header.task.name
    kind = name.capitalize() if noun in name else f"{noun.capitalize()} {name}"
    app = FastAPI(
        title=f"convatlas: {header.name}", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
        description=f"{kind}.",
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
            "preprocessing": header.preprocessing.to_plain(), "noun": noun,
            "options": ["threshold", *sorted(header.task.options & {"top", "every"})],
            "limits": limits_text(limits, header.preprocessing),
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

    text = f"Predict the {noun} in the body, or the {noun}s of a form; one prediction for each, in order."

    @app.post(
        "/predict", openapi_extra=_request_body(noun), responses=_RESPONSES, response_model=None,
        description=f"{text} {limits_text(limits, header.preprocessing)}",
    )  # fmt: skip
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
        every: Annotated[
            float | None,
            Query(gt=0, description="Seconds from the start of one clip to that of the next, for predictions along "
                                    "time; of networks that read clips."),
        ] = None,
    ) -> JSONResponse:  # fmt: skip
        start = time.perf_counter()
        for option, value in (("top", top), ("every", every)):
            if value is not None and option not in header.task.options:
                raise HTTPException(422, str(refusal(header.task, option)))
        options = PredictOptions(threshold=threshold, top=top or TOP, every=every)
        if every is not None:
            try:
                check_every(every, header.preprocessing)
            except DataError as error:
                raise HTTPException(422, str(error)) from None
        sent = await _read_files(request, limits, noun)
        try:
            rows = await batcher.decode_outputs(sent, every)
        except QueueFullError:
            message = f"the queue is full ({limits.queue} {noun}s); try again later"
            raise HTTPException(503, message, headers={"Retry-After": "1"}) from None
        predictions = [_to_prediction(name, row, header, options) for (name, _), row in zip(sent, rows, strict=True)]
        num_readable = sum(not prediction.error for prediction in predictions)
        predicted.inc(num_readable)
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


def _to_prediction(name: str, row: Any, header: Header, options: PredictOptions) -> Prediction:
    if isinstance(row, PredictedVideo):
        return to_video_prediction(name, row.row, row.seconds, row.windows, header, options)
    return to_prediction(name, row, header, threshold=options.threshold, top=options.top)


def limits_text(limits: Limits, preprocessing: Preprocessing) -> str:
    """Return the limits of a request in one line."""
    size = f"A request has at most {_with_space(SIZE.format(limits.request_bytes))}"
    if preprocessing.sampling is None:
        return f"{size} and {limits.request_images:,} images, an image {limits.image_pixels:,} pixels."
    return (
        f"{size} and {limits.request_images:,} videos, a video {_with_space(TIME.format(limits.video_seconds))}, "
        f"{limits.video_frames:,} frames of {limits.of_videos.frame_pixels:,} pixels, and {limits.video_clips:,} "
        "clips along time."
    )


def _with_space(quantity: str) -> str:
    return re.sub(r"(?<=\d)(?=[^\W\d])", " ", quantity)


async def _read_files(request: Request, limits: Limits, noun: str) -> list[EncodedFile]:
    """Return the images or videos of a request; raises HTTPException (4xx) if there are none."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    kinds = dict.fromkeys((f"{noun}/", "image/"))  # a GIF is a video, too
    if kind == "multipart/form-data":
        files = await _read_form(request, content_type, limits.request_images, noun)
    elif kind.startswith(tuple(kinds)) or kind in ("application/octet-stream", ""):
        body = bytearray()
        await _read_body(request, body.extend, body.clear)
        files = [EncodedFile(f"{noun} 0", bytes(body))]
    else:
        raise HTTPException(415, f"content type must be {noun}/... or multipart/form-data, got {shorten(kind, 80)}")
    if not any(data for _, data in files):
        raise HTTPException(422, f"the request contains no {noun}")
    return files


async def _read_form(request: Request, content_type: str, max_files: int, noun: str) -> list[EncodedFile]:
    try:
        form = FormReader(content_type, max_files, noun)
        await _read_body(request, form.write, form.clear)
        return [EncodedFile(printable(name), data) for name, data in form.files()]
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


_BINARY = {"type": "string", "format": "binary"}
_PREDICTIONS = {
    "type": "object", "required": ["predictions"],
    "properties": {"predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}},
}  # fmt: skip
_DETAIL = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}


def _request_body(noun: str) -> dict[str, Any]:
    form = {"type": "object", "properties": {f"{noun}s": {"type": "array", "items": _BINARY}}}
    kinds = {kind: {"schema": _BINARY} for kind in (f"{noun}/*", "image/*", "application/octet-stream")}
    return {"requestBody": {"required": True, "content": {**kinds, "multipart/form-data": {"schema": form}}}}


def _response(description: str, *schemas: dict[str, Any]) -> dict[str, Any]:
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: _response("One prediction for each image or video, in order; an unreadable one has an error.", _PREDICTIONS),
    400: _response("The form or the request is damaged, or has too many files.", _DETAIL),
    401: _response("The token is missing or wrong.", _DETAIL),
    408: _response("The request took or paused for too long.", _DETAIL),
    413: _response("The request has too many bytes.", _DETAIL),
    415: _response("The content type or encoding is not supported.", _DETAIL),
    422: _response("The request contains no readable image or video, or a bad parameter.", _PREDICTIONS, _DETAIL),
    500: _response("The network failed.", _PREDICTIONS),
    503: _response("The queue or the memory for requests is full.", _DETAIL),
}
