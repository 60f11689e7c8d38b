"""The engines: each turns pixels into a network's outputs, in its own way."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.engines.folding import folded
from convatlas.errors import ConvatlasError, EngineError, ModelFileError, brief
from convatlas.system.cache import cache_folder
from convatlas.system.extras import needed
from convatlas.system.files import atomic
from convatlas.tasks.classification.losses import CRITERIA
from convatlas.weights.modelfile import Header, digest, header_from, written

if TYPE_CHECKING:
    from onnx import ModelProto


def _told(error: Exception) -> str:
    """Return a library's error on one line, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from" not in line]
    return " ".join(lines)[:300] or type(error).__name__


OPSET = 20
"""The version of ONNX's operators that graphs are written in."""

PIXELS, PROBABILITIES, OUTPUTS = "pixels", "probabilities", "outputs"
"""What goes into a graph and what comes out of it."""

MOST_BYTES = 2**31 - 1
"""Of a graph in one file: protobuf's limit."""


class DeployModule(nn.Module):
    """Images as `Preprocessing.geometry` leaves them in, (n, channels, size, size), and their answers out.

    That are the probabilities, calibrated, and the network's outputs, both (n, classes).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: Network, header: Header) -> None:
        super().__init__()
        self.network, self.temperature = network, header.temperature
        self.probabilities = CRITERIA[header.criterion].probabilities
        steps = header.preprocessing
        self.register_buffer("mean", torch.tensor(steps.mean).mul_(255).view(-1, 1, 1))
        self.register_buffer("scale", torch.tensor(steps.std).mul_(255).reciprocal_().view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.network((pixels.float() - self.mean) * self.scale)
        return self.probabilities(outputs / self.temperature), outputs


def example(header: Header, count: int = 2) -> Tensor:
    """Return pixels of the shape and type that a network reads."""
    steps = header.preprocessing
    values = torch.arange(count * steps.channels * steps.size**2) % 251
    return values.view(count, steps.channels, steps.size, steps.size).to(steps.dtype)


def onnx_of(network: Network, header: Header) -> ModelProto:
    """Return the graph for any number of images; raises EngineError for a network that has none.

    Its metadata hold the header, and in words of their own the classes, the size of the images, license and origin.
    """
    onnx = needed("onnx", "onnx")
    needed("onnxscript", "onnx")
    device = next((parameter.device.type for parameter in network.parameters()), "cpu")
    if device != "cpu":
        raise EngineError(f"{header.name}: is on {device}, graphs are made on the CPU; load it with device='cpu'")
    module = DeployModule(folded(network), header).eval()
    try:
        with torch.no_grad(), _quietly():
            program: Any = torch.onnx.export(
                module, (example(header),), dynamo=True, dynamic_shapes=({0: "batch"},), opset_version=OPSET,
                input_names=[PIXELS], output_names=[PROBABILITIES, OUTPUTS], verbose=False,
            )  # fmt: skip
            model: ModelProto = program.model_proto
    except Exception as error:  # the exporter has dozens of errors of its own
        raise EngineError(f"{header.name}: this network has no ONNX graph: {brief(error)}") from error
    named = {node.name for node in model.graph.node}
    assert len(named) == len(model.graph.node)
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]  # where each line of Python was
    if model.ByteSize() > MOST_BYTES:
        raise EngineError(f"{header.name}: its graph has more than 2 GiB, which is more than a file can hold")
    onnx.helper.set_model_props(model, told(header))
    seal(model)
    return model


def told(header: Header) -> dict[str, str]:
    """Return what a graph says of itself: the header, and what other programs want to know, one by one."""
    steps = header.preprocessing
    return {
        "convatlas": written(header),
        "classes": json.dumps(header.classes, ensure_ascii=False),
        "preprocessing": json.dumps(steps.to_plain()),
        "input": f"{PIXELS}: {str(steps.dtype).removeprefix('torch.')} (batch, {steps.channels}, {steps.size}, "
        f"{steps.size}), values 0 to 255, RGB or gray; the short side was resized to {steps.resize} px "
        f"({steps.interpolation}, antialias {steps.antialias}) and the center of {steps.crop} px cut out",
        "temperature": repr(header.temperature),
        "license": header.license,
        "origin": str(header.training.get("source", "")) or header.name,
    }


def seal(model: ModelProto) -> None:
    """Write the sha256 of a graph into its metadata."""
    value = _digest_of(model)
    for entry in model.metadata_props:
        if entry.key == "sha256":
            entry.value = value
            return
    entry = model.metadata_props.add()
    entry.key, entry.value = "sha256", value


def _digest_of(model: ModelProto) -> str:
    bare = type(model)()
    bare.CopyFrom(model)
    kept = sorted((entry.key, entry.value) for entry in model.metadata_props if entry.key != "sha256")
    del bare.metadata_props[:]
    summed = hashlib.sha256(bare.SerializeToString(deterministic=True))
    summed.update(json.dumps(kept).encode())
    return summed.hexdigest()


OPERATORS = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
    "DequantizeLinear", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten", "Gather", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "LRN", "LayerNormalization", "LeakyRelu",
    "LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Pad", "Pow", "QuantizeLinear", "Range",
    "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize",
    "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    "Where",
))  # fmt: skip
"""What graphs are made of: no loops, no conditions, nothing that could run on for ever or read another file."""


def opened(path: Path) -> tuple[Header, ModelProto]:
    """Read a graph that was exported here; runs nothing.

    Raises ModelFileError for a file that is missing, damaged, of other origin, or holds other operators than ours.
    """
    onnx = needed("onnx", "onnx")
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: damaged, truncated or no ONNX file ({brief(error)})") from error
    said = {entry.key: entry.value for entry in model.metadata_props}
    if "convatlas" not in said:
        raise ModelFileError(f"{path}: an ONNX file, but not one that `convatlas export` wrote (no header)")
    if said.get("sha256") != _digest_of(model):
        raise ModelFileError(f"{path}: the file is damaged (its sha256 does not match); export it again")
    check_operators(path, model)
    return header_from(path, said["convatlas"]), model


def check_operators(path: Path, model: ModelProto) -> None:
    """Raise ModelFileError for a graph that is made of anything else than plain operators and its own numbers."""
    foreign = {node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    foreign |= {node.op_type for node in model.graph.node} - OPERATORS
    if foreign or model.functions:
        raise ModelFileError(f"{path}: holds operators that no network of convatlas has: {', '.join(sorted(foreign))}")
    if any(tensor.external_data or tensor.data_location for tensor in model.graph.initializer):
        raise ModelFileError(f"{path}: keeps its numbers in another file; export it again")
    inputs = [each.name for each in model.graph.input]
    outputs = [each.name for each in model.graph.output]
    if (inputs, outputs) != ([PIXELS], [PROBABILITIES, OUTPUTS]):
        raise ModelFileError(f"{path}: the graph reads {inputs} and gives {outputs}; export it again")


def cached(network: Network, header: Header) -> bytes:
    """Return the graph as bytes, from the cache folder if it was made before; it is made in seconds."""
    folder = cache_folder() / "graphs"
    name = digest(written(header) + f"{OPSET} {torch.__version__}", network.state_dict())[:32]
    path = folder / f"{name}.onnx"
    if path.is_file():
        with suppress(ModelFileError):
            path.touch()
            return bytes(opened(path)[1].SerializeToString())
    made = bytes(onnx_of(network, header).SerializeToString())
    with suppress(ConvatlasError, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, len(made))
        with atomic(path) as file:
            file.write(made)
    return made


CACHED_BYTES = 4 * 2**30
"""What the cached graphs may take; the ones that were not used for the longest time are deleted."""


def _make_room(folder: Path, size: int) -> None:
    held = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in held)
    while held and (total + size > CACHED_BYTES or shutil.disk_usage(folder).free < 2 * size):
        oldest = held.pop(0)
        total -= oldest.stat().st_size
        oldest.unlink(missing_ok=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's remarks about itself to itself."""
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
