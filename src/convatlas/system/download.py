"""Downloads: only on request, from several mirrors, resumed after an interruption, verified by SHA-256."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from convatlas.errors import DataError, MachineError
from convatlas.system.files import sha256
from convatlas.system.progress import Progress

OFFLINE = "internet access is disabled (--offline or CONVATLAS_OFFLINE)"


def offline() -> bool:
    """Return whether internet access is disabled."""
    return bool(os.environ.get("CONVATLAS_OFFLINE"))


def fetch(urls: Sequence[str], path: Path, digest: str, *, progress: Progress | None = None) -> Path:
    """Download a file from the first of `urls` that serves it, and verify it; return `path`.

    A valid file at `path` is not downloaded again. An interrupted download leaves `path`.part, from which the next call
    resumes; `path` itself appears only after verification.
    digest: the SHA-256 in hexadecimal, or its beginning.
    Raises DataError if no mirror serves the file or internet access is disabled, MachineError if it cannot be written.
    """
    if path.exists() and sha256(path).startswith(digest):
        return path
    if offline():
        raise DataError(f"{path}: not cached, and {OFFLINE}")
    part = path.with_name(path.name + ".part")
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for url in urls:
            try:
                _resume(url, part, progress)
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, EOFError) as error:
                failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
                continue
            if sha256(part).startswith(digest):
                part.replace(path)
                return path
            part.unlink()
            failures.append(f"{url}: the SHA-256 differs from the published one")
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error
    raise DataError(f"{path.name}: download failed: {'; '.join(failures)}")


def _resume(url: str, part: Path, progress: Progress | None) -> None:
    """Download `url` to `part`; resume after the bytes that `part` has if the server supports ranges."""
    size = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # no bytes after these: a complete file, or another one; the digest decides
            return
        raise
    with response:
        resumed = response.status == 206
        total = int(response.headers.get("Content-Length") or 0) + (size if resumed else 0)
        done = size if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            while block := response.read(1 << 16):
                file.write(block)
                done += len(block)
                if progress:
                    progress(f"downloading {part.stem}", done, total)
    if total and done < total:
        raise EOFError(f"the connection closed after {done:,} of {total:,} bytes")


MAX_IMAGE_BYTES = 2**26
"""Maximum size of an image that is downloaded, in bytes."""


def fetch_bytes(url: str) -> bytes:
    """Return the content of a URL, at most 64 MiB. Raises DataError if that fails or internet access is disabled."""
    if offline():
        raise DataError(f"{url}: not downloaded; {OFFLINE}")
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            data: bytes = response.read(MAX_IMAGE_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"{url}: download failed: {getattr(error, 'reason', None) or error}") from error
    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"{url}: the image file must be at most {MAX_IMAGE_BYTES / 2**20:.0f} MiB")
    return data
