"""The ONNX Runtime engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convatlas.engines.deploy import OUTPUTS, PIXELS, PROBABILITIES
from convatlas.engines.engine import runtime_errors
from convatlas.system.extras import import_optional
from convatlas.tasks.table import pluralize


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, graph: bytes, *, threads: int = 0) -> None:
        """graph: serialized, see `onnx_graph.export_graph`. threads: torch's number by default."""
        runtime = import_optional("onnxruntime", "convatlas[onnx]", where="engine onnxruntime")
        self.graph = graph  # for pickle; the session keeps it anyway
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        # threads that spin take the cores from other processes, and from torch's own threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with runtime_errors(f"engine {self.name}", "cannot run this graph"):
            self.session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __str__(self) -> str:
        return f"{self.name}, {pluralize(self.threads, 'thread')}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restart, (self.graph, self.threads)

    def __deepcopy__(self, memo: object) -> OnnxRuntimeEngine:
        return self  # nothing changes it

    def outputs(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.run(pixels, OUTPUTS)[0])

    def decoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities and the outputs of the graph."""
        probabilities, outputs = map(torch.from_numpy, self.run(pixels, PROBABILITIES, OUTPUTS))
        return probabilities, outputs

    def run(self, pixels: Tensor, *names: str) -> list[Any]:
        """Return the values with these names as arrays."""
        with runtime_errors(f"engine {self.name}", "cannot run this graph"):
            values: list[Any] = self.session.run(list(names), {PIXELS: pixels.numpy()})
        return values


def _restart(graph: bytes, threads: int) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(graph, threads=threads)
