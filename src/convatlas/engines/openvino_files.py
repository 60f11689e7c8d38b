"""OpenVINO's files: a graph (.xml) and its numbers (.bin), sealed together."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.errors import ModelFileError, RunError
from convatlas.system.extras import needed
from convatlas.weights.modelfile import Header, header_from

if TYPE_CHECKING:
    from onnx import ModelProto


_BLANK = "0" * 64
_SEAL = re.compile(r'(<sha256 value=")([0-9a-f]{64})(")')
_PLACE = "convatlas"

MOST_TEXT = 2**28
"""Bytes of the largest graph that is read; that of a large network has 3 million."""


def write(graph: ModelProto, path: Path) -> None:
    """Write a graph as OpenVINO's two files, the numbers first; both are whole, or nothing is there."""
    openvino = needed("openvino", "openvino")
    said = {entry.key: entry.value for entry in graph.metadata_props}
    bare = type(graph)()
    bare.CopyFrom(graph)
    del bare.metadata_props[:]  # OpenVINO would write them a second time
    model = openvino.Core().read_model(model=bare.SerializeToString())
    for key, value in {**said, "sha256": _BLANK}.items():
        model.set_rt_info(value, [_PLACE, key])
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
            made = Path(folder) / path.name
            try:
                openvino.save_model(model, made, compress_to_fp16=False)
            except RuntimeError as error:  # it says no more than that writing failed
                raise RunError(f"{path}: cannot be written; is the disk full?") from error
            numbers = made.with_suffix(".bin")
            text = made.read_text(encoding="utf-8")
            made.write_text(_SEAL.sub(rf"\g<1>{_digest(text, numbers)}\g<3>", text), encoding="utf-8")
            for file in (numbers, made):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            numbers.replace(path.with_suffix(".bin"))
            made.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error


def opened(path: Path) -> tuple[Header, Any]:
    """Read the files that `write` wrote: the header and OpenVINO's model.

    Raises ModelFileError for files that are missing, damaged or of other origin.
    """
    openvino = needed("openvino", "openvino")
    numbers = path.with_suffix(".bin")
    for file in (path, numbers):
        if not file.is_file():
            raise ModelFileError(f"{file}: no such file; an OpenVINO model is a pair of .xml and .bin")
    if path.stat().st_size > MOST_TEXT:
        raise ModelFileError(f"{path}: is larger than any graph of a network")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: damaged or no OpenVINO model ({error})") from error
    seals = _SEAL.findall(text)
    if len(seals) != 1 or f"<{_PLACE}>" not in text:
        raise ModelFileError(f"{path}: not an OpenVINO model that `convatlas export` wrote (no header)")
    if seals[0][1] != _digest(_SEAL.sub(rf"\g<1>{_BLANK}\g<3>", text), numbers):
        raise ModelFileError(f"{path}: the files are damaged (their sha256 does not match); export them again")
    model = openvino.Core().read_model(path)
    return header_from(path, str(model.get_rt_info([_PLACE, "convatlas"]).value)), model


def _digest(text: str, numbers: Path) -> str:
    with numbers.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps([text, weights]).encode()).hexdigest()
