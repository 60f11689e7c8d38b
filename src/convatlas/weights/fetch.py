"""Put published weights into the cache: download them, or import a file that was downloaded elsewhere."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from convatlas.errors import DataError, WeightsError
from convatlas.models.catalog import variant
from convatlas.system.cache import delete_abandoned, partial_file
from convatlas.system.download import fetch
from convatlas.system.files import sha256
from convatlas.system.progress import Progress
from convatlas.weights.pretrained import Weights
from convatlas.weights.read import Checkpoint, read_checkpoint

NO_DIGEST = "no published digest: the file cannot be checked"


def is_published_file(weights: Weights, file: Path) -> bool:
    """Return whether a file has the published SHA-256; true if none is published."""
    stat = file.stat()
    return _digest(file, stat.st_size, stat.st_mtime_ns).startswith(weights.sha256_prefix)


@lru_cache(maxsize=64)
def _digest(file: Path, size: int, time: int) -> str:
    return sha256(file)


def wrong_digest(weights: Weights, file: Path) -> str:
    """Return the problem with a cached file that is not the published one, and how to use it nevertheless."""
    return (
        f"{file}: is not the published file of {weights.name} (another SHA-256); `convatlas weights import "
        f"{weights.network} {file} --tag TAG` gives it another name"
    )


def pull(weights: Weights, *, replace: bool = False, progress: Progress | None = None) -> Path:
    """Return the file of published weights; downloads and checks it unless it is cached.

    replace: download it again if the cached file is not the published one.
    Raises WeightsError if the download fails, is switched off, or gives another file than the published one; and
    without `replace` if the cached file is another one.
    """
    cached = weights.cached_file
    if cached is not None and is_published_file(weights, cached):
        return cached
    if cached is not None and not replace:
        raise WeightsError(f"{wrong_digest(weights, cached)}, `convatlas weights pull {weights.name}` replaces it")
    try:
        path = fetch([weights.url], weights.cache_path, weights.sha256_prefix, progress=progress)
    except DataError as error:
        raise WeightsError(f"{error}; without internet access: convatlas weights import {weights.name} FILE") from error
    _check_tensors(weights, path)
    warn_without_digest(weights)
    return path


def import_published(weights: Weights, file: str | Path) -> Path:
    """Copy a published file that was downloaded elsewhere into the cache, where `pull` finds it; returns the copy.

    Raises WeightsError unless its SHA-256 and its tensors are those of the published file. If no digest is published,
    that is logged.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    digest = sha256(file)
    if not digest.startswith(weights.sha256_prefix):
        raise WeightsError(
            f"{file}: sha256 must begin with {weights.sha256_prefix} as published for {weights.name}, got "
            f"{digest[:8]}; a file of your own gets a name with --tag"
        )
    _check_tensors(weights, file)
    with new_file(weights.cache_path) as part, file.open("rb") as source, part.open("wb") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())
    warn_without_digest(weights)
    return weights.cache_path


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path whose file becomes `path` at the end of the block.

    What a killed process left is deleted. Raises WeightsError if the file cannot be written.
    """
    part = partial_file(path.parent, path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_abandoned(path.parent)
        yield part
        part.replace(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def warn_without_digest(weights: Weights) -> None:
    """Log that a file cannot be checked, if no digest is published."""
    if not weights.sha256_prefix:
        logging.getLogger("convatlas").warning("%s: %s", weights.name, NO_DIGEST)


def _check_tensors(weights: Weights, path: Path) -> Checkpoint:
    """Return the tensors of a file, if they are exactly those of the network, with the library's names."""
    row = variant(weights.network)
    checkpoint = read_checkpoint(path, weights.spec, name=weights.network, row=row, library=weights.library)
    if checkpoint.num_classes != len(weights.classes):
        raise WeightsError(f"{path}: must have {len(weights.classes):,} classes, got {checkpoint.num_classes:,}")
    return checkpoint
