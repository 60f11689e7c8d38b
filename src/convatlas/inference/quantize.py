"""int8 quantization: static quantization by ONNX Runtime, with the float32 layers that the accuracy requires."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from convatlas.engines.deploy import OUTPUTS, PIXELS
from convatlas.engines.onnx_file import add_checksum
from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.errors import EngineError, brief
from convatlas.inference.accuracy_change import AccuracyChange, AccuracyCheck
from convatlas.inference.size_and_speed import start_engine
from convatlas.system.extras import import_optional
from convatlas.system.progress import Progress

if TYPE_CHECKING:
    from onnx import ModelProto

WEIGHTED_OPERATORS = ("Conv", "Gemm", "MatMul")
"""Operators with weights; they are the layers whose noise is measured."""

_QUANTIZED_OPERATORS = (
    *WEIGHTED_OPERATORS, "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Relu",
)  # fmt: skip

_CALIBRATION_BATCH = 8
"""Number of images of which ranges are taken at once."""

_NOISE_IMAGES = 4
"""Number of images on which the noise of layers is measured."""


@dataclass(frozen=True)
class LayerNoise:
    """The noise that quantization adds in one layer.

    signal_to_noise_db: power of the output divided by the power of the noise, in dB; low is bad.
    in_float32: whether the layer stayed in float32.
    """

    name: str
    signal_to_noise_db: float
    in_float32: bool = False

    def to_plain(self) -> dict[str, Any]:
        return {
            "name": self.name, "signal_to_noise_db": self.signal_to_noise_db, "in_float32": self.in_float32,
        }  # fmt: skip


class QuantizedGraph(NamedTuple):
    """A quantized graph; its layers, the one with the most noise first; and the change of the metric."""

    graph: ModelProto
    layers: tuple[LayerNoise, ...]
    accuracy: AccuracyChange


def quantize_graph(
    graph: ModelProto,
    images: Tensor,
    check: AccuracyCheck,
    *,
    engine: str,
    max_accuracy_drop: float,
    progress: Progress | None = None,
) -> QuantizedGraph:
    """Quantize a graph; layers return to float32, the noisiest first, until the accuracy is within the limit.

    In each round twice as many return, at most half of all.

    images: (n, *Preprocessing.item_shape) of images or clips, from which the ranges of activations are taken.
    engine: "onnxruntime" or "openvino", on which the accuracy is measured.
    max_accuracy_drop: maximum loss of the headline metric, as a fraction: 0.005 is half a percentage point. It counts
        as exceeded if the images give evidence for that, see `AccuracyChange`.
    Raises EngineError if more is lost even with half of the layers in float32.
    """
    before = check.outputs(check.forward)
    float32_layers: list[str] = []
    noise: list[LayerNoise] = []
    layers = [node.name for node in graph.graph.node if node.op_type in WEIGHTED_OPERATORS]
    count = 1
    while True:
        if progress:
            progress("quantizing", len(float32_layers), len(layers))
        quantized = quantize_static(graph, images, float32_layers)
        change = check.compare(before, check.outputs(start_engine(quantized, engine, batch=16)))
        if not noise:
            noise = measure_noise(graph, quantized, images[: in_frames(images, _NOISE_IMAGES)])
        if not change.is_loss_above(max_accuracy_drop):
            _copy_metadata(graph, quantized, float32_layers)
            marked = tuple(replace(each, in_float32=each.name in float32_layers) for each in noise)
            return QuantizedGraph(quantized, marked, change)
        if len(float32_layers) == len(layers) // 2:
            raise EngineError(
                f"int8: the {change.metric} must drop by at most {100 * max_accuracy_drop:g} pp, got {change.text()}, "
                f"with {len(float32_layers)} of {len(layers)} layers in float32; increase --max-accuracy-drop or "
                "calibrate with more images; nothing was written"
            )
        float32_layers = [each.name for each in noise[: min(count, len(layers) // 2)]]
        count *= 2


def in_frames(images: Tensor, count: int) -> int:
    """Return how many images, or clips, have about as many frames as `count` images; at least one."""
    return count if images.ndim == 4 else max(1, count // images.shape[1])


def quantize_static(graph: ModelProto, images: Tensor, float32_layers: Sequence[str]) -> ModelProto:
    """Return a graph with int8 weights, a scale for each channel, and uint8 activations.

    images: (n, *Preprocessing.item_shape) for calibration. float32_layers: nodes that are not quantized.
    """
    onnx = import_optional("onnx", "convatlas[onnx]", where="int8")
    quantization: Any = import_optional("onnxruntime.quantization", "convatlas[onnx]", where="int8")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(in_frames(images, _CALIBRATION_BATCH)))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {PIXELS: batch.numpy()}

    source = type(graph)()
    source.CopyFrom(graph)
    # the exporter has optimized the graph; without this mark ONNX Runtime logs a warning
    entry = source.metadata_props.add()
    entry.key, entry.value = "onnx.quant.pre_process", "onnxruntime.quant"
    with tempfile.TemporaryDirectory(prefix="convatlas-int8-") as folder:
        source_file, target_file = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source_file.write_bytes(source.SerializeToString())
        try:
            quantization.quantize_static(
                source_file, target_file, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                reduce_range=not has_int8_dot_products(), activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8, op_types_to_quantize=list(_QUANTIZED_OPERATORS),
                nodes_to_exclude=[*float32_layers, *_outer_nodes(graph)],
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )  # fmt: skip
        except Exception as error:  # its errors have no common class
            raise EngineError(f"int8: ONNX Runtime cannot quantize this graph ({brief(error)})") from error
        quantized: ModelProto = onnx.load(target_file)
    return quantized


def has_int8_dot_products() -> bool:
    """Return whether this processor sums products of 8-bit numbers in 32 bits (VNNI, on x86 since 2019).

    Other x86 processors sum pairs of products in 16 bits, which overflow; there weights must have 7 bits.
    """
    checks = (getattr(torch.cpu, name, bool) for name in ("_is_vnni_supported", "_is_avx512_vnni_supported"))
    return platform.machine() not in ("x86_64", "AMD64") or any(check() for check in checks)


def _outer_nodes(graph: ModelProto) -> list[str]:
    """Return the nodes before the first layer (normalization) and after the network's outputs (decoding)."""
    nodes = list(graph.graph.node)
    first = next(i for i, node in enumerate(nodes) if node.op_type in WEIGHTED_OPERATORS)
    last = max(i for i, node in enumerate(nodes) if OUTPUTS in node.output)
    return [node.name for node in [*nodes[:first], *nodes[last + 1 :]]]


