"""Downloads: only when asked for, from several mirrors, resumed where they broke off, checked before they count."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convatlas.errors import DataError


@dataclass(frozen=True)
class IdxSet:
    """The mirrors of a data set of IDX files, and the sha256 of each packed file."""

    mirrors: tuple[str, ...]
    digests: dict[str, str]


IDX_SETS = {
    "mnist": IdxSet(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": IdxSet(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def fetch_idx(name: str, folder: Path, *, progress: Callable[[str, int, int], None] | None = None) -> None:
    """Fetch the files of MNIST or Fashion-MNIST that `folder` does not hold yet."""
    files = IDX_SETS[name]
    for file, digest in files.digests.items():
        fetch([mirror + file for mirror in files.mirrors], folder / file, digest, progress=progress)


def fetch(
    urls: Sequence[str], path: Path, digest: str, *, progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """Fetch a file from the first of `urls` that serves it, unless `path` already holds it, and check its sha256.

    A download that breaks off leaves `path`.part behind and goes on from there next time; `path` itself appears only
    complete and checked. Raises DataError if no mirror delivers, or if CONVATLAS_OFFLINE is set.
    """
    if path.exists() and _sha256(path) == digest:
        return path
    if os.environ.get("CONVATLAS_OFFLINE"):
        raise DataError(f"{path}: not there, and downloads are switched off (--offline or CONVATLAS_OFFLINE)")
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
            if _sha256(part) == digest:
                part.replace(path)
                return path
            part.unlink()
            failures.append(f"{url}: the file differs from the published one (sha256)")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    raise DataError(f"{path.name} could not be fetched: {'; '.join(failures)}")


def _resume(url: str, part: Path, progress: Callable[[str, int, int], None] | None) -> None:
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
