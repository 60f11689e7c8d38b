"""The model file: one safetensors file that carries everything needed to use the weights.

Reading it runs no code: the header is JSON, the weights are raw numbers, and a sha256 covers both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from convatlas._version import __version__
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.record import Record
from convatlas.core.spec import Spec
from convatlas.errors import ConvatlasError, ModelFileError, SpecError, brief, listed
from convatlas.models.catalog import SPEC_TYPES, build_fresh, unknown_spec_hint
from convatlas.models.own_module import OwnModule, load_module
from convatlas.system.files import atomic
from convatlas.tasks.known import TASKS
from convatlas.tasks.task import Calibration, Task
from convatlas.weights.finite import check_numbers
from convatlas.weights.torch_file import is_torch_file
from convatlas.weights.training_record import TrainingRecord

_IMPORT = "use it with fit --weights FILE, or make a model of it with convatlas weights import NAME FILE --tag TAG"


@dataclass(frozen=True)
class Header(Record):
    """Everything in a model file besides the weights.

    task: what the network predicts, with the names of its classes and the loss of its training.
    calibration: what was fitted on the val split.
    training: how the weights were trained, or where they are from.
    metrics: split -> metric -> value.
    license: what the owner of the weights allows; empty if it is not stated.
    """

    version = 1
    error = ModelFileError

    name: str
    task: Task
    spec: Spec
    preprocessing: Preprocessing
    calibration: Calibration = field(default_factory=Calibration)
    training: TrainingRecord = field(default_factory=TrainingRecord)
    metrics: Mapping[str, Mapping[str, float | int]] = field(default_factory=dict)
    license: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if problem := self.preprocessing.misfit(self.spec.input_shape(1)):
            raise ModelFileError(f"Header: preprocessing {problem}")
        if not self.task.fits(self.spec):
            raise ModelFileError(
                f"Header: task must be for a network that reads {self.spec.reads} and predicts {self.spec.predicts}, "
                f"got {self.task.short_name}"
            )
        thresholds = len(self.calibration.thresholds)
        if thresholds not in (0, self.task.outputs):
            raise ModelFileError(f"Header: thresholds must be one for each of {self.task.outputs}, got {thresholds}")

    @property
    def classes(self) -> tuple[str, ...]:
        return self.task.classes


def header_text(header: Header) -> str:
    """Return a header as text, which `parse_header` reads."""
    return json.dumps(header.to_plain(), ensure_ascii=False, allow_nan=False)


def write_model_file(path: Path, network: Network, header: Header) -> None:
    """Write the weights of `network` and `header` into one file, atomically."""
    text = header_text(header)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.file_state().items()}
    metadata = {"convatlas": text, "sha256": digest(text, tensors)}
    with atomic(path) as file:
        file.write(safetensors.torch.save(tensors, metadata))


def read_model_file(path: str | Path, module: nn.Module | None = None) -> tuple[Network, Header]:
    """Read a model file; returns the network in evaluation mode and the header.

    module: for the file of an own module, one of the same class; it is copied.
    Raises ModelFileError, in one line, for a file that is missing, damaged, truncated, foreign or of a newer version.
    """
    path = Path(path)
    header, tensors = read_tensors(path)
    network: Network
    if module is not None:
        if not isinstance(header.spec, OwnModule):
            raise ModelFileError(f"{path}: is of {header.name}, which is built from its spec; leave out module=")
        if (header.spec.channels, header.spec.outputs) != (header.preprocessing.channels, header.task.outputs):
            raise ModelFileError(
                f"{path}: header: the spec must have the channels and outputs of preprocessing and task"
            )
        try:
            network = load_module(module, header.spec, tensors)
        except SpecError as error:
            raise ModelFileError(f"{path}: {error}") from error
        _check_state(path, header, tensors, network.file_state())
    else:
        check_tensors(path, header, tensors)
        with torch.random.fork_rng(devices=[]):
            network = _build(header, "cpu")
    network.load_file_state(tensors)
    return network.eval(), header


def check_tensors(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelFileError unless tensors are those of the header's network, and finite."""
    try:
        state = _build(header, "meta").file_state()
    except SpecError as error:
        raise ModelFileError(f"{path}: {error}") from error
    _check_state(path, header, tensors, state)


def _check_state(path: Path, header: Header, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise ModelFileError unless tensors have the names, shapes and types of a network's state, and are finite."""
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    actual = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    if actual != expected:
        wrong = sorted(name for name in {**expected, **actual} if expected.get(name) != actual.get(name))
        raise ModelFileError(f"{path}: the weights do not fit the network {header.name}: {listed(wrong, 5)}")
    check_numbers(path, tensors, state, ModelFileError)


def is_model_file(path: str | Path) -> bool:
    """Return whether a file is a model file, damaged or not."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "convatlas" in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def read_header(path: Path) -> Header:
    """Read only the header of a model file, without checking the weights; see `read_model_file` for errors."""
    return parse_header(path, _read(path, with_tensors=False)[0]["convatlas"])


def read_tensors(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Read header and tensors of a model file without building the network; see `read_model_file` for errors."""
    metadata, tensors = _read(path, with_tensors=True)
    text = metadata["convatlas"]
    header = parse_header(path, text)
    if metadata.get("sha256") != digest(text, tensors):
        raise ModelFileError(f"{path}: the file is damaged (its sha256 does not match); copy it again")
    return header, tensors


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "convatlas" not in metadata:
                raise ModelFileError(f"{path}: a safetensors file, but not a convatlas model (no header); {_IMPORT}")
            names = file.keys() if with_tensors else ()
            return metadata, {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        if is_torch_file(path):
            raise ModelFileError(f"{path}: a checkpoint of torch, not a model file; {_IMPORT}") from error
        raise ModelFileError(f"{path}: damaged, truncated or not a model file ({brief(error)})") from error


def parse_header(path: Path, text: str) -> Header:
    """Read a header; raises ModelFileError that names `path` if it is damaged or of a newer version."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of more than 4,300 digits
        raise ModelFileError(f"{path}: the header is damaged ({brief(error)})") from error
    try:
        return Header.from_plain(plain, where="header", known={**SPEC_TYPES, **TASKS})
    except RecursionError as error:
        raise ModelFileError(f"{path}: the header is damaged (tables in tables, too deep)") from error
    except ConvatlasError as error:
        raise ModelFileError(f"{path}: {error}{unknown_spec_hint(plain) or _version_hint(plain)}") from error


def _version_hint(plain: Any) -> str:
    """Return that another version of convatlas wrote a header, or an empty text."""
    for key in ("training", "versions", "convatlas"):
        plain = plain.get(key) if isinstance(plain, Mapping) else None
    if not isinstance(plain, str) or plain == __version__:
        return ""
    return f"; written by another version of convatlas ({plain}, this one is {__version__})"


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a header and weights, on whatever device and in whatever memory format they are."""
    sha256 = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        sha256.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        sha256.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _build(header: Header, device: str) -> Network:
    channels = header.preprocessing.channels
    return build_fresh(header.spec, classes=header.task.outputs, channels=channels, device=device)
