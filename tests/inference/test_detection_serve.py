"""A detector on the server: objects as JSON in the form of the description, and limits for whole images."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from test_serve_pages import check_schema
from torch import Tensor

from convatlas.inference.model import Model
from convatlas.inference.serve.limits import DECODE_BYTES, Limits
from http_client import FORM, ask, form, running
from square_detector import PREPROCESSING, draw_squares, square_model

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

IMAGES = [
    draw_squares(40, 60, (0, 5, 5, 15, 15), (2, 30, 20, 50, 30)), draw_squares(30, 30),
    draw_squares(20, 80, (1, 0, 0, 9, 9)),
]  # fmt: skip


def png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module", params=["masks", "keypoints"])
def model(request: pytest.FixtureRequest) -> Model:
    return square_model(request.param)


@pytest.fixture(scope="module")
def port(model: Model) -> Iterator[int]:
    with running(model, Limits(image_pixels=5000, batch=2)) as found:
        yield found


def test_objects_are_those_of_predict(port: int, model: Model) -> None:
    body = form([(f"{i}.png", png(image)) for i, image in enumerate(IMAGES)] + [("bad.png", b"no image")])
    status, content = ask(port, "/predict", body, kind=FORM)
    assert status == 200
    *found, bad = content["predictions"]
    for plain, expected in zip(found, model.predict(IMAGES), strict=True):
        assert plain["objects"] == expected.to_plain()["objects"]
        assert (plain["width"], plain["height"]) == (expected.to_plain()["width"], expected.to_plain()["height"])
    assert bad["error"]
    assert (bad["width"], bad["objects"]) == (None, [])
    _, api = ask(port, "/openapi.json")
    responses = api["paths"]["/predict"]["post"]["responses"]
    check_schema(content, responses["200"]["content"]["application/json"]["schema"], api)


def test_a_threshold_of_the_request(port: int) -> None:
    status, content = ask(port, "/predict?threshold=0.895", png(IMAGES[0]))
    assert status == 200
    assert [each["label"] for each in content["predictions"][0]["objects"]] == ["red"]


def test_more_images_than_fit_into_memory_wait(port: int) -> None:
    """Each has half of the pixels that may be in memory."""
    body = form([(f"{i}.png", png(IMAGES[0])) for i in range(12)])
    status, content = ask(port, "/predict", body, kind=FORM)
    assert status == 200
    assert [len(each["objects"]) for each in content["predictions"]] == [2] * 12


def test_too_large_an_image_is_refused(port: int) -> None:
    status, content = ask(port, "/predict", png(draw_squares(80, 80)))
    assert status == 422
    assert "must have at most 5,000 pixels" in content["predictions"][0]["error"]


def test_the_model_names_the_options_of_requests(port: int) -> None:
    _, content = ask(port, "/", headers={"Accept": "application/json"})
    assert content["options"] == ["threshold"]
    status, content = ask(port, "/predict?top=2", png(IMAGES[0]))
    assert status == 422
    assert "top must not be given, because the model is for" in content["detail"]


def test_whole_images_in_the_queue_count_as_decoded() -> None:
    limits = Limits(image_pixels=1000, queue=10)
    more = limits.memory_bytes(PREPROCESSING) - Limits(image_pixels=1, queue=10**6).memory_bytes(PREPROCESSING)
    assert more == 999 * (DECODE_BYTES + 3)
