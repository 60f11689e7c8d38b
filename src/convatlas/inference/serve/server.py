"""Run the server until the process is stopped."""

from __future__ import annotations

import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import uvicorn

from convatlas.engines.deploy import example_inputs
from convatlas.errors import RunError
from convatlas.inference.model import Model
from convatlas.inference.serve.application import build_application
from convatlas.inference.serve.limits import Limits
from convatlas.inference.serve.protocol import LimitedProtocol

BACKLOG = 2048
"""Maximum number of connections that wait until the server accepts them."""

COMPLETION_S = 60
"""Seconds for the predictions of requests that were received before the server is stopped."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address; port 0 takes a free one. Raises RunError if that fails."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise RunError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from error
    return bound


def build_server(model: Model, limits: Limits, *, token: str | None = None) -> uvicorn.Server:
    """Return the server of a model, which is not started yet. token: see `build_application`."""
    config = uvicorn.Config(
        build_application(model, limits, token=token), http=partial(LimitedProtocol, limits), ws="none", lifespan="on",
        log_level="warning", access_log=False, server_header=False, backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(limits.request_s) + COMPLETION_S,
    )  # fmt: skip
    return uvicorn.Server(config)


def run_server(
    model: Model,
    limits: Limits,
    bound: socket.socket,
    *,
    token: str | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve a model until the process gets SIGINT or SIGTERM; requests that were accepted are completed.

    bound: from `bind`. token: see `build_application`. log: is called with the address once requests are accepted.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings repeat what the client gets
    server = build_server(model, limits, token=token)
    with torch.inference_mode():
        model.engine.outputs(example_inputs(model.header, 1))
    bound.listen(BACKLOG)  # connections are queued from now on, also before the server has started
    host, port = bound.getsockname()[:2]
    memory = limits.memory_bytes(model.header.preprocessing) / 2**30
    log(f"memory for requests: at most {memory:.1f} GiB; see docs/inference.md#serving")
    log(f"{model.header.name} on http://{host}:{port} ({model.engine}); stop with Ctrl-C")
    with _stopping_by_signal(server):
        server.run(sockets=[bound])
    if not server.started:
        raise RunError(f"{host}:{port}: the server did not start")


@contextmanager
def _stopping_by_signal(server: uvicorn.Server) -> Iterator[None]:
    """Let signals stop the server and nothing else: it sends the signal that stopped it once more to the process."""
    if threading.current_thread() is not threading.main_thread():  # gets no signals
        yield
        return
    before = {number: signal.signal(number, server.handle_exit) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
