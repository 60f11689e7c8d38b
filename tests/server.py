"""A local HTTP server with several failure modes, for tests of downloads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 1000
"""The default content of a file on the server."""


@dataclass
class Site:
    """A server: its files, how it fails, and the requests that it received as (path, Range header).

    ranges: whether it supports Range requests. cut: number of bytes after which responses break off.
    failure: what it does instead of a response.
    """

    files: dict[str, bytes]
    ranges: bool = True
    cut: int | None = None
    failure: str = ""
    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.requests.append((self.path, wanted))
            self.close_connection = True
            if site.failure == "nonsense":
                self.wfile.write(b"this is no HTTP\r\n\r\n")
            elif site.failure == "broken chunk":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nshort")
            elif site.failure == "404" or self.path not in site.files:
                self.send_error(404)
            elif site.failure != "hangs up":
                self.respond(site.files[self.path], wanted)

        def respond(self, body: bytes, wanted: str | None) -> None:
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : None if site.cut is None else start + site.cut])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
