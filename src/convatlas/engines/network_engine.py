"""An engine of a network, which always runs the network's present weights."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, get_args

import torch

from convatlas.core.network import Network
from convatlas.core.ragged import Inputs
from convatlas.engines import onnx_graph
from convatlas.engines.engine import Engine
from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.engines.openvino import OpenVinoEngine
from convatlas.engines.torch import TorchEngine
from convatlas.engines.weights_state import WeightsState
from convatlas.errors import EngineError, nearest
from convatlas.system.extras import is_installed
from convatlas.weights.modelfile import Header

EngineName = Literal["torch", "compile", "onnxruntime", "openvino"]

ENGINES: tuple[str, ...] = get_args(EngineName)

MODULES = {
    "torch": (), "compile": (), "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino", "onnx", "onnxscript"),
}  # fmt: skip
"""What an engine needs to be installed."""

_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


def check_engine(name: str) -> None:
    """Raise EngineError unless an engine exists and is installed."""
    if name not in ENGINES:
        raise EngineError(f"engine: must be one of auto, {', '.join(ENGINES)}, got {name!r}{nearest(name, ENGINES)}")
    if not is_installed(*MODULES[name]):
        raise EngineError(f"engine {name}: is not installed; pip install 'convatlas[{_EXTRAS[name]}]'")


@dataclass(frozen=True)
class EngineConfig:
    """An engine and its settings.

    memory_format: of torch and compile, "channels_last" or "contiguous". threads: torch's number if 0.
    """

    engine: str = "torch"
    memory_format: str = "channels_last"
    threads: int = 0

    def __str__(self) -> str:
        memory_format = f", {self.memory_format}" if self.engine in ("torch", "compile") else ""
        return f"{self.engine}{memory_format}" + (f", {self.threads} thread" if self.threads == 1 else "")


class NetworkEngine:
    """The engine of a configuration for a network. It is started again when the network has changed.

    Copies and pickles contain the network, and start an engine of their own.
    """

    def __init__(self, config: EngineConfig, network: Network, header: Header, *, batch: int) -> None:
        """batch: the usual number of images in a batch; openvino and compile prepare for it.

        Raises EngineError if the engine is not installed or cannot run the network.
        """
        check_engine(config.engine)
        self.config, self.network, self.header, self.batch = config, network, header, batch
        self._lock = Lock()
        self._started: tuple[WeightsState, Engine] | None = None
        self.running()

    @property
    def name(self) -> str:
        return self.config.engine

    def __str__(self) -> str:
        return str(self.running())

    def __repr__(self) -> str:
        return f"<NetworkEngine: {self.config}>"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock(), _started=None)

    def outputs(self, pixels: Inputs) -> Any:
        return self.running().outputs(pixels)

    def running(self) -> Engine:
        """Return the engine that was derived from the present weights."""
        started = self._started
        if started is not None and started[0].is_current():
            return started[1]
        with self._lock:
            started = self._started
            if started is None or not started[0].is_current():
                started = self._started = WeightsState(self.network), self._start()
            return started[1]

    def _start(self) -> Engine:
        config, threads = self.config, self.config.threads or torch.get_num_threads()
        if config.engine == "onnxruntime":
            return OnnxRuntimeEngine(onnx_graph.load_or_export(self.network, self.header), threads=threads)
        if config.engine == "openvino":
            engine = OpenVinoEngine(
                onnx_graph.load_or_export(self.network, self.header), batch=self.batch, threads=threads
            )
            engine.prepare()
            return engine
        return TorchEngine(
            self.network, self.header, memory_format=config.memory_format, threads=config.threads,
            compiled=config.engine == "compile", batch=self.batch,
        )  # fmt: skip
