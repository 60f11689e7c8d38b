"""Put published weights into the cache: download them, or add a file that was downloaded elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from convatlas.errors import DataError, WeightsError
from convatlas.models.catalog import build_fresh, variant
from convatlas.system.download import fetch
from convatlas.system.files import atomic, sha256
from convatlas.system.progress import Progress
from convatlas.weights.pretrained import Weights
from convatlas.weights.read import Checkpoint, load_tensors, match_checkpoint


def pull(weights: Weights, *, progress: Progress | None = None) -> Path:
    """Return the file of published weights; downloads and checks it unless it is cached.

    Raises WeightsError if the download fails, is switched off, or gives another file than the published one.
    """
    cached = weights.cached_file
    if cached is not None and sha256(cached).startswith(weights.sha256_prefix):
        return cached
    try:
        path = fetch([weights.url], weights.cache_path, weights.sha256_prefix, progress=progress)
    except DataError as error:
        raise WeightsError(f"{error}; without internet access: convatlas weights add {weights.name} FILE") from error
    _check_tensors(weights, path)
    return path


def add_file(weights: Weights, file: str | Path) -> Path:
    """Copy a file that was downloaded elsewhere into the cache, where `pull` finds it; returns the copy.

    Raises WeightsError unless its SHA-256 and its tensors are those of the published file.
    """
    file = Path(file)
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    digest = sha256(file)
    if not digest.startswith(weights.sha256_prefix):
        raise WeightsError(
            f"{file}: sha256 must begin with {weights.sha256_prefix} as published for {weights.name}, got {digest[:8]}"
        )
    _check_tensors(weights, file)
    path = weights.cache_path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{path.parent}: cannot be written: {error.strerror or error}") from error
    with file.open("rb") as source, atomic(path) as target:
        shutil.copyfileobj(source, target)
    return path


def _check_tensors(weights: Weights, path: Path) -> None:
    """Raise WeightsError unless a file has exactly the tensors of the network, with the library's names."""
    spec = variant(weights.network).spec.scaled(resolution=weights.preprocessing.resolution)
    checkpoint = Checkpoint(
        load_tensors(path), len(weights.classes), weights.channels, path, weights.preprocessing, weights.library
    )  # fmt: skip
    network = build_fresh(spec, classes=checkpoint.num_classes, channels=checkpoint.channels, device="meta")
    match_checkpoint(spec, checkpoint, network.state_dict())
