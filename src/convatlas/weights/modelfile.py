"""The sealed model file: one safetensors file that carries everything needed to use the weights.

Reading it runs no code: the header is JSON, the weights are raw numbers, and both are covered by a sha256.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec, from_plain
from convatlas.errors import ModelFileError, SpecError
from convatlas.models.catalog import SPEC_TYPES, build_fresh
from convatlas.system.files import atomic

FORMAT = 1
"""The format version that this code writes, and the newest that it reads."""

_FIELDS = {
    "format": int, "name": str, "task": str, "spec": dict, "classes": list, "preprocessing": dict, "criterion": str,
    "temperature": float, "thresholds": list, "training": dict, "metrics": dict, "license": str,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """Everything about the weights that the weights do not say themselves.

    criterion: the loss they were trained with, which decides how outputs become probabilities.
    task: "classification", one class for each image, or "tagging", any number of them.
    temperature: what logits are divided by before they become probabilities, fitted on the val split.
    thresholds: of tagging, from which probability on each class is said to be there, fitted on the val split.
    training: recipe, seed, data, fingerprint, versions: how the weights came about.
    metrics: split -> measured numbers.
    license: what the owner of the weights allows; empty where nothing was stated.
    """

    name: str
    spec: Spec
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    criterion: str
    task: str = "classification"
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float | int]] = field(default_factory=dict)
    license: str = ""

    def to_plain(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "task": self.task,
            "spec": self.spec.to_plain(),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_plain(),
            "criterion": self.criterion,
            "temperature": self.temperature,
            "thresholds": list(self.thresholds),
            "training": dict(self.training),
            "metrics": {split: dict(numbers) for split, numbers in self.metrics.items()},
            "license": self.license,
        }


def written(header: Header) -> str:
    """Return a header as text, which `header_from` reads."""
    return json.dumps(header.to_plain(), ensure_ascii=False, allow_nan=False)


def save(path: Path, network: Network, header: Header) -> None:
    """Seal the weights of `network` with `header` into one file, atomically."""
    text = written(header)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    metadata = {"convatlas": text, "sha256": digest(text, tensors)}
    with atomic(path) as file:
        file.write(safetensors.torch.save(tensors, metadata))


def load(path: str | Path) -> tuple[Network, Header]:
    """Open a sealed model file; returns the network in evaluation mode and the header.

    Raises ModelFileError, in one line, for a file that is missing, damaged, truncated, foreign or of a newer format.
    """
    path = Path(path)
    header, tensors = _read(path)
    try:
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in _build(header, "meta").state_dict().items()}
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if found != shapes:
            wrong = sorted(name for name in {**shapes, **found} if shapes.get(name) != found.get(name))
            raise ModelFileError(f"{path}: the weights do not fit the network {header.name}: {', '.join(wrong[:5])}")
        with torch.random.fork_rng(devices=[]):
            network = _build(header, "cpu")
    except SpecError as error:
        raise ModelFileError(f"{path}: {error}") from error
    network.load_state_dict(tensors)
    return network.eval(), header


def is_model_file(path: str | Path) -> bool:
    """Return whether a file is a sealed model file, whole or not."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "convatlas" in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def _build(header: Header, device: str) -> Network:
    return build_fresh(header.spec, classes=len(header.classes), channels=header.preprocessing.channels, device=device)


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a header and weights, on whatever device and in whatever memory format they are."""
    summed = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        summed.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        summed.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return summed.hexdigest()


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "convatlas" not in metadata:
                raise ModelFileError(f"{path}: a safetensors file, but not a convatlas model (no header)")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: damaged, truncated or not a model file ({error})") from error
    text = metadata["convatlas"]
    plain = _plain(path, text)
    if metadata.get("sha256") != digest(text, tensors):
        raise ModelFileError(f"{path}: the file is damaged (its sha256 does not match); copy it again")
    return _header(path, plain), tensors


def header_from(path: Path, text: str) -> Header:
    """Read a header; raises ModelFileError that names `path` for one that is damaged or of a newer format."""
    return _header(path, _plain(path, text))


def _plain(path: Path, text: str) -> dict[str, Any]:
    try:
        plain = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ModelFileError(f"{path}: the header is damaged ({error})") from error
    version = plain.get("format") if isinstance(plain, dict) else None
    if type(version) is not int:
        raise ModelFileError(f"{path}: the header has no format version")
    if version > FORMAT:
        raise ModelFileError(
            f"{path}: written in format {version}, this convatlas reads up to {FORMAT}; upgrade convatlas"
        )
    assert isinstance(plain, dict)
    return plain


def _header(path: Path, plain: dict[str, Any]) -> Header:
    for name, kind in _FIELDS.items():
        if type(plain.get(name)) is not kind:
            raise ModelFileError(f"{path}: header field {name!r} is missing or not a {kind.__name__}")
    classes = plain["classes"]
    if not classes or not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
        raise ModelFileError(f"{path}: header field 'classes' must hold different names")
    try:
        spec = from_plain(plain["spec"], SPEC_TYPES)
        preprocessing = Preprocessing.from_plain(plain["preprocessing"])
    except (SpecError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: {error}") from error
    if not 0 < plain["temperature"] < math.inf:
        raise ModelFileError(f"{path}: header field 'temperature' must be above 0")
    thresholds = plain["thresholds"]
    if not all(type(value) is float and 0 <= value <= 1 for value in thresholds) or (
        len(thresholds) != (len(classes) if plain["task"] == "tagging" else 0)
    ):
        raise ModelFileError(f"{path}: header field 'thresholds' must hold a share for each class of a tagging network")
    if preprocessing.size != spec.resolution:
        raise ModelFileError(
            f"{path}: preprocessing gives {preprocessing.size} px, the network reads {spec.resolution}"
        )
    kept = {
        name: plain[name] for name in ("name", "task", "criterion", "temperature", "training", "metrics", "license")
    }
    return Header(
        spec=spec, classes=tuple(classes), preprocessing=preprocessing, thresholds=tuple(thresholds), **kept
    )  # fmt: skip
