"""Hostile and careless clients: limits in time, number and memory, odd forms, tokens, and failures of single images."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from commands import Command, check_refused
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.headers import Header as ImageHeader
from convatlas.errors import DataError, InputError
from convatlas.inference.contents import EncodedFile
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.inference.serve.limits import Limits
from convatlas.train.run import Run
from http_client import BOUNDARY, FORM, ask, connect, drip, form, form_of, head, read_all, running

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from convatlas.inference.serve import batcher
from convatlas.inference.serve.form import FormReader, parameters
from convatlas.inference.serve.middleware import SMALL_BYTES
from convatlas.inference.serve.pixel_budget import PixelBudget
from convatlas.inference.serve.protocol import LimitedProtocol
from convatlas.inference.serve.server import build_server
from convatlas.inference.serve.token import has_token, read_token

LIMIT = 2 * SMALL_BYTES
"""Maximum size of a request of `port`; all requests together may have twice as much."""


@pytest.fixture(scope="module")
def model(trained: Run) -> Model:
    return load(trained.model_file)


@pytest.fixture(scope="module")
def port(model: Model) -> Iterator[int]:
    limits = Limits(request_bytes=LIMIT, request_images=5, body_bytes=2 * LIMIT, connections=8)
    with running(model, limits) as number:
        yield number


def png(value: int = 90, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size), value, np.uint8)).save(file, "png")
    return file.getvalue()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what the server does a moment later."""
    for _ in range(10_000):
        if condition():
            return
        threading.Event().wait(0.005)
    pytest.fail("the server does not do it")


def metric(port: int, name: str) -> float:
    """Return the value of a metric; 0 if it does not exist."""
    _, text = ask(port, "/metrics")
    values = [line.split()[-1] for line in text.splitlines() if line.startswith(name + " ")]
    return float(values[0]) if values else 0.0


# --- time


@pytest.fixture(scope="module")
def impatient(model: Model) -> Iterator[int]:
    with running(model, Limits(header_s=0.1)) as number:
        yield number


