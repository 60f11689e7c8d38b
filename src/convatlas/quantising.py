"""8-bit networks: static quantisation by ONNX Runtime, the error of each layer, and as much float32 as they need."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from convatlas.data.stream import Pixels, gathered
from convatlas.download import Progress
from convatlas.engines.graphs import OUTPUTS, PIXELS, needed, seal
from convatlas.engines.running import OnnxRuntime, OpenVino
from convatlas.errors import EngineError, brief
from convatlas.tasks.evaluation import judged
from convatlas.tasks.losses import Criterion

if TYPE_CHECKING:
    from onnx import ModelProto

WEIGHED = ("Conv", "Gemm", "MatMul")
"""The operators with weights, whose errors are reported."""

_QUANTISED = (*WEIGHED, "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Relu")


@dataclass(frozen=True)
class LayerError:
    """How far the output of a layer of an 8-bit network is from the float32 one: noise in dB below the signal.

    kept: whether the layer was left in float32 for it.
    """

    name: str
    decibels: float
    kept: bool = False


@dataclass(frozen=True)
class Gate:
    """Labelled pictures on which an 8-bit network must be as good as the network that it came from."""

    pixels: Pixels
    labels: Tensor
    criterion: Criterion
    run: Callable[[Tensor], Tensor]

    def score(self, run: Callable[[Tensor], Tensor]) -> float:
        """Return the accuracy, or the mean average precision, of what runs pictures (n, channels, size, size)."""
        batches = torch.arange(len(self.labels)).split(16)
        outputs = torch.cat([run(pixels) for _, pixels in gathered(self.pixels, batches)])
        return judged(outputs, self.labels, self.criterion).score


def quantised(
    graph: ModelProto, pictures: Tensor, gate: Gate, *, engine: str, most_lost: float, progress: Progress | None = None
) -> tuple[ModelProto, tuple[LayerError, ...], tuple[float, float]]:
    """Return the 8-bit graph, the error of each layer with the worst first, and the scores before and after.

    pictures: (n, channels, size, size), from which the ranges of activations are taken.
    engine: on which the score is measured. Raises EngineError if it stays below with half of the layers in float32.
    """
    before = gate.score(gate.run)
    kept: list[str] = []
    errors: list[LayerError] = []
    layers = [node.name for node in graph.graph.node if node.op_type in WEIGHED]
    count = 1
    while True:
        if progress:
            progress("quantising", len(kept), len(layers))
        made = _static(graph, pictures, kept)
        after = gate.score(_running(made, engine))
        if not errors:
            errors = layer_errors(graph, made, pictures[:8])
        if before - after <= most_lost + 1e-9:
            told = tuple(LayerError(each.name, each.decibels, each.name in kept) for each in errors)
            _noted(made, graph, kept)
            return made, told, (before, after)
        if 2 * len(kept) >= len(layers):
            raise EngineError(
                f"int8: {before:.2%} becomes {after:.2%} on the validation pictures, with {len(kept)} of {len(layers)} "
                "layers in float32; allow more with --most-lost, or calibrate with more pictures; nothing was written"
            )
        kept = [each.name for each in errors[:count]]
        count *= 2


def _running(graph: ModelProto, engine: str) -> Callable[[Tensor], Tensor]:
    data = graph.SerializeToString()
    return (OpenVino(data, batch=16) if engine == "openvino" else OnnxRuntime(data)).outputs


def _static(graph: ModelProto, pictures: Tensor, kept: list[str]) -> ModelProto:
    """Return the graph with 8-bit weights, a scale for each channel, and 8-bit activations; `kept` stay float32."""
    onnx = needed("onnx", "onnx")
    quantization: Any = needed("onnxruntime.quantization", "onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(pictures.split(8))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {PIXELS: batch.numpy()}

    with tempfile.TemporaryDirectory(prefix="convatlas-int8-") as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph.SerializeToString())
        logging.disable(logging.WARNING)  # it asks for what was done already
        try:
            quantization.quantize_static(
                source, target, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                # 7 bits for weights: processors without VNNI add up pairs of products in 16 bits
                reduce_range=True, activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8, op_types_to_quantize=list(_QUANTISED),
                nodes_to_exclude=[*kept, *_outside(graph)], calibrate_method=quantization.CalibrationMethod.MinMax,
            )  # fmt: skip
        except Exception as error:  # its errors have no common class
            raise EngineError(f"int8: ONNX Runtime cannot quantise this graph: {brief(error)}") from error
        finally:
            logging.disable(logging.NOTSET)
        made: ModelProto = onnx.load(target)
    return made


def _outside(graph: ModelProto) -> list[str]:
    """Return the nodes before the first and after the last weights: what prepares pixels and makes probabilities."""
    nodes = list(graph.graph.node)
    first = next(i for i, node in enumerate(nodes) if node.op_type in WEIGHED)
    last = max(i for i, node in enumerate(nodes) if OUTPUTS in node.output)
    return [node.name for node in [*nodes[:first], *nodes[last + 1 :]]]


def layer_errors(graph: ModelProto, made: ModelProto, pictures: Tensor) -> list[LayerError]:
    """Return the noise of each layer of an 8-bit graph on some pictures, the loudest first."""
    there = {output for node in made.graph.node for output in node.output}
    ends = ("_DequantizeLinear_Output", "", "_QuantizeLinear_Input")  # how the quantiser may call an output
    readers = {name: node for node in reversed(graph.graph.node) for name in node.input}
    taps: dict[str, tuple[str, str]] = {}
    for node in graph.graph.node:
        if node.op_type in WEIGHED:
            output = node.output[0]
            while not any(output + end in there for end in ends):  # an activation became part of the layer
                output = readers[output].output[0]
            taps[node.name] = (output, next(output + end for end in ends if output + end in there))
    exact = _tapped(graph, [output for output, _ in taps.values()], pictures)
    rough = _tapped(made, [output for _, output in taps.values()], pictures)
    found = []
    for name, signal, other in zip(taps, exact, rough, strict=True):
        noise = float(np.square(signal - other, dtype=np.float64).mean())
        power = float(np.square(signal, dtype=np.float64).mean())
        found.append(LayerError(name, 10 * float(np.log10(max(power, 1e-30) / max(noise, 1e-30)))))
    return sorted(found, key=lambda each: each.decibels)


def _tapped(graph: ModelProto, names: list[str], pictures: Tensor) -> list[Any]:
    """Return what a graph computes under these names."""
    onnx = needed("onnx", "onnx")
    tapped = type(graph)()
    tapped.CopyFrom(graph)
    there = {output.name for output in tapped.graph.output}
    for name in names:
        if name not in there:
            tapped.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return OnnxRuntime(tapped.SerializeToString()).answers(pictures, *names)


def _noted(made: ModelProto, graph: ModelProto, kept: list[str]) -> None:
    """Carry the metadata over, and note what is 8-bit."""
    del made.metadata_props[:]
    made.metadata_props.extend(graph.metadata_props)
    entry = made.metadata_props.add()
    entry.key, entry.value = "int8", f"weights and activations, but for {len(kept)} layers: {', '.join(kept) or 'none'}"
    seal(made)
