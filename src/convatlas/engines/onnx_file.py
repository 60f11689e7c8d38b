"""ONNX files that convatlas exported: the checksum, and the checks before such a file is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from convatlas.engines.signature import Value, check_signature, check_size
from convatlas.errors import ModelFileError, foreign_errors, listed
from convatlas.system.extras import import_optional
from convatlas.weights.modelfile import Header, parse_header

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto, ValueInfoProto

MAX_GRAPH_BYTES = 2**31 - 1
"""Maximum size of a graph in one file, a limit of protobuf."""

MAX_AXES = 16
"""Maximum number of axes of a value whose shape the graph computes, and of steps of such computations."""

_SMALL_TENSOR = 1024
"""Number of bytes up to which the numbers of a tensor may be the shape of another one."""


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

DETECTOR_OPERATORS = OPERATORS | {
    "Abs", "And", "ArgMax", "Ceil", "ConvTranspose", "Floor", "GatherElements", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Log", "Mod", "NonMaxSuppression", "NonZero", "Not", "Or", "ReduceMin", "RoiAlign", "Round",
    "ScatterND", "Sign", "Tile", "TopK",
}  # fmt: skip
"""The operators of exported detectors."""


def read_graph(path: Path) -> tuple[Header, ModelProto]:
    """Read a graph that convatlas exported, without running it.

    Raises ModelFileError for a file that is missing, damaged, not exported by convatlas, has other operators, does not
    fit its header, or, of a classifier, needs too much memory.
    """
    onnx = import_optional("onnx", "convatlas[onnx]", where=path)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    if path.stat().st_size > MAX_GRAPH_BYTES:
        raise ModelFileError(f"{path}: must have at most 2 GiB, got {path.stat().st_size / 2**30:.1f} GiB")
    model = onnx.ModelProto()
    with foreign_errors(path, ModelFileError, "damaged, truncated or not an ONNX file"):
        model.ParseFromString(path.read_bytes())
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if not all(isinstance(text, str) for entry in metadata.items() for text in entry):
        raise ModelFileError(f"{path}: the file is damaged (its metadata are not UTF-8); export it again")
    if "convatlas" not in metadata:
        raise ModelFileError(f"{path}: an ONNX file, but not written by `convatlas export` (no header)")
    if metadata.get("sha256") != _checksum(model):
        raise ModelFileError(f"{path}: the file is damaged (its sha256 does not match); export it again")
    header = parse_header(path, metadata["convatlas"])
    _check_operators(path, model, DETECTOR_OPERATORS if header.preprocessing.is_whole else OPERATORS)
    _check_signature(path, model, header)
    if not header.preprocessing.is_whole:  # the sizes inside of a detector depend on the image
        _check_sizes(path, model)
    return header, model


def _check_operators(path: Path, model: ModelProto, known: frozenset[str]) -> None:
    """Raise ModelFileError unless a graph has only known operators, and all weights are in the file."""
    foreign = {str(node.op_type) for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    foreign |= {str(node.op_type) for node in model.graph.node} - known
    graphs = any(attribute.HasField("g") or attribute.graphs for attribute in _attributes(model))
    if foreign or graphs or model.functions or model.training_info:
        raise ModelFileError(
            f"{path}: contains operators that convatlas does not export: {listed(sorted(foreign)) or 'functions'}"
        )
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location:
            raise ModelFileError(f"{path}: the weights must be in this file, not in another file; export it again")
        if not 0 <= prod(tensor.dims) <= 2 * tensor.ByteSize():  # 4-bit numbers are the smallest ones
            raise ModelFileError(
                f"{path}: the weight {tensor.name!r} has fewer numbers than its shape {list(tensor.dims)}"
            )


def _attributes(model: ModelProto) -> Iterator[Any]:
    return (attribute for node in model.graph.node for attribute in node.attribute)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield all constant tensors of a graph: the weights, and those in attributes of nodes."""
    yield from model.graph.initializer
    sparse = list(model.graph.sparse_initializer)
    for attribute in _attributes(model):
        yield from [attribute.t] * attribute.HasField("t")
        yield from attribute.tensors
        sparse += [attribute.sparse_tensor] * attribute.HasField("sparse_tensor") + [*attribute.sparse_tensors]
    for each in sparse:
        yield from (each.values, each.indices)


