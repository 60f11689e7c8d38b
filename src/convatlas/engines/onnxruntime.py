"""The ONNX Runtime engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convatlas.engines import onnx_graph
from convatlas.engines.onnx_graph import _told
from convatlas.errors import EngineError
from convatlas.system import extras


class OnnxRuntime:
    """ONNX Runtime on the graph of a network."""

    name = "onnxruntime"

    def __init__(self, graph: bytes, *, threads: int = 0) -> None:
        runtime = extras.needed("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise EngineError(f"ONNX Runtime cannot run this graph: {_told(error)}") from error

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} threads"

    def outputs(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.answers(pixels, onnx_graph.OUTPUTS)[0])

    def answers(self, pixels: Tensor, *names: str) -> list[Any]:
        """Return what the graph gives under these names, as arrays."""
        found: list[Any] = self.session.run(list(names), {onnx_graph.PIXELS: pixels.numpy()})
        return found
