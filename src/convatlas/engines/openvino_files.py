"""OpenVINO's pair of files, the graph (.xml) and the weights (.bin), with one checksum over both."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.errors import ModelFileError, RunError
from convatlas.system.extras import import_optional
from convatlas.weights.modelfile import Header, parse_header

if TYPE_CHECKING:
    from onnx import ModelProto

_NO_CHECKSUM = "0" * 64
_CHECKSUM = re.compile(r'(<sha256 value=")([0-9a-f]{64})(")')
_SECTION = "convatlas"
"""Section of the model's runtime information that holds our metadata."""

MAX_XML_BYTES = 2**28
"""Maximum size of a graph that is read; the graph of a large network has 3 MB."""


def write_model(graph: ModelProto, path: Path) -> None:
    """Write an ONNX graph as OpenVINO's two files. If that fails, neither is written."""
    openvino = import_optional("openvino", "convatlas[openvino]")
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    bare = type(graph)()
    bare.CopyFrom(graph)
    del bare.metadata_props[:]  # OpenVINO would write them a second time
    model = openvino.Core().read_model(model=bare.SerializeToString())
    for key, value in {**metadata, "sha256": _NO_CHECKSUM}.items():
        model.set_rt_info(value, [_SECTION, key])
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
            xml = Path(folder) / path.name
            try:
                openvino.save_model(model, xml, compress_to_fp16=False)
            except RuntimeError as error:  # its message does not give the reason
                raise RunError(f"{path}: cannot be written; is the disk full?") from error
            weights = xml.with_suffix(".bin")
            text = xml.read_text(encoding="utf-8")
            xml.write_text(_with_checksum(text, _checksum(text, weights)), encoding="utf-8")
            for file in (weights, xml):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            weights.replace(path.with_suffix(".bin"))  # first, because the .xml makes the pair complete
            xml.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_model(path: Path) -> tuple[Header, Any]:
    """Read files that `write_model` wrote; returns the header and OpenVINO's model.

    Raises ModelFileError for files that are missing, damaged or not exported by convatlas.
    """
    openvino = import_optional("openvino", "convatlas[openvino]", where=path)
    weights = path.with_suffix(".bin")
    for file in (path, weights):
        if not file.is_file():
            raise ModelFileError(f"{file}: no such file; an OpenVINO model is a pair of .xml and .bin")
    if path.stat().st_size > MAX_XML_BYTES:
        raise ModelFileError(f"{path}: must have at most {MAX_XML_BYTES:,} bytes, got {path.stat().st_size:,}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: damaged or not an OpenVINO model ({error})") from error
    checksums = _CHECKSUM.findall(text)
    if len(checksums) != 1 or f"<{_SECTION}>" not in text:
        raise ModelFileError(f"{path}: an .xml file, but not written by `convatlas export` (no header)")
    if checksums[0][1] != _checksum(_with_checksum(text, _NO_CHECKSUM), weights):
        raise ModelFileError(f"{path}: the files are damaged (their sha256 does not match); export them again")
    model = openvino.Core().read_model(path)
    return parse_header(path, str(model.get_rt_info([_SECTION, "convatlas"]).value)), model


def _with_checksum(text: str, checksum: str) -> str:
    return _CHECKSUM.sub(rf"\g<1>{checksum}\g<3>", text)


def _checksum(text: str, weights: Path) -> str:
    with weights.open("rb") as file:
        weights_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps([text, weights_sha256]).encode()).hexdigest()
