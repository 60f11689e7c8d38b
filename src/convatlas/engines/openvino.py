"""The OpenVINO engine."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from convatlas.engines.deploy import OUTPUTS, PIXELS, PROBABILITIES
from convatlas.engines.engine import runtime_errors
from convatlas.engines.torch import run_in_full_batches
from convatlas.system.extras import import_optional
from convatlas.system.signal_stack import kept_signal_stack
from convatlas.tasks.table import pluralize


class OpenVinoEngine:
    """OpenVINO on the CPU, in float32; the graph is compiled for batches of one image and of `batch` images.

    Clips are computed one by one, which is as fast as in batches.
    """

    name = "openvino"

    def __init__(self, graph: bytes | tuple[bytes, bytes] | Any, *, batch: int, threads: int = 0) -> None:
        """graph: a serialized ONNX graph, the bytes of OpenVINO's two files, or an OpenVINO model.

        threads: torch's number by default.
        """
        openvino = import_optional("openvino", "convatlas[openvino]", where="engine openvino")
        self.threads = threads or torch.get_num_threads()
        self._core = openvino.Core()
        with runtime_errors(f"engine {self.name}", "cannot read this graph"):
            if isinstance(graph, bytes):
                graph = self._core.read_model(model=graph)
            elif isinstance(graph, tuple):
                graph = self._core.read_model(model=graph[0], weights=graph[1])
        self._model = graph
        is_image = len(graph.inputs[0].partial_shape) == 4
        self.batch = max(1, batch) if is_image else 1
        self._compiled: dict[int, Any] = {}
        self._idle: dict[int, deque[Any]] = {1: deque(), self.batch: deque()}
        self._lock = Lock()

    def __str__(self) -> str:
        return f"{self.name}, {pluralize(self.threads, 'thread')}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restart, (self._serialize(), self.batch, self.threads)

    def __deepcopy__(self, memo: object) -> OpenVinoEngine:
        return self  # nothing changes its graph

    def outputs(self, pixels: Tensor) -> Tensor:
        return self.decoded(pixels)[1]

    def decoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities and the outputs of the graph."""
        names = (PROBABILITIES, OUTPUTS)
        size = 1 if len(pixels) == 1 else self.batch

        def run_batch(part: Tensor) -> Tensor:
            with self._request(size) as request, runtime_errors(f"engine {self.name}", "cannot run this graph"):
                request.infer({PIXELS: part.numpy()})
                return torch.cat([torch.from_numpy(request.get_tensor(name).data) for name in names], 1)

        probabilities, outputs = run_in_full_batches(run_batch, pixels, size).tensor_split(2, 1)
        return probabilities, outputs

    def prepare(self) -> None:
        """Compile the graph for batches of `batch` images now. Raises EngineError if it cannot be compiled."""
        self._compile(self.batch)

    @contextmanager
    def _request(self, size: int) -> Iterator[Any]:
        """Give an inference request for `size` images, which no other thread uses meanwhile; it holds its results."""
        try:
            request = self._idle[size].pop()
        except IndexError:
            request = self._compile(size).create_infer_request()
        yield request
        self._idle[size].append(request)  # not after an error

    def _compile(self, size: int) -> Any:
        """Return the graph for batches of `size` images; it is compiled on first use."""
        with self._lock:
            if size not in self._compiled:
                settings = {
                    "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
                    "INFERENCE_NUM_THREADS": self.threads,
                }  # fmt: skip
                with runtime_errors(f"engine {self.name}", "cannot run this graph"):
                    model = self._model.clone()
                    (pixels,) = model.inputs
                    model.reshape([size, *(side.get_length() for side in list(pixels.partial_shape)[1:])])
                    with kept_signal_stack():
                        self._compiled[size] = self._core.compile_model(model, "CPU", settings)
            return self._compiled[size]

    def _serialize(self) -> tuple[bytes, bytes]:
        """Return the bytes of OpenVINO's two files."""
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            xml = Path(folder) / "graph.xml"
            openvino.serialize(self._model, xml)
            return xml.read_bytes(), xml.with_suffix(".bin").read_bytes()


def _restart(graph: tuple[bytes, bytes], batch: int, threads: int) -> OpenVinoEngine:
    return OpenVinoEngine(graph, batch=batch, threads=threads)