@pytest.mark.parametrize(
    ("start", "rest", "status"),
    [
        (b"", b"", b""),
        (b"POST /predict HTTP/1.1\r\nHost", b"", b"408"),
        (b"GET /health HTTP/1.1\r\n", b"X: 1\r\n", b"408"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n", b"X: 1\r\n", b"408"),
    ],
    ids=["nothing", "half of a header", "one header after the other", "after a first request"],
)
def test_headers_have_a_deadline(impatient: int, start: bytes, rest: bytes, status: bytes) -> None:
    with connect(impatient) as raw:
        raw.sendall(start)
        received = b""
        if rest:
            while status not in received and (part := drip(raw, rest)):
                received += part
        else:
            received = read_all(raw)
    assert not received or status in received  # a connection without a byte is closed without a response


@pytest.fixture(scope="module")
def hurried(model: Model) -> Iterator[int]:
    with running(model, Limits(request_s=0.15, idle_s=0.05)) as number:
        yield number


@pytest.mark.parametrize("kind", ["image/png", FORM])
@pytest.mark.parametrize("length", [1_000_000, None])
def test_bodies_have_a_deadline(hurried: int, kind: str, length: int | None) -> None:
    with connect(hurried) as raw:
        raw.sendall(head(length, kind=kind))
        assert b" 408 " in raw.recv(65536)  # pauses
    with connect(hurried) as raw:
        raw.sendall(head(length, kind=kind))
        assert b" 408 " in drip(raw, b"\n" if length else b"1\r\n\n\r\n")  # never pauses; a form may begin with lines


def test_a_client_that_does_not_read_the_response_is_disconnected(model: Model) -> None:
    async def wait_for_reset() -> None:
        server = build_server(model, Limits(request_s=0.01))
        server.config.load()
        protocol = LimitedProtocol(
            Limits(request_s=0.01), config=server.config, server_state=server.server_state, app_state={}
        )
        reset = asyncio.Event()
        protocol.connection_made(Mock(abort=reset.set, is_closing=lambda: False))
        protocol.pause_writing()
        protocol.resume_writing()
        protocol.pause_writing()
        await reset.wait()

    asyncio.run(wait_for_reset())


# --- number and memory


def test_connections_beyond_the_limit_get_503_and_the_others_go_on(port: int) -> None:
    connections = [connect(port) for _ in range(8)]
    with connect(port) as raw:
        refused = read_all(raw)
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1\r\n" in refused
    connections[0].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 OK" in connections[0].recv(65536)
    for connection in connections:
        connection.close()
    wait_until(lambda: ask(port, "/health")[0] == 200)


def test_the_memory_of_all_requests_is_limited(port: int) -> None:
    """A large upload has no room beside another one, a photo always has."""
    with connect(port) as slow:
        slow.sendall(head(LIMIT))
        wait_until(lambda: metric(port, "convatlas_reserved_bytes") >= LIMIT)
        with connect(port) as raw:
            raw.sendall(head(LIMIT))
            refused = raw.recv(65536)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in refused
        with connect(port) as raw:  # a body without a length counts as it arrives
            raw.sendall(head())
            assert b" 503 " in drip(raw, b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert ask(port, body=png())[0] == 200
    wait_until(lambda: metric(port, "convatlas_reserved_bytes") < LIMIT)
    assert ask(port, body=b"x" * LIMIT)[0] == 422


def test_broken_off_uploads_are_logged_in_one_line_and_take_no_memory(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = metric(port, 'convatlas_requests_total{status="499"}')
    for kind, length, start in (("image/png", 1000, b"x"), (FORM, 1000, b"\r\n"), ("image/png", None, b"1\r\nx\r\n")):
        with connect(port) as raw:
            raw.sendall(head(length, kind=kind) + start)
    wait_until(lambda: metric(port, 'convatlas_requests_total{status="499"}') == before + 3)
    wait_until(lambda: metric(port, "convatlas_reserved_bytes") < 1000)
    lines = sorted(record.getMessage() for record in caplog.records)
    assert len(lines) == 3
    assert all("the upload broke off after" in line for line in lines)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", ["image/png", FORM])
def test_a_client_that_sends_too_much_can_read_the_reason(port: int, kind: str, chunked: bool) -> None:
    """The client sends everything before it reads."""
    data = b"\r\n" * 2**17
    with connect(port) as raw:
        raw.sendall(head(None if chunked else 100 * len(data), kind=kind))
        for _ in range(100):
            raw.sendall(b"40000\r\n" + data + b"\r\n" if chunked else data)
        response = raw.recv(65536)
    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"at most 2,097,152 bytes" in response


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(3, more="Transfer-Encoding: chunked\r\n"), 400),
        (head(3, more="Content-Encoding: gzip\r\n"), 415),
        (head(3, more="Content-Encoding: br, gzip\r\n"), 415),
        (head(3, kind="text/html"), 415),
        (head(3, path="/predict?top=0"), 422),
        (head(10**18), 413),
        (head(10**6, more="Expect: 100-continue\r\n", kind="text/html"), 415),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", 400),
    ],
)
def test_a_request_is_refused_before_its_body(port: int, request_head: bytes, status: int) -> None:
    with connect(port) as raw:
        raw.sendall(request_head)
        response = raw.recv(65536)
    assert response.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in response.lower()


def test_head_of_every_page_has_no_body(port: int) -> None:
    for path in ("/health", "/", "/metrics"):
        assert ask(port, path, method="HEAD") == (200, "")
    assert ask(port, "/predict", method="HEAD")[0] == 405
    assert ask(port, body=png(), headers={"Content-Encoding": "identity"})[0] == 200


def test_the_maximum_memory_is_the_sum_of_its_parts() -> None:
    steps = Preprocessing(resize=8, crop=4)
    limits = Limits(request_bytes=10, body_bytes=100, queue=3, image_pixels=5, connections=1)
    assert limits.memory_bytes(steps) == 100 + 10 + 3 * 16 + 5 * 24 + 2**19
    assert Limits().max_body_bytes == 16 * Limits().request_bytes
    with pytest.raises(InputError, match="--max-memory must be at least twice --max-bytes"):
        Limits(request_bytes=10, body_bytes=19)
    with pytest.raises(InputError, match="request_s must be a number > 0"):
        Limits(request_s=0)


