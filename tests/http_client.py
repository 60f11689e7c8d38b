"""What tests of the server share: a server in a thread, and requests of every kind, broken ones too."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from convatlas.inference.model import Model
from convatlas.inference.serve.limits import Limits

BOUNDARY = "----------------x"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@contextmanager
def running(model: Model, limits: Limits | None = None, token: str | None = None) -> Iterator[int]:
    """Run a server in a thread; yields its port."""
    from convatlas.inference.serve.server import build_server

    server = build_server(model, limits or Limits(), token=token)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def ask(
    port: int, path: str = "/predict", body: bytes | None = None, *, kind: str = "image/png", method: str = "",
    token: str = "", headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:  # fmt: skip
    """Return status and content of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = {"Content-Type": kind} | ({"Authorization": f"Bearer {token}"} if token else {}) | dict(headers or {})
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    is_json = "json" in (response.headers.get("content-type") or "")
    return response.status, json.loads(data) if is_json and data else data.decode(errors="replace")


def head(length: int | None = None, *, path: str = "/predict", kind: str = "image/png", more: str = "") -> bytes:
    """Return the head of a POST request; without a length, its body is chunked."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{framing}\r\n{more}\r\n".encode()


def form(files: list[tuple[str, bytes]]) -> bytes:
    """Return a form of files by name."""
    return form_of([(f'form-data; name="images"; filename="{name}"'.encode(), data) for name, data in files])


def form_of(parts: list[tuple[bytes, bytes]]) -> bytes:
    """Return a form of parts (Content-Disposition, data)."""
    lines = [
        f"--{BOUNDARY}\r\nContent-Disposition: ".encode() + disposition + b"\r\n\r\n" + data
        for disposition, data in parts
    ]
    return b"\r\n".join([*lines, f"--{BOUNDARY}--\r\n".encode()])


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 60)


def read_all(raw: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    data = b""
    while part := raw.recv(65536):
        data += part
    return data


def drip(raw: socket.socket, data: bytes) -> bytes:
    """Send bytes one by one, without end, until the server responds or closes; return what it sends."""
    raw.settimeout(0.01)
    while True:
        try:
            raw.sendall(data)
            return raw.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return b""
