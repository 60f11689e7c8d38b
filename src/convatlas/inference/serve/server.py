"""Run the server until the process is stopped."""

from __future__ import annotations

import socket
from collections.abc import Callable

import torch
import uvicorn

from convatlas.engines.deploy import example_pixels
from convatlas.errors import RunError
from convatlas.inference.model import Model
from convatlas.inference.serve.application import build_application
from convatlas.inference.serve.batcher import Limits

BACKLOG = 2048
"""Maximum number of connections that wait until the server accepts them."""

MAX_SHUTDOWN_S = 60


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
    config = uvicorn.Config(
        build_application(model, limits, token=token), log_level="warning", access_log=False,
        timeout_graceful_shutdown=MAX_SHUTDOWN_S, backlog=BACKLOG, server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with torch.inference_mode():
        model.engine.outputs(example_pixels(model.header, 1))
    bound.listen(BACKLOG)  # connections are queued from now on, also before the server has started
    host, port = bound.getsockname()[:2]
    log(f"{model.header.name} on http://{host}:{port} ({model.engine}); stop with Ctrl-C")
    try:
        server.run(sockets=[bound])
    except KeyboardInterrupt:
        return
    if not server.started:
        raise RunError(f"{host}:{port}: the server did not start")
