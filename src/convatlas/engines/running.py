"""The engines: each turns pixels into a network's outputs, in its own way."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from convatlas.engines import graphs
from convatlas.engines.folding import folded
from convatlas.errors import EngineError
from convatlas.joins import Network, unrolled
from convatlas.modelfile import Header

Name = Literal["torch", "compile", "onnxruntime", "openvino"]

ENGINES: tuple[str, ...] = get_args(Name)

_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


class Engine(Protocol):
    """What runs a network."""

    @property
    def name(self) -> str: ...

    def outputs(self, pixels: Tensor) -> Tensor:
        """Return the outputs, float32 (n, classes), for pixels (n, channels, size, size) of `Preprocessing.dtype`."""
        ...


def installed(name: str) -> bool:
    """Return whether what an engine needs is there; raises EngineError for a name that is none."""
    if name not in ENGINES:
        raise EngineError(f"engine: {name!r} is not one of auto, {', '.join(ENGINES)}")
    modules = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript")}
    return all(importlib.util.find_spec(module) for module in modules.get(name, ()))


def start(
    name: str, network: Network, header: Header, *, batch: int, layout: str = "channels_last", threads: int = 0
) -> Engine:  # fmt: skip
    """Start an engine for a network.

    batch: the most pictures at once that will be common; threads: all that torch has, if 0.
    Raises EngineError, in one line, where a library is missing or a network cannot be run by it.
    """
    if not installed(name):
        raise EngineError(f"engine {name}: is not installed; pip install 'convatlas[{_EXTRAS[name]}]'")
    threads = threads or torch.get_num_threads()
    if name == "onnxruntime":
        return OnnxRuntime(graphs.cached(network, header), threads=threads)
    if name == "openvino":
        return OpenVino(graphs.cached(network, header), batch=batch, threads=threads)
    return Torch(network, header, layout=layout, threads=threads, compiled=name == "compile", batch=batch)


class Torch:
    """Torch itself: norms folded, in one memory format; or compiled by it, which takes minutes at the first picture."""

    def __init__(
        self, network: Network, header: Header, *, layout: str = "channels_last", threads: int = 0,
        compiled: bool = False, batch: int = 0,
    ) -> None:  # fmt: skip
        self.name = "compile" if compiled else "torch"
        self.layout, self.threads = layout, threads
        self.batch = batch if compiled else 0
        self.device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        images = len(network.input_shape) == 3
        self.format = torch.channels_last if layout == "channels_last" and images else torch.contiguous_format
        steps = header.preprocessing
        self.mean = torch.tensor(steps.mean, device=self.device).mul_(255).view(-1, 1, 1)
        self.scale = torch.tensor(steps.std, device=self.device).mul_(255).reciprocal_().view(-1, 1, 1)
        twin = folded(network, layout=self.format)
        self.network: Any = nn.Sequential(*unrolled((twin.stem, twin.stages, twin.head)))
        if compiled:
            from torch._inductor import config

            config.freezing = True
            self.network = torch.compile(self.network)

    def __str__(self) -> str:
        return f"{self.name}, {self.layout}, {self.threads or torch.get_num_threads()} threads"

    @torch.inference_mode()
    def outputs(self, pixels: Tensor) -> Tensor:
        with threads_of_torch(self.threads):
            if not self.batch:
                return self._outputs(pixels)
            with torch.no_grad():  # compiled for one number of pictures
                return in_full(self._outputs, pixels, self.batch)

    def _outputs(self, pixels: Tensor) -> Tensor:
        # as Preprocessing.normalise, to the bit, whose constants are made once
        inputs = pixels.to(self.device, torch.float32, copy=True).sub_(self.mean).mul_(self.scale)
        inputs = inputs.contiguous(memory_format=self.format)
        return cast(Tensor, self.network(inputs).float().cpu())


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Let torch compute with so many threads; as it does anyway, if 0."""
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_full(run: Any, pixels: Tensor, batch: int) -> Tensor:
    """Run pixels in batches that are full: what is missing in the last one is filled up with its first picture."""
    found = []
    for part in pixels.split(batch):
        missing = batch - len(part)
        whole = torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part
        found.append(run(whole)[: len(part)])
    return torch.cat(found)


def _told(error: Exception) -> str:
    """Return a library's error on one line, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from" not in line]
    return " ".join(lines)[:300] or type(error).__name__


class OnnxRuntime:
    """ONNX Runtime on the graph of a network."""

    name = "onnxruntime"

    def __init__(self, graph: bytes, *, threads: int = 0) -> None:
        runtime = graphs.needed("onnxruntime", "onnx")
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
        return torch.from_numpy(self.answers(pixels, graphs.OUTPUTS)[0])

    def answers(self, pixels: Tensor, *names: str) -> list[Any]:
        """Return what the graph gives under these names, as arrays."""
        found: list[Any] = self.session.run(list(names), {graphs.PIXELS: pixels.numpy()})
        return found


class OpenVino:
    """OpenVINO on the graph of a network, in float32, compiled for one picture and for `batch` at once."""

    name = "openvino"

    def __init__(self, graph: bytes | Any, *, batch: int, threads: int = 0) -> None:
        openvino = graphs.needed("openvino", "openvino")
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
        return self.answers(pixels)[graphs.OUTPUTS]

    def answers(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return what the graph gives for pictures, by name."""
        names = (graphs.PROBABILITIES, graphs.OUTPUTS)
        size = 1 if len(pixels) == 1 else self.batch
        request = self._request(size)

        def run(part: Tensor) -> Tensor:
            request.infer({graphs.PIXELS: part.numpy()})
            return torch.cat([torch.from_numpy(request.get_tensor(name).data) for name in names], 1)

        return dict(zip(names, in_full(run, pixels, size).tensor_split(2, 1), strict=True))

    def _request(self, size: int) -> Any:
        """Return what runs `size` pictures, compiled when it is first needed."""
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
