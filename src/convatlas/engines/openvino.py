"""The OpenVINO engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convatlas.engines.deploy import OUTPUTS, PIXELS, PROBABILITIES
from convatlas.engines.onnx_graph import one_line
from convatlas.engines.torch import run_in_full_batches
from convatlas.errors import EngineError
from convatlas.system.extras import import_optional


class OpenVinoEngine:
    """OpenVINO on the CPU, in float32; the graph is compiled for batches of one image and of `batch` images."""

    name = "openvino"

    def __init__(self, graph: bytes | Any, *, batch: int, threads: int = 0) -> None:
        """graph: a serialized ONNX graph or an OpenVINO model. threads: torch's number by default."""
        openvino = import_optional("openvino", "convatlas[openvino]", where="engine openvino")
        self.batch, self.threads = max(1, batch), threads or torch.get_num_threads()
        self._core = openvino.Core()
        self._requests: dict[int, Any] = {}
        try:
            self._model = self._core.read_model(model=graph) if isinstance(graph, bytes) else graph
        except Exception as error:  # its errors have no common class
            raise EngineError(f"engine openvino: cannot read this graph ({one_line(error)})") from error
        self._request(self.batch)

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} threads"

    def outputs(self, pixels: Tensor) -> Tensor:
        return self.run(pixels)[OUTPUTS]

    def run(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the outputs of the graph by name."""
        names = (PROBABILITIES, OUTPUTS)
        size = 1 if len(pixels) == 1 else self.batch
        request = self._request(size)

        def run_batch(part: Tensor) -> Tensor:
            request.infer({PIXELS: part.numpy()})
            return torch.cat([torch.from_numpy(request.get_tensor(name).data) for name in names], 1)

        outputs = run_in_full_batches(run_batch, pixels, size)
        return dict(zip(names, outputs.tensor_split(2, 1), strict=True))

    def _request(self, size: int) -> Any:
        """Return the inference request for batches of `size` images; it is compiled on first use."""
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
                raise EngineError(f"engine openvino: cannot run this graph ({one_line(error)})") from error
        return self._requests[size]