@pytest.mark.parametrize(
    ("channels", "high_bit_depth", "weight"), [(1, False, 1), (3, False, 1), (3, True, 4), (4, False, 2), (9, True, 12)]
)
def test_images_of_more_bits_or_channels_count_as_more_pixels(channels: int, high_bit_depth: bool, weight: int) -> None:
    header = ImageHeader((5, 7), "x", channels=channels, high_bit_depth=high_bit_depth)
    assert Limits().count_pixels(header) == 35 * weight


def test_images_that_are_decoded_at_the_same_time_share_a_budget() -> None:
    budget = PixelBudget(10)
    order: list[str] = []
    entered = threading.Event()

    def decode_large() -> None:
        entered.set()
        budget.take(10)
        order.append("large")
        budget.give_back(10)

    budget.take(4)
    budget.take(6)
    thread = threading.Thread(target=decode_large)
    thread.start()
    entered.wait()
    order.append("small")
    budget.give_back(6)
    budget.give_back(4)
    thread.join()
    assert order == ["small", "large"]


# --- forms


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b'form-data; name="x"; filename="a.png"', "a.png"),
        (b"form-data; name=x; filename=a.png", "a.png"),
        (b'form-data; name="x"; filename="a;b=\\"c\\".png"', 'a;b="c".png'),
        ('form-data; name="x"; filename="日本.png"'.encode(), "日本.png"),
        (b'form-data; name="x"; filename="caf\xe9.png"', "café.png"),
        (b'form-data; name="x"; filename="\xed\xa0\x80.png"', "í \\x80.png"),
        (b'form-data; name="x"; filename="\\ud800.png"', "\\ud800.png"),
        (b'form-data; name="x"; filename="C:\\photos\\a.png"', "a.png"),
        (b"form-data; name=x; filename*=utf-8''%E6%97%A5.png", "日.png"),
        (b"form-data; name=x; filename*=UTF-8'en'caf%C3%A9.png; filename=other.png", "café.png"),
        (b"form-data; name=x; filename*=iso-8859-1''caf%E9.png", "café.png"),
        (b"form-data; name=x; filename*=undefined''a%ff.png", "aÿ.png"),
        (b"form-data; name=x; filename*=utf-7''+2AA-.png", "+2AA-.png"),
        (b'form-data; filename="a.png"', "a.png"),
        (b'form-data; name="x"; filename=""', "image 0"),
        (b'form-data; name="x"; filename="a\x1b[31m\x07b.png"', "ab.png"),
        (b'form-data; name="x"\r\nContent-Type: image/png', "image 0"),
    ],
)
@pytest.mark.parametrize("charset", ["", "utf-7", "unicode_escape", "undefined", "idna", "\xff"])
def test_names_are_utf8_whatever_charset_the_client_gives(
    port: int, disposition: bytes, name: str, charset: str
) -> None:
    kind = f"multipart/form-data; {f'charset={charset}; ' if charset else ''}boundary={BOUNDARY}"
    status, content = ask(port, "/predict?top=1", form_of([(disposition, png())]), kind=kind)
    assert status == 200
    assert [each["source"].replace("\\x07", "") for each in content["predictions"]] == [name]


@pytest.mark.parametrize(
    ("kind", "body", "problem"),
    [
        ("multipart/form-data", b"", "must have a boundary"),
        ("multipart/form-data; boundary=", b"", "must have a boundary"),
        ("multipart/form-data; boundary=" + "x" * 1000, b"", "the form: cannot be read"),
        (FORM, b"no form", "the form: cannot be read"),
        (FORM, form_of([(b"form-data; name=x", b"")] * 70), "64 other fields"),
        (FORM, form_of([(b"form-data; name=x", b"")] * 6), "no image"),
        (FORM, form([("a.png", png())])[:-4], "the form: must end with its boundary"),
        (FORM, form([("a.png", png())])[:120], "the form: must end with its boundary"),
        (FORM, b"", "the form: must end with its boundary"),
    ],
)
def test_bad_forms_get_a_reason(port: int, kind: str, body: bytes, problem: str) -> None:
    status, content = ask(port, body=body, kind=kind)
    assert status in (400, 422)
    assert problem in content["detail"]


