"""A server on this machine that can fail in several ways, for tests of what is fetched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 1000
"""What servers hold where nothing else is told."""


@dataclass
class Site:
    """A server: what it holds, how it fails, and what it was asked for.

    ranges: whether it can go on after the first bytes. cut: answers break off after so many bytes.
    failure: what it does instead of an answer.
    """

    files: dict[str, bytes]
    ranges: bool = True
    cut: int | None = None
    failure: str = ""
    url: str = ""
    options: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.options.append((self.path, wanted))
            self.close_connection = True
            if site.failure == "nonsense":
                self.wfile.write(b"this is no HTTP\r\n\r\n")
            elif site.failure == "broken chunk":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nshort")
            elif site.failure == "404" or self.path not in site.files:
                self.send_error(404)
            elif site.failure != "hangs up":
                self.text(site.files[self.path], wanted)

        def answer(self, body: bytes, wanted: str | None) -> None:
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
