"""The ONNX Runtime engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convatlas.engines.deploy import OUTPUTS, PIXELS
from convatlas.engines.onnx_graph import one_line
from convatlas.errors import EngineError
from convatlas.system.extras import import_optional


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, graph: bytes, *, threads: int = 0) -> None:
        """graph: serialized, see `onnx_graph.export_graph`. threads: torch's number by default."""
        runtime = import_optional("onnxruntime", "convatlas[onnx]", where="engine onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise EngineError(f"engine onnxruntime: cannot run this graph ({one_line(error)})") from error

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} threads"

    def outputs(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.run(pixels, OUTPUTS)[0])

    def run(self, pixels: Tensor, *names: str) -> list[Any]:
        """Return the values with these names as arrays."""
        values: list[Any] = self.session.run(list(names), {PIXELS: pixels.numpy()})
        return values