def _check_signature(path: Path, model: ModelProto, header: Header) -> None:
    """Raise ModelFileError unless the input and the outputs of a graph are those that its header describes."""
    onnx = import_optional("onnx", "convatlas[onnx]", where=path)
    types = {
        onnx.TensorProto.UINT8: torch.uint8, onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.INT64: torch.int64,
    }  # fmt: skip

    def describe(value: Any) -> Value:
        tensor = value.type.tensor_type
        sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
        return Value(str(value.name), types.get(tensor.elem_type), tuple(sizes))

    check_signature(path, header, [*map(describe, model.graph.input)], [*map(describe, model.graph.output)])


def _check_sizes(path: Path, model: ModelProto) -> None:
    """Raise ModelFileError if a graph computes a value of too many elements for one image."""
    onnx = import_optional("onnx", "convatlas[onnx]", where=path)
    bare = _without_weights(model)
    unknown: list[str] = []
    for _ in range(MAX_AXES):
        # onnx could compute shapes that are values by itself, but it computes values of any size
        with foreign_errors(path, ModelFileError, "is damaged: the sizes of its values are not consistent"):
            inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph
        sizes = {value.name: _sizes(value) for value in (*inferred.input, *inferred.value_info, *inferred.output)}
        for name, known in sizes.items():
            if known is not None:
                check_size(path, name, known)
        unknown = [out for node in bare.graph.node for out in node.output if out and sizes.get(out) is None]
        if not unknown:
            return
        if not _replace_shapes(path, bare, sizes):
            break
    raise ModelFileError(f"{path}: the size of {unknown[0]!r} cannot be computed; export it again")


def _sizes(value: ValueInfoProto) -> tuple[int, ...] | None:
    """Return the shape of a value, or None if it is not known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(size.HasField("dim_value") for size in tensor.shape.dim):
        return None
    return tuple(size.dim_value for size in tensor.shape.dim)


def _replace_shapes(path: Path, bare: ModelProto, sizes: Mapping[str, tuple[int, ...] | None]) -> bool:
    """Replace nodes that compute known shapes by constants; return whether there were any."""
    onnx = import_optional("onnx", "convatlas[onnx]", where=path)
    constants: dict[str, list[int]] = {}
    for tensor in bare.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and prod(tensor.dims) <= MAX_AXES:
            with foreign_errors(path, ModelFileError, "is damaged: a weight cannot be read"):
                constants[tensor.name] = onnx.numpy_helper.to_array(tensor).flatten().tolist()
    left = []
    for node in bare.graph.node:
        numbers: list[int] | None = None
        known = sizes.get(node.input[0]) if node.input else None
        if node.op_type == "Shape" and known is not None:
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            numbers = list(known)[ends.get("start", 0) : ends.get("end", len(known))]
        elif node.op_type == "Concat" and all(name in constants for name in node.input):
            numbers = [number for name in node.input for number in constants[name]]
        if numbers is None or len(numbers) > MAX_AXES or len(node.output) != 1:
            left.append(node)
            continue
        constants[node.output[0]] = numbers
        bare.graph.initializer.append(
            onnx.helper.make_tensor(node.output[0], onnx.TensorProto.INT64, [len(numbers)], numbers)
        )
    found = len(left) < len(bare.graph.node)
    del bare.graph.node[:]
    bare.graph.node.extend(left)
    return found


def _without_weights(model: ModelProto) -> ModelProto:
    """Return a graph for one image without the values of large weights."""
    bare = type(model)(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = "sizes"
    bare.graph.node.extend(model.graph.node)
    for values, copies in ((model.graph.input, bare.graph.input), (model.graph.output, bare.graph.output)):
        copies.extend(values)
        for value in copies:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL_TENSOR:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return bare
