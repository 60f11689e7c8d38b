"""Checkpoints: the whole state of a training between two steps, in one file that loads without running code.

The file is what torch.save writes, followed by its sha256, so that a single wrong bit is noticed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from convatlas.core.record import check_version
from convatlas.errors import RunError, foreign_errors, listed
from convatlas.system.files import atomic
from convatlas.train.optim import EMA, state_names
from convatlas.train.state import State

VERSION = 1
"""The format version of checkpoints that this code writes, and the newest that it reads."""

SEAL = b"\nsha256 "
"""Between the archive and its digest in hexadecimal; torch.load ignores what follows the archive."""

CHUNK = 2**20
"""Bytes of a file that are read at once."""


def save_checkpoint(
    path: Path, network: nn.Module, optimizer: optim.Optimizer, state: State, ema: EMA | None = None
) -> None:
    """Write everything needed to resume at `state.step`, atomically."""
    whole = {
        "version": VERSION, "network": network.state_dict(), "optimizer": optimizer.state_dict()["state"],
        "state": state.to_plain(),
    }  # fmt: skip
    if ema:
        whole["ema"] = ema.network.state_dict()
    buffer = io.BytesIO()  # torch.save turns a full disk into an error of its own
    torch.save(whole, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())
        file.write(SEAL + hashlib.sha256(buffer.getbuffer()).hexdigest().encode())


def load_checkpoint(path: Path, network: nn.Module, optimizer: optim.Optimizer, ema: EMA | None = None) -> State:
    """Load weights and optimizer state into the arguments, and return the training state.

    Raises RunError that names the field if the file is damaged, of a newer version, or of another network or recipe.
    """
    _check_seal(path)
    with foreign_errors(path, RunError, "the checkpoint is damaged"):
        whole: Any = torch.load(path, weights_only=True, map_location="cpu")
    whole = _fields(whole, f"{path}: checkpoint")
    check_version(whole.get("version"), VERSION, str(path), RunError)
    parts = {"version", "network", "optimizer", "state"} | ({"ema"} if ema else set())
    if whole.keys() != parts:
        wrong = ", ".join(sorted(whole.keys() ^ parts))
        raise RunError(f"{path}: the checkpoint is of another recipe or incomplete; missing or unknown: {wrong}")
    # 1. check everything, 2. load: an error leaves the arguments as they were
    state = _parse_state(path, whole["state"])
    _check_tensors(path, "network", whole["network"], network.state_dict())
    _check_optimizer(path, whole["optimizer"], optimizer)
    if ema:
        _check_tensors(path, "ema", whole["ema"], ema.network.state_dict())
    network.load_state_dict(whole["network"])
    optimizer.load_state_dict({"state": whole["optimizer"], "param_groups": optimizer.state_dict()["param_groups"]})
    if ema:
        ema.network.load_state_dict(whole["ema"])
        ema.steps = state.ema_steps
    return state


def read_state(path: Path) -> State:
    """Read only the training state of a checkpoint, without its tensors and their sha256.

    Raises RunError if the file is damaged or of a newer version.
    """
    with foreign_errors(path, RunError, "the checkpoint is damaged"):
        whole: Any = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    whole = _fields(whole, f"{path}: checkpoint")
    check_version(whole.get("version"), VERSION, str(path), RunError)
    return _parse_state(path, whole.get("state"))


def _parse_state(path: Path, plain: Any) -> State:
    where = f"{path}: state"
    if missing := State.hints().keys() - _fields(plain, where).keys():
        raise RunError(f"{where}: {listed(sorted(missing))} is missing")
    return State.from_plain(plain, where=where)


def _check_seal(path: Path) -> None:
    """Raise RunError unless the file ends with the sha256 of what is before it."""
    seal_length = len(SEAL) + 2 * hashlib.sha256().digest_size
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = max(0, path.stat().st_size - seal_length)
            while left and (chunk := file.read(min(left, CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
            seal = file.read()
    except OSError as error:
        raise RunError(f"{path}: the checkpoint is unreadable: {error.strerror or error}") from error
    if seal != SEAL + digest.hexdigest().encode():
        raise RunError(
            f"{path}: the checkpoint is damaged (its sha256 does not match); restore it, or delete it to start again"
        )


def _fields(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise RunError(f"{where} must be a table of fields, got {_describe(value)}")
    return value


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    return type(value).__name__


def _check_tensors(path: Path, field: str, found: Any, expected: Mapping[str, Tensor]) -> None:
    """Raise RunError unless the names, shapes and types of tensors are as expected."""
    found = _fields(found, f"{path}: {field}")
    if wrong := found.keys() ^ expected.keys():
        names = listed(sorted(map(str, wrong)))
        raise RunError(f"{path}: {field}: the checkpoint is of another network; missing or unknown: {names}")
    for name, tensor in expected.items():
        _check_tensor(f"{path}: {field}.{name}", found[name], tuple(tensor.shape), tensor.dtype)


def _check_tensor(where: str, found: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(found, Tensor) or tuple(found.shape) != shape or found.dtype != dtype:
        raise RunError(f"{where} must be a tensor {shape} of {dtype}, got {_describe(found)}")


def _check_optimizer(path: Path, found: Any, optimizer: optim.Optimizer) -> None:
    """Raise RunError unless each entry is the state that the optimizer keeps for one of its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = state_names(optimizer)
    for index, entry in _fields(found, f"{path}: optimizer").items():
        where = f"{path}: optimizer[{index}]"
        if type(index) is not int or not 0 <= index < len(parameters):
            raise RunError(f"{where}: there are {len(parameters)} parameters")
        if _fields(entry, where).keys() != names:
            raise RunError(f"{where} must contain {', '.join(sorted(names)) or 'nothing'}, got {listed(entry)}")
        parameter = parameters[index]
        for name, value in entry.items():
            shape = () if name == "step" else tuple(parameter.shape)
            dtype = torch.float32 if name == "step" else parameter.dtype
            _check_tensor(f"{where}.{name}", value, shape, dtype)
