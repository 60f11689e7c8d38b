"""Choose an engine by measuring."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch

from convatlas.core.network import Network
from convatlas.engines import onnx_graph
from convatlas.engines.engine import Engine
from convatlas.engines.onnx_graph import example
from convatlas.engines.onnxruntime import OnnxRuntime
from convatlas.engines.openvino import OpenVino
from convatlas.engines.torch import Torch
from convatlas.errors import EngineError
from convatlas.system.autotune import MAX_OTHER_CPU_SHARE, CpuContention, TuningCache
from convatlas.weights.modelfile import Header

Name = Literal["torch", "compile", "onnxruntime", "openvino"]

ENGINES: tuple[str, ...] = get_args(Name)

_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


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

    batch: the most images at once that will be common; threads: all that torch has, if 0.
    Raises EngineError, in one line, where a library is missing or a network cannot be run by it.
    """
    if not installed(name):
        raise EngineError(f"engine {name}: is not installed; pip install 'convatlas[{_EXTRAS[name]}]'")
    threads = threads or torch.get_num_threads()
    if name == "onnxruntime":
        return OnnxRuntime(onnx_graph.cached(network, header), threads=threads)
    if name == "openvino":
        return OpenVino(onnx_graph.cached(network, header), batch=batch, threads=threads)
    return Torch(network, header, layout=layout, threads=threads, compiled=name == "compile", batch=batch)


REMEMBERED = "engines.json"

ENOUGH = 1.5
"""Seconds for which ways are compared with each other, once all are warm."""

PAYS = 5e11
"""Multiply-adds of all images together from which on measuring is worth its seconds."""

SLOW = 1.5
"""A way that took so many times the best one's time is not measured again."""


HICCUP = 0.05
"""Seconds that a process may be held up now and then: a way that took so long at most gets another chance."""


@dataclass(frozen=True)
class EngineConfig:
    """An engine and its settings; threads: all that torch has, if 0."""

    engine: str = "torch"
    layout: str = "channels_last"
    threads: int = 0

    def __str__(self) -> str:
        layout = f", {self.layout}" if self.engine in ("torch", "compile") else ""
        return f"{self.engine}{layout}" + (f", {self.threads} thread" if self.threads == 1 else "")


@dataclass(frozen=True)
class Chosen:
    """The engine, how it runs, and seconds for a batch in each way that was measured.

    seconds: none where the way was known, or too few images are to come. refused: why an engine cannot run this
    network. known: whether the way was remembered.
    """

    engine: Engine
    way: EngineConfig
    seconds: dict[EngineConfig, float]
    refused: dict[str, str]
    known: bool = False

    def __str__(self) -> str:
        """Say what was chosen, and why."""
        if not self.seconds:
            return f"{self.way}" + ", the fastest when it was measured here" * self.known
        told = ", ".join(f"{way} {1000 * taken:.1f} ms" for way, taken in sorted(self.seconds.items(), key=_taken))
        return f"{self.way}: the fastest of {told}"


def _taken(item: tuple[EngineConfig, float]) -> float:
    return item[1]


def ways(name: str, *, tiny: bool) -> list[EngineConfig]:
    """Return the ways to be compared for an engine's name, or for "auto"; the usual one first.

    tiny: for networks so small that several threads may only wait for each other.
    """
    engines = [each for each in ENGINES if each != "compile" and installed(each)] if name == "auto" else [name]
    counts = [0, 1] if tiny and torch.get_num_threads() > 1 else [0]
    found = []
    for engine in engines:
        layouts = ["channels_last", "contiguous"] if engine == "torch" else ["channels_last"]
        found += [EngineConfig(engine, layout, count) for count in counts for layout in layouts]
    return found


def choose(
    name: str, network: Network, header: Header, *, batch: int, macs: int, count: int | None = None
) -> Chosen:  # fmt: skip
    """Return the fastest engine for `batch` images at once, by name or of all that are installed ("auto").

    macs: of one image. count: how many there will be; for so few that measuring would take longer than it saves,
        what was found before is taken, or else torch. Many, where left out.
    Raises EngineError for an engine that is not there, or that cannot run the network.
    """
    if name != "auto" and not installed(name):
        start(name, network, header, batch=batch)  # says what is missing
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    options = ways(name if device.type == "cpu" or name != "auto" else "torch", tiny=macs * batch < 2e8)
    spec, classes = header.spec.to_plain(), len(header.classes)
    remembered = TuningCache(REMEMBERED, device, spec, classes, batch, [asdict(way) for way in options], _versions())
    known = remembered.choice()
    for way in options:
        if len(options) == 1 or known == asdict(way):
            return Chosen(_started(way, network, header, batch), way, {}, {}, known=known is not None)
    if count is not None and macs * count < PAYS:
        return Chosen(_started(options[0], network, header, batch), options[0], {}, {})
    running: dict[EngineConfig, Engine] = {}
    refused: dict[str, str] = {}
    for way in options:
        try:
            running[way] = _started(way, network, header, batch)
        except EngineError as error:
            if name != "auto":
                raise
            refused[way.engine] = str(error)
    others = CpuContention()
    seconds = measured(running, header, batch)
    best = min(seconds, key=seconds.__getitem__)
    if others.share() <= MAX_OTHER_CPU_SHARE:
        remembered.keep(asdict(best))
    return Chosen(running[best], best, seconds, refused)


def _started(way: EngineConfig, network: Network, header: Header, batch: int) -> Engine:
    return start(way.engine, network, header, batch=batch, layout=way.layout, threads=way.threads)


def measured(running: dict[EngineConfig, Engine], header: Header, batch: int) -> dict[EngineConfig, float]:
    """Return the shortest time of a batch in each way: in turns, the second of two; slow ones are left out early.

    The threads of the way before may still spin for some milliseconds.
    """
    pixels = example(header, batch)
    seconds = dict.fromkeys(running, float("inf"))
    left = list(running)
    begun = time.perf_counter()
    for turn in range(30):
        if turn > 2 and time.perf_counter() - begun > ENOUGH:
            break
        for way in left:
            time.sleep(0.003)
            running[way].outputs(pixels)
            if turn:
                first = time.perf_counter()
                running[way].outputs(pixels)
                seconds[way] = min(seconds[way], time.perf_counter() - first)
        if turn:
            best = min(seconds.values())
            left = [way for way in left if seconds[way] <= max(SLOW * best, HICCUP if turn < 4 else 0)]
    return seconds


def _versions() -> list[str]:
    from importlib import metadata

    names: Sequence[str] = [name for name in ENGINES if name not in ("torch", "compile") and installed(name)]
    return [f"{name} {metadata.version(name)}" for name in names]
