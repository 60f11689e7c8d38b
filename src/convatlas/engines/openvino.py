"""The OpenVINO engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convatlas.engines import onnx_graph
from convatlas.engines.onnx_graph import _told
from convatlas.engines.torch import in_full
from convatlas.errors import EngineError
from convatlas.system import extras


class OpenVino:
    """OpenVINO on the graph of a network, in float32, compiled for one image and for `batch` at once."""

    name = "openvino"

    def __init__(self, graph: bytes | Any, *, batch: int, threads: int = 0) -> None:
        openvino = extras.needed("openvino", "openvino")
        self.batch, self.threads = max(1, batch), threads or torch.get_num_threads()
        self._core, self._requests = openvino.Core(), {}  # type: ignore[var-annotated]
        try:
            self._model = self._core.read_model(model=graph) if isinstance(graph, bytes) else graph
        except Exception as error:  # its errors have no common class
            raise EngineError(f"OpenVINO cannot read this graph: {_told(error)}") from error
        self._request(self.batch)

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} threads"

    def outputs(self, pixels: Tensor) -> Tensor:
        return self.answers(pixels)[onnx_graph.OUTPUTS]

    def answers(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return what the graph gives for images, by name."""
        names = (onnx_graph.PROBABILITIES, onnx_graph.OUTPUTS)
        size = 1 if len(pixels) == 1 else self.batch
        request = self._request(size)

        def run(part: Tensor) -> Tensor:
            request.infer({onnx_graph.PIXELS: part.numpy()})
            return torch.cat([torch.from_numpy(request.get_tensor(name).data) for name in names], 1)

        return dict(zip(names, in_full(run, pixels, size).tensor_split(2, 1), strict=True))

    def _request(self, size: int) -> Any:
        """Return what runs `size` images, compiled when it is first needed."""
        if size not in self._requests:
            model = self._model.clone()
            (pixels,) = model.inputs
            settings = {
                "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": self.threads,
            }  # fmt: skip
            try:
                model.reshape([size, *(side.get_length() for side in list(pixels.partial_shape)[1:])])
                self._requests[size] = self._core.compile_model(model, "CPU", settings).create_infer_request()
            except Exception as error:  # its errors have no common class
                raise EngineError(f"OpenVINO cannot run this graph: {_told(error)}") from error
        return self._requests[size]
