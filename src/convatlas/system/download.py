"""Downloads: only when asked for, from several mirrors, resumed where they broke off, checked before they count."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from convatlas.errors import DataError
from convatlas.system.files import sha256
from convatlas.system.progress import Progress

OFFLINE = "downloads are switched off (--offline or CONVATLAS_OFFLINE)"


def offline() -> bool:
    """Return whether the network may not be used."""
    return bool(os.environ.get("CONVATLAS_OFFLINE"))


def fetch(urls: Sequence[str], path: Path, digest: str, *, progress: Progress | None = None) -> Path:
    """Fetch a file from the first of `urls` that serves it, unless `path` already holds it, and check its sha256.

    digest: the sha256, or as much of its beginning as was published.
    A download that breaks off leaves `path`.part behind and goes on from there next time; `path` itself appears only
    complete and checked. Raises DataError if no mirror delivers, or if CONVATLAS_OFFLINE is set.
    """
    if path.exists() and sha256(path).startswith(digest):
        return path
    if offline():
        raise DataError(f"{path}: not there, and {OFFLINE}")
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
            failures.append(f"{url}: the file differs from the published one (sha256)")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    raise DataError(f"{path.name} could not be fetched: {'; '.join(failures)}")


def _resume(url: str, part: Path, progress: Progress | None) -> None:
    """Download `url` to `part`, going on after the bytes that are there if the server can."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after these bytes: complete, or not this file; the digest decides
            return
        raise
    with answer:
        resumed = answer.status == 206
        total = int(answer.headers.get("Content-Length") or 0) + (have if resumed else 0)
        done = have if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            while block := answer.read(1 << 16):
                file.write(block)
                done += len(block)
                if progress:
                    progress(f"fetching {part.stem}", done, total)
    if total and done < total:
        raise EOFError(f"the connection closed after {done:,} of {total:,} bytes")


IMAGE_BYTES = 2**26
"""The most that is fetched for one image."""


def fetch_bytes(url: str) -> bytes:
    """Return what a URL serves, up to 64 MiB; raises DataError, also where the network may not be used."""
    if offline():
        raise DataError(f"{url}: not fetched; {OFFLINE}")
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            data: bytes = answer.read(IMAGE_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"{url}: could not be fetched: {getattr(error, 'reason', None) or error}") from error
    if len(data) > IMAGE_BYTES:
        raise DataError(f"{url}: has more than {IMAGE_BYTES / 2**20:.0f} MiB")
    return data
