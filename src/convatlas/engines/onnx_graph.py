"""ONNX graphs of networks: export, cache, read and check."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from convatlas.core.network import Network
from convatlas.engines.deploy import OUTPUTS, PIXELS, PROBABILITIES, DeployModule, describe_header, example_pixels
from convatlas.engines.folding import fold_norms
from convatlas.errors import ConvatlasError, EngineError, ModelFileError, brief
from convatlas.system.cache import LruFolder, cache_folder
from convatlas.system.extras import import_optional
from convatlas.system.files import atomic
from convatlas.weights.modelfile import Header, digest, header_text, parse_header

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
"""Version of the ONNX operator set that graphs are written in."""

MAX_GRAPH_BYTES = 2**31 - 1
"""Maximum size of a graph in one file, a limit of protobuf."""

MAX_CACHE_BYTES = 4 * 2**30
"""Maximum size of the cached graphs; the least recently used ones are deleted."""


def export_graph(network: Network, header: Header) -> ModelProto:
    """Return the ONNX graph of a network for any batch size, with `describe_header` and a checksum as metadata.

    Raises EngineError for a network that cannot be exported.
    """
    onnx = import_optional("onnx", "convatlas[onnx]")
    import_optional("onnxscript", "convatlas[onnx]")
    device = next((parameter.device.type for parameter in network.parameters()), "cpu")
    if device != "cpu":
        raise EngineError(
            f"{header.name}: device must be cpu for an ONNX export, got {device}; load it with device='cpu'"
        )
    module = DeployModule(fold_norms(network), header).eval()
    try:
        with torch.no_grad(), _quiet_exporter():
            program: Any = torch.onnx.export(
                module, (example_pixels(header),), dynamo=True, dynamic_shapes=({0: "batch"},), opset_version=OPSET,
                input_names=[PIXELS], output_names=[PROBABILITIES, OUTPUTS], verbose=False,
            )  # fmt: skip
            model: ModelProto = program.model_proto
    except Exception as error:  # the exporter has dozens of error types
        raise EngineError(f"{header.name}: cannot be exported to ONNX ({brief(error)})") from error
    names = {node.name for node in model.graph.node}
    assert len(names) == len(model.graph.node)
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]  # file names and lines of Python
    if model.ByteSize() > MAX_GRAPH_BYTES:
        raise EngineError(
            f"{header.name}: the ONNX graph must be at most 2 GiB, got {model.ByteSize() / 2**30:.1f} GiB"
        )
    onnx.helper.set_model_props(model, describe_header(header))
    add_checksum(model)
    return model


def add_checksum(model: ModelProto) -> None:
    """Write the SHA-256 of a graph and its metadata into its metadata, replacing an older one."""
    checksum = _checksum(model)
    for entry in model.metadata_props:
        if entry.key == "sha256":
            entry.value = checksum
            return
    entry = model.metadata_props.add()
    entry.key, entry.value = "sha256", checksum


def _checksum(model: ModelProto) -> str:
    bare = type(model)()
    bare.CopyFrom(model)
    metadata = sorted((entry.key, entry.value) for entry in model.metadata_props if entry.key != "sha256")
    del bare.metadata_props[:]
    result = hashlib.sha256(bare.SerializeToString(deterministic=True))
    result.update(json.dumps(metadata).encode())
    return result.hexdigest()


OPERATORS = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
    "DequantizeLinear", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten", "Gather", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "LRN", "LayerNormalization", "LeakyRelu",
    "LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Pad", "Pow", "QuantizeLinear", "Range",
    "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize",
    "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    "Where",
))  # fmt: skip
"""The operators of exported graphs. None of them loops, branches or reads files, so that running a graph is safe."""


def read_graph(path: Path) -> tuple[Header, ModelProto]:
    """Read a graph that convatlas exported, without running it.

    Raises ModelFileError for a file that is missing, damaged, not exported by convatlas, or has other operators.
    """
    onnx = import_optional("onnx", "convatlas[onnx]", where=path)
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: damaged, truncated or not an ONNX file ({brief(error)})") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if "convatlas" not in metadata:
        raise ModelFileError(f"{path}: an ONNX file, but not written by `convatlas export` (no header)")
    if metadata.get("sha256") != _checksum(model):
        raise ModelFileError(f"{path}: the file is damaged (its sha256 does not match); export it again")
    check_graph(path, model)
    return parse_header(path, metadata["convatlas"]), model


def check_graph(path: Path, model: ModelProto) -> None:
    """Raise ModelFileError unless a graph has the usual inputs and outputs, only `OPERATORS`, and all its weights."""
    foreign = {node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    foreign |= {node.op_type for node in model.graph.node} - OPERATORS
    if foreign or model.functions:
        raise ModelFileError(f"{path}: contains operators that convatlas does not export: {', '.join(sorted(foreign))}")
    if any(tensor.external_data or tensor.data_location for tensor in model.graph.initializer):
        raise ModelFileError(f"{path}: the weights must be in this file, not in another file; export it again")
    names = [each.name for each in model.graph.input], [each.name for each in model.graph.output]
    if names != ([PIXELS], [PROBABILITIES, OUTPUTS]):
        raise ModelFileError(
            f"{path}: must have the input {PIXELS} and the outputs {PROBABILITIES} and {OUTPUTS}, "
            f"got {', '.join(names[0])} and {', '.join(names[1])}; export it again"
        )


def load_or_export(network: Network, header: Header) -> bytes:
    """Return the serialized graph of a network from the cache, or export it (a few seconds) and cache it."""
    cache = LruFolder(cache_folder() / "graphs", ".onnx", MAX_CACHE_BYTES)
    name = digest(header_text(header) + f"{OPSET} {torch.__version__}", network.state_dict())[:32]
    path = cache.path / f"{name}.onnx"
    if path.is_file():
        with suppress(ModelFileError):  # a damaged entry is replaced
            cache.mark_used(path)
            return bytes(read_graph(path)[1].SerializeToString())
    graph = bytes(export_graph(network, header).SerializeToString())
    with suppress(ConvatlasError, OSError):  # without room or permission the graph is not cached
        cache.make_room(len(graph))
        with atomic(path) as file:
            file.write(graph)
    return graph


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the warnings of torch's ONNX exporter, and no others."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def one_line(error: Exception) -> str:
    """Return the error of a runtime library on one line, without the locations in its source code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from" not in line]
    return " ".join(lines)[:300] or type(error).__name__