def test_a_form_is_read_in_pieces_of_any_size() -> None:
    body = form_of([(b'form-data; name="x"; filename="a.png"', png()), (b"form-data; name=y", b"1")])
    for size in (1, 7, 1000):
        reader = FormReader(FORM, 5)
        for start in range(0, len(body), size):
            reader.write(body[start : start + size])
        assert reader.files() == [EncodedFile("a.png", png())]
    with pytest.raises(DataError, match="at most 1 images"):
        FormReader(FORM, 1).write(form([("a", b""), ("b", b"")]))
    assert parameters("a; B=1 ; c*=x; d") == {"b": "1", "c": ""}


# --- tokens


@pytest.mark.parametrize(
    ("text", "token"), [(None, None), ("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a:b/+=~", "a:b/+=~")]
)
def test_tokens_are_read_without_the_last_line_break(text: str | None, token: str | None) -> None:
    assert read_token(text) == token


@pytest.mark.parametrize("text", ["", "\n", " ", "a b", "a\nb", " a", "grün", "a\t", "\x00"])
def test_tokens_that_no_client_can_send_are_refused_at_the_start(
    convatlas: Command, model_file: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    if "\x00" not in text:
        monkeypatch.setenv("CONVATLAS_TOKEN", text)
        check_refused(convatlas("serve", model_file), "CONVATLAS_TOKEN: must ")
    check_refused(convatlas("serve", model_file, "--token", text), "--token: must ")


def test_the_scheme_of_a_token_has_no_case() -> None:
    for header in (b"Bearer s", b"bearer s", b"BEARER  s "):
        assert has_token(header, "s")
    for header in (b"", b"s", b"Basic s", b"Bearer", b"Bearer S", b"Bearer s s", b"Bearer \xff"):
        assert not has_token(header, "s")


# --- one image of several


class OddEngine:
    """Fails, or gives NaN, for images whose center has one of two values."""

    name = "odd"

    def __init__(self, model: Model) -> None:
        self.engine = model.engine

    def outputs(self, pixels: torch.Tensor) -> torch.Tensor:
        center = pixels[:, 0, 16, 16]
        if (center == 11).any():
            raise RuntimeError("no kernel")
        outputs = self.engine.outputs(pixels)
        return torch.where(center[:, None] == 22, torch.nan, outputs)


def test_a_failure_of_one_image_is_the_error_of_that_image(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from convatlas.inference.images import load_views

    def fail(image: Any, name: str, *others: Any) -> Any:
        if name == "memory":
            raise MemoryError
        if name == "type":
            raise TypeError("expected\nanother")
        return load_views(image, name, *others)

    monkeypatch.setattr(batcher, "load_views", fail)
    sent = {"good": png(), "memory": png(), "type": png(), "engine": png(11), "nan": png(22), "again": png()}
    with running(Model(model.network, model.header, OddEngine(model)), Limits(wait_s=0.2)) as port:
        status, content = ask(port, body=form(list(sent.items())), kind=FORM)
        predictions = {each["source"]: each for each in content["predictions"]}
        assert status == 200
        assert list(predictions) == list(sent)
        assert predictions["good"]["label"] == predictions["again"]["label"]
        assert {name: each["error"] for name, each in predictions.items() if each["error"]} == {
            "memory": "memory: cannot be read (MemoryError)",
            "type": "type: cannot be read (expected)",
            "engine": "engine: the network failed (no kernel)",
            "nan": "nan: the network computes NaN or infinity for this image",
        }
        for name, expected in (("type", 422), ("engine", 500), ("nan", 500)):
            assert ask(port, body=form([(name, sent[name])]), kind=FORM)[0] == expected
        assert json.dumps(content, allow_nan=False)