def measure_noise(graph: ModelProto, quantized: ModelProto, images: Tensor) -> list[LayerNoise]:
    """Return the noise that each layer of a quantized graph adds to its input, the worst layer first."""
    available = {output for node in quantized.graph.node for output in node.output} | {PIXELS}
    readers = {name: node for node in reversed(graph.graph.node) for name in node.input}
    suffixes = ("_DequantizeLinear_Output", "", "_QuantizeLinear_Input")  # of the quantizer's names of a value

    def names_of(name: str) -> tuple[str, str]:
        """Return the names of a value in both graphs; if a layer was fused with its activation, those behind it."""
        while not any(name + suffix in available for suffix in suffixes):
            name = readers[name].output[0]
        return name, next(name + suffix for suffix in suffixes if name + suffix in available)

    layers = [node for node in graph.graph.node if node.op_type in WEIGHTED_OPERATORS]
    values = dict(names_of(name) for node in layers for name in (node.input[0], node.output[0]))
    values.pop(PIXELS, None)
    exact, rough = _run(graph, list(values), images), _run(quantized, list(values.values()), images)
    noise = {
        name: _power(right - left) / max(_power(left), 1e-30)
        for name, left, right in zip(values, exact, rough, strict=True)
    }
    result = []
    for node in layers:
        before, after = (noise.get(names_of(name)[0], 0.0) for name in (node.input[0], node.output[0]))
        result.append(LayerNoise(node.name, -10 * float(np.log10(max(after - before, 1e-12)))))
    return sorted(result, key=lambda each: each.signal_to_noise_db)


def _power(values: Any) -> float:
    return float(np.square(values, dtype=np.float64).mean())


def _run(graph: ModelProto, names: list[str], images: Tensor) -> list[Any]:
    """Return the values with these names that a graph computes."""
    onnx = import_optional("onnx", "convatlas[onnx]", where="int8")
    extended = type(graph)()
    extended.CopyFrom(graph)
    outputs = {output.name for output in extended.graph.output}
    for name in names:
        if name not in outputs:
            extended.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return OnnxRuntimeEngine(extended.SerializeToString()).run(images, *names)


def _copy_metadata(graph: ModelProto, quantized: ModelProto, float32_layers: list[str]) -> None:
    """Copy the metadata of a graph to its quantized version, with a note on the quantization."""
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(graph.metadata_props)
    entry = quantized.metadata_props.add()
    bits = "8 bits, for processors with VNNI" if has_int8_dot_products() else "7 bits, for any processor"
    entry.key, entry.value = "int8", f"weights of {bits}; layers in float32: {', '.join(float32_layers) or 'none'}"
    add_checksum(quantized)
