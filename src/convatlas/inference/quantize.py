"""8-bit networks: static quantization by ONNX Runtime, the error of each layer, and as much float32 as they need."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from convatlas.data.stream import Pixels, prefetch
from convatlas.engines.onnx_graph import OUTPUTS, PIXELS, seal
from convatlas.engines.onnxruntime import OnnxRuntime
from convatlas.engines.openvino import OpenVino
from convatlas.errors import EngineError, brief
from convatlas.system.extras import needed
from convatlas.system.progress import Progress
from convatlas.tasks.classification.evaluate import judged
from convatlas.tasks.classification.losses import Criterion

if TYPE_CHECKING:
    from onnx import ModelProto


WEIGHED = ("Conv", "Gemm", "MatMul")
"""The operators with weights, whose errors are reported."""

_QUANTISED = (*WEIGHED, "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Relu")


@dataclass(frozen=True)
class LayerError:
    """How much noise a layer of an 8-bit network adds: dB below the signal.

    kept: whether the layer was left in float32 for it.
    """

    name: str
    decibels: float
    kept: bool = False


@dataclass(frozen=True)
class Gate:
    """Labelled images on which an 8-bit network must be as good as the network that it came from."""

    pixels: Pixels
    labels: Tensor
    criterion: Criterion
    run: Callable[[Tensor], Tensor]

    def score(self, run: Callable[[Tensor], Tensor]) -> float:
        """Return the accuracy, or the mean average precision, of what runs images (n, channels, size, size)."""
        batches = torch.arange(len(self.labels)).split(16)
        outputs = torch.cat([run(pixels) for _, pixels in prefetch(self.pixels, batches)])
        return judged(outputs, self.labels, self.criterion).score


def quantized(
    graph: ModelProto,
    images: Tensor,
    gate: Gate,
    *,
    engine: str,
    max_accuracy_drop: float,
    progress: Progress | None = None,
) -> tuple[ModelProto, tuple[LayerError, ...], tuple[float, float]]:
    """Return the 8-bit graph, the error of each layer with the worst first, and the scores before and after.

    images: (n, channels, size, size), from which the ranges of activations are taken.
    engine: on which the score is measured. Raises EngineError if it stays below with half of the layers in float32.
    """
    before = gate.score(gate.run)
    kept: list[str] = []
    errors: list[LayerError] = []
    layers = [node.name for node in graph.graph.node if node.op_type in WEIGHED]
    count = 1
    while True:
        if progress:
            progress("quantizing", len(kept), len(layers))
        made = _static(graph, images, kept)
        after = gate.score(_running(made, engine))
        if not errors:
            errors = layer_errors(graph, made, images[:4])
        if before - after <= max_accuracy_drop + 1e-9:
            told = tuple(LayerError(each.name, each.decibels, each.name in kept) for each in errors)
            _noted(made, graph, kept)
            return made, told, (before, after)
        if 2 * len(kept) >= len(layers):
            raise EngineError(
                f"int8: {before:.2%} becomes {after:.2%} on the validation images, with {len(kept)} of {len(layers)} "
                "layers in float32; allow more with --most-lost, or calibrate with more images; nothing was written"
            )
        kept = [each.name for each in errors[:count]]
        count *= 2


def _running(graph: ModelProto, engine: str) -> Callable[[Tensor], Tensor]:
    data = graph.SerializeToString()
    return (OpenVino(data, batch=16) if engine == "openvino" else OnnxRuntime(data)).outputs


def _static(graph: ModelProto, images: Tensor, kept: list[str]) -> ModelProto:
    """Return the graph with 8-bit weights, a scale for each channel, and 8-bit activations; `kept` stay float32."""
    onnx = needed("onnx", "onnx")
    quantization: Any = needed("onnxruntime.quantization", "onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(8))

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
                reduce_range=not has_dot_products(), activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8, op_types_to_quantize=list(_QUANTISED),
                nodes_to_exclude=[*kept, *_outside(graph)], calibrate_method=quantization.CalibrationMethod.MinMax,
            )  # fmt: skip
        except Exception as error:  # its errors have no common class
            raise EngineError(f"int8: ONNX Runtime cannot quantize this graph: {brief(error)}") from error
        finally:
            logging.disable(logging.NOTSET)
        made: ModelProto = onnx.load(target)
    return made


def has_dot_products() -> bool:
    """Return whether this processor adds up products of 8-bit numbers in 32 bits (VNNI, from 2019 on).

    Others add pairs of them in 16 bits, which overflow: weights must then do with 7 bits.
    """
    known = (getattr(torch.cpu, name, bool) for name in ("_is_vnni_supported", "_is_avx512_vnni_supported"))
    return platform.machine() not in ("x86_64", "AMD64") or any(check() for check in known)


def _outside(graph: ModelProto) -> list[str]:
    """Return the nodes before the first and after the last weights: what prepares pixels and makes probabilities."""
    nodes = list(graph.graph.node)
    first = next(i for i, node in enumerate(nodes) if node.op_type in WEIGHED)
    last = max(i for i, node in enumerate(nodes) if OUTPUTS in node.output)
    return [node.name for node in [*nodes[:first], *nodes[last + 1 :]]]


def layer_errors(graph: ModelProto, made: ModelProto, images: Tensor) -> list[LayerError]:
    """Return the noise that each layer of an 8-bit graph adds to what it reads, on some images, the loudest first."""
    there = {output for node in made.graph.node for output in node.output} | {PIXELS}
    readers = {name: node for node in reversed(graph.graph.node) for name in node.input}
    ends = ("_DequantizeLinear_Output", "", "_QuantizeLinear_Input")  # how the quantizer may call a value

    def places(name: str) -> tuple[str, str]:
        """Return where a value is in both graphs; behind the activation that became a part of its layer, if one did."""
        while not any(name + end in there for end in ends):
            name = readers[name].output[0]
        return name, next(name + end for end in ends if name + end in there)

    layers = [node for node in graph.graph.node if node.op_type in WEIGHED]
    taps = dict(places(name) for node in layers for name in (node.input[0], node.output[0]))
    taps.pop(PIXELS, None)
    pairs = zip(taps, _tapped(graph, list(taps), images), _tapped(made, list(taps.values()), images), strict=True)
    noise = {name: _power(rough - exact) / max(_power(exact), 1e-30) for name, exact, rough in pairs}
    found = []
    for node in layers:
        before, after = (noise.get(places(name)[0], 0.0) for name in (node.input[0], node.output[0]))
        found.append(LayerError(node.name, -10 * float(np.log10(max(after - before, 1e-12)))))
    return sorted(found, key=lambda each: each.decibels)


def _power(values: Any) -> float:
    return float(np.square(values, dtype=np.float64).mean())


def _tapped(graph: ModelProto, names: list[str], images: Tensor) -> list[Any]:
    """Return what a graph computes under these names."""
    onnx = needed("onnx", "onnx")
    tapped = type(graph)()
    tapped.CopyFrom(graph)
    there = {output.name for output in tapped.graph.output}
    for name in names:
        if name not in there:
            tapped.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return OnnxRuntime(tapped.SerializeToString()).answers(images, *names)


def _noted(made: ModelProto, graph: ModelProto, kept: list[str]) -> None:
    """Carry the metadata over, and note what is 8-bit."""
    del made.metadata_props[:]
    made.metadata_props.extend(graph.metadata_props)
    entry = made.metadata_props.add()
    bits = "8 bits, for processors with VNNI" if has_dot_products() else "7 bits, for any processor"
    entry.key, entry.value = "int8", f"weights of {bits}; in float32 stayed {', '.join(kept) or 'no layer'}"
    seal(made)
