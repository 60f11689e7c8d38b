"""Compare the size and the latency of a float32 graph and its int8 version, interleaved on the same engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from convatlas.engines.deploy import example_pixels
from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.engines.openvino import OpenVinoEngine
from convatlas.system.autotune import TimingRules, min_times, time_candidates
from convatlas.weights.modelfile import Header

if TYPE_CHECKING:
    from onnx import ModelProto

TIMING = TimingRules(max_turns=29, min_turns=2, max_seconds=1.5, max_slowdown=float("inf"), prime=True)


@dataclass(frozen=True)
class SizeAndSpeed:
    """Size of the graph in MiB and shortest time of one image, or clip, in milliseconds, before and after quantization.

    noun: "image" or "clip".
    """

    engine: str
    float32_size_mib: float
    int8_size_mib: float
    float32_latency_ms: float
    int8_latency_ms: float
    noun: str = "image"

    def text(self) -> str:
        """Return the comparison in one line."""
        return (
            f"float32 {self.float32_size_mib:.1f} MiB, {self.float32_latency_ms:.2f} ms; int8 "
            f"{self.int8_size_mib:.1f} MiB, {self.int8_latency_ms:.2f} ms for one {self.noun} on {self.engine} "
            f"({self.float32_latency_ms / self.int8_latency_ms:.1f}x)"
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return {key: value for key, value in asdict(self).items() if key != "noun"}


def start_engine(graph: ModelProto, engine: str, *, batch: int) -> Callable[[Tensor], Tensor]:
    """Return the function from pixels to outputs of a graph on "onnxruntime" or "openvino"."""
    data = graph.SerializeToString()
    return (OpenVinoEngine(data, batch=batch) if engine == "openvino" else OnnxRuntimeEngine(data)).outputs


def measure_size_and_speed(float32: ModelProto, int8: ModelProto, header: Header, engine: str) -> SizeAndSpeed:
    """Return sizes and latencies; the two graphs run in turns, so that other processes slow both down alike."""
    graphs = {"float32": float32, "int8": int8}
    forwards = {name: start_engine(graph, engine, batch=1) for name, graph in graphs.items()}
    pixels = example_pixels(header)
    times = min_times(time_candidates(graphs, lambda name: forwards[name](pixels), rules=TIMING))
    sizes = {name: graph.ByteSize() / 2**20 for name, graph in graphs.items()}
    noun = header.preprocessing.reads.removesuffix("s")
    return SizeAndSpeed(engine, sizes["float32"], sizes["int8"], 1000 * times["float32"], 1000 * times["int8"], noun)
