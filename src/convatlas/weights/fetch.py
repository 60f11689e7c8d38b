"""Fetch published weights."""

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
    """Fetch weights that are not at hand, check their digest, and return the file.

    This is the only place that uses the network, and only when called. Raises WeightsError if it is switched off.
    """
    at_hand = weights.file
    if at_hand is not None and sha256(at_hand).startswith(weights.digest):
        return at_hand
    try:
        path = fetch([weights.url], weights.path, weights.digest, progress=progress)
    except DataError as error:
        raise WeightsError(
            f"{error}; on a machine without a network: convatlas weights import {weights.name} FILE"
        ) from error
    _check_fit(weights, path)
    return path


def _check_fit(weights: Weights, path: Path) -> None:
    """Raise WeightsError unless the tensors of a file are those of the network, under the library's names."""
    spec, channels = variant(weights.network).spec.scaled(resolution=weights.preprocessing.size), weights.channels
    given = Checkpoint(load_tensors(path), len(weights.classes), channels, path, weights.preprocessing, weights.library)
    match_checkpoint(
        spec, given, build_fresh(spec, classes=given.classes, channels=channels, device="meta").state_dict()
    )


def import_file(weights: Weights, file: str | Path) -> Path:
    """Copy a file that was brought here by hand to where `pull` would have put it, after checking its digest."""
    file = Path(file)
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    found = sha256(file)
    if not found.startswith(weights.digest):
        raise WeightsError(
            f"{file}: not the published file: its sha256 begins {found[:8]}, the one of {weights.name} {weights.digest}"
        )
    _check_fit(weights, file)
    try:
        weights.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{weights.path.parent}: cannot be written: {error.strerror or error}") from error
    with file.open("rb") as source, atomic(weights.path) as target:
        shutil.copyfileobj(source, target)
    return weights.path
