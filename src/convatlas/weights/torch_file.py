"""Read checkpoints in torch's format without running code: a few harmless classes are allowed, all others refused."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import threading
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from convatlas.errors import WeightsError, brief

_POSIX, _WINDOWS = ("PosixPath", "PurePosixPath"), ("WindowsPath", "PureWindowsPath")

_LOCK = threading.Lock()
"""What torch allows is a property of the process, and one thread must not forbid it while another one reads."""

_CODE = re.compile(r"[biufcSUO]\d+")
"""Types of NumPy that are read: booleans, numbers, texts, and objects, which are lists here."""


class NumpyDtype:
    """Stands for numpy.dtype while a checkpoint is read: a plain type, whatever state the file gives it."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not (isinstance(code, str) and _CODE.fullmatch(code)):
            raise UnpicklingError(f"a NumPy type {code!r} that is not read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if self.dtype.kind != "O":
            self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray:
    """Stands for numpy.ndarray while a checkpoint is read; `array` is the array, or a list of objects."""

    def __init__(self, *_: Any) -> None:
        self.array: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, list):
            self.array = data
        else:
            array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")
            self.array = array.astype(dtype.dtype.newbyteorder("="))  # a copy: torch reads neither other byte orders,
            # nor memory that must not be written


def numpy_scalar(dtype: NumpyDtype, data: bytes) -> Any:
    """Stands for the function that rebuilds a NumPy scalar; returns a number or a text of Python."""
    return np.frombuffer(data, dtype.dtype, 1)[0].item()


def plain_dict(*_: Any) -> dict[Any, Any]:
    """Stands for collections.defaultdict."""
    return {}


def plain_list(*_: Any) -> list[Any]:
    """Stands for collections.deque."""
    return []


def _named(stand_in: Callable[..., Any], full_name: str) -> Callable[..., Any]:
    """Return a class or function like `stand_in` with the name that files have: torch finds what it allows by name."""
    module, _, name = full_name.rpartition(".")
    if isinstance(stand_in, type):
        return type(name, (stand_in,), {"__module__": module})

    def call(*arguments: Any) -> Any:
        return stand_in(*arguments)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call


_STAND_INS: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": plain_dict,
    "collections.deque": plain_list,
    "numpy.dtype": NumpyDtype,
    "numpy.ndarray": NumpyArray,
    **{f"numpy.{core}.multiarray.scalar": numpy_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": NumpyArray for core in ("core", "_core")},
    **{f"pathlib{sub}.{name}": pathlib.PurePosixPath for sub in ("", "._local") for name in _POSIX},
    **{f"pathlib{sub}.{name}": pathlib.PureWindowsPath for sub in ("", "._local") for name in _WINDOWS},
}

_ALLOWED: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    **{f"datetime.{kind.__name__}": kind for kind in (datetime.datetime, datetime.date, datetime.timedelta)},
    **{f"builtins.{kind.__name__}": kind for kind in (dict, list, tuple, set, int, float, str, bool)},
    **{name: _named(stand_in, name) for name, stand_in in _STAND_INS.items()},
}
"""Classes beside tensors that checkpoints of training scripts hold, by the names in the file.

All of them only hold values. NumPy's own functions are replaced, because they accept states that are not safe.
"""

_ZIP = b"PK\x03\x04"


def read_torch_file(path: Path) -> Any:
    """Return the content of a file of torch.save: tensors on the CPU, and plain Python data beside them.

    The CRC-32 of each record is checked, which torch.load does not do; files in the format before torch 1.6 have none.
    Raises WeightsError for files that are damaged, TorchScript archives, pickled modules, and other classes.
    """
    with path.open("rb") as file:
        start = file.read(60)
    is_zip = start.startswith(_ZIP)
    if is_zip:
        _check_archive(path)
    elif start and not is_torch_file(path):
        raise WeightsError(f"{path}: neither a checkpoint of torch nor safetensors; it begins with {start[:40]!r}")
    try:
        return _load(path)
    except Exception as error:  # damaged bytes make torch raise almost anything
        raise WeightsError(f"{path}: {_problem(path, error, is_zip=is_zip)}") from error


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sparse and quantized tensors, which are refused by name later
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            if _refused(error) not in _ALLOWED:
                raise
        with _LOCK, torch.serialization.safe_globals(list(_ALLOWED.values())):
            return torch.load(path, map_location="cpu", weights_only=True)


def _refused(error: Exception) -> str:
    """Return the name of the class or function that torch refuses, as in the file; empty if it refuses none."""
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    name = match[1] if match else ""
    return f"builtins.{name}" if name and "." not in name else name  # torch leaves out the module of these


def is_torch_file(path: Path) -> bool:
    """Return whether a file begins as torch.save writes it: a zip archive, or a pickle."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == _ZIP or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            if "constants.pkl" in names:
                raise WeightsError(
                    f"{path}: a TorchScript archive, which contains code and is not loaded; save its state_dict() with "
                    "torch.save"
                )
            if "data.pkl" not in names:
                raise WeightsError(f"{path}: a zip archive, but not a checkpoint of torch (it has no data.pkl)")
            # torch.serialization.set_crc32_options(False) writes 0 for every record
            damaged = archive.testzip() if any(each.CRC for each in archive.infolist()) else None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(f"{path}: damaged or truncated ({brief(error)}); copy it again") from error
    if damaged is not None:
        raise WeightsError(f"{path}: damaged, the CRC-32 of {damaged} is wrong; copy it again")


def _problem(path: Path, error: Exception, *, is_zip: bool) -> str:
    """Return what is wrong with a file, in words of ours: torch's message is long and suggests running its code."""
    text = str(error)
    if refused := _refused(error):
        if is_zip:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if modules := [name for name in names if ".nn.modules." in name]:
                named = next((name for name in names if ".nn.modules." not in name and "." in name), modules[0])
                return (
                    f"a whole pickled module ({named}), which is not loaded because it could run code; save its "
                    "state_dict() with torch.save"
                )
        return (
            f"contains {refused}, which is not loaded because it could run code; save only the state_dict() of the "
            "network"
        )
    if "Unsupported operand" in text or "Invalid magic number" in text:
        return "a pickle that cannot be read without running code; save the state_dict() of the network with torch.save"
    reason = text.rpartition("WeightsUnpickler error:")[2].strip()
    short = brief(type(error)(reason)) if reason and reason != text else brief(error)
    if "Weights only load failed" in short:
        short = type(error).__name__
    return f"damaged, or not a checkpoint of tensors ({short})"
