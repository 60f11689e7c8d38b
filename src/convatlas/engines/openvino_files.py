"""OpenVINO's pair of files, the graph (.xml) and the weights (.bin), with one checksum over both."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

import torch

from convatlas.engines.deploy import OUTPUTS, PIXELS, PROBABILITIES
from convatlas.engines.engine import runtime_errors
from convatlas.engines.signature import Value, check_signature, check_size
from convatlas.errors import ModelFileError, RunError, foreign_errors, listed
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

MAX_XML_DEPTH = 32
"""Maximum depth of elements; exported graphs have 6."""

CONTROL_FLOW = frozenset(("If", "Loop", "TensorIterator", "ReadValue", "Assign"))
"""Layers that loop, branch or keep a state. Exported graphs have none, so that running a graph ends."""


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
    """Read files that `write_model` wrote, without running them; returns the header and OpenVINO's model.

    Raises ModelFileError for files that are missing, damaged, not exported by convatlas, have layers that loop, need
    too much memory, or do not fit their header.
    """
    openvino = import_optional("openvino", "convatlas[openvino]", where=path)
    weights = path.with_suffix(".bin")
    for file in (path, weights):
        if not file.is_file():
            raise ModelFileError(f"{file}: no such file; an OpenVINO model is a pair of .xml and .bin")
    if path.stat().st_size > MAX_XML_BYTES:
        raise ModelFileError(f"{path}: must have at most {MAX_XML_BYTES:,} bytes, got {path.stat().st_size:,}")
    with foreign_errors(path, ModelFileError, "damaged or not an OpenVINO model"):
        text = path.read_bytes().decode()
    checksums = _CHECKSUM.findall(text)
    if len(checksums) != 1 or f"<{_SECTION}>" not in text:
        raise ModelFileError(f"{path}: an .xml file, but not written by `convatlas export` (no header)")
    if checksums[0][1] != _checksum(_with_checksum(text, _NO_CHECKSUM), weights):
        raise ModelFileError(f"{path}: the files are damaged (their sha256 does not match); export them again")
    _check_xml(path, text)
    with runtime_errors(path, "OpenVINO cannot read this model", ModelFileError):
        model = openvino.Core().read_model(path)
        header_text = str(model.get_rt_info([_SECTION, "convatlas"]).value)
    header = parse_header(path, header_text)
    with runtime_errors(path, "OpenVINO cannot use this model", ModelFileError):
        inputs = [_describe(value, (PIXELS,)) for value in model.inputs]
        outputs = [_describe(value, (PROBABILITIES, OUTPUTS)) for value in model.outputs]
    check_signature(path, header, inputs, outputs)
    _check_sizes(path, model, inputs[0])
    return header, model


def _check_xml(path: Path, text: str) -> None:
    """Raise ModelFileError for XML that is not well-formed, has entities or is nested too deeply; or `CONTROL_FLOW`."""
    foreign: set[str] = set()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_XML_DEPTH:
            raise ModelFileError(f"{path}: elements must be nested at most {MAX_XML_DEPTH} deep; export it again")
        if tag == "layer" and attributes.get("type") in CONTROL_FLOW:
            foreign.add(attributes["type"])

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: object) -> None:
        raise ModelFileError(f"{path}: must have no document type; export it again")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = start, end, refuse
    with foreign_errors(path, ModelFileError, "damaged or not an OpenVINO model"):
        parser.Parse(text.encode(), True)
    if foreign:
        raise ModelFileError(f"{path}: contains layers that convatlas does not export: {listed(sorted(foreign))}")


def _describe(value: Any, known: tuple[str, ...]) -> Value:
    """Return an input or output of an OpenVINO model."""
    names = value.get_names()
    name = next((name for name in known if name in names), str(next(iter(sorted(names)), "")))
    types = {"u8": torch.uint8, "f32": torch.float32}
    sizes = value.get_partial_shape()
    shape = tuple(size.get_length() if size.is_static else None for size in sizes) if sizes.rank.is_static else ()
    return Value(name, types.get(value.get_element_type().get_type_name()), shape)


def _check_sizes(path: Path, model: Any, pixels: Value) -> None:
    """Raise ModelFileError if a model computes a value of too many elements for one image."""
    with runtime_errors(path, "OpenVINO cannot use this model", ModelFileError):
        single = model.clone()
        single.reshape([1, *pixels.shape[1:]])
        layers = single.get_ops()
        shapes = [(layer, output.get_partial_shape()) for layer in layers for output in layer.outputs()]
        sizes = {str(layer.get_friendly_name()): tuple(shape.get_max_shape()) for layer, shape in shapes}
    for name, shape in sizes.items():
        check_size(path, name, shape)


def _with_checksum(text: str, checksum: str) -> str:
    return _CHECKSUM.sub(rf"\g<1>{checksum}\g<3>", text)


def _checksum(text: str, weights: Path) -> str:
    with weights.open("rb") as file:
        weights_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps([text, weights_sha256]).encode()).hexdigest()
