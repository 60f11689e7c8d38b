"""Choose the fastest engine by measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from math import isinf

import torch

from convatlas.core.network import Network
from convatlas.engines.deploy import example_inputs
from convatlas.engines.engine import Engine
from convatlas.engines.network_engine import ENGINES, MODULES, EngineConfig, NetworkEngine, check_engine
from convatlas.errors import EngineError
from convatlas.system.autotune import TimingRules, TuningCache, min_times, time_candidates
from convatlas.system.extras import is_installed
from convatlas.system.load import LoadMeter
from convatlas.tasks.table import pluralize
from convatlas.weights.modelfile import Header

CHOICES_FILE = "engines.json"
"""File in the cache directory that stores the choices."""

TIMING = TimingRules(max_turns=29, min_turns=2, max_seconds=1.5, max_slowdown=1.5, prime=True, pause_s=0.003)

MIN_MACS_TO_MEASURE = 5e11
"""Multiply-adds of all images together above which a measurement saves more time than it takes."""

MAX_MACS_OF_ONE_THREAD = 2e8
"""Multiply-adds of a batch below which one thread may be faster than several that wait for each other."""


def installed_engines() -> list[str]:
    """Return the engines that "auto" chooses from: all that are installed, except compile."""
    return [name for name in ENGINES if name != "compile" and is_installed(*MODULES[name])]


def engine_configs(name: str, *, one_thread: bool) -> list[EngineConfig]:
    """Return the configurations of an engine, or of all installed ones for "auto"; the default one first.

    one_thread: include one thread besides the default number.
    """
    threads = [0, 1] if one_thread and torch.get_num_threads() > 1 else [0]
    return [
        EngineConfig(engine, memory_format, count)
        for engine in (installed_engines() if name == "auto" else [name])
        for count in threads
        for memory_format in (["channels_last", "contiguous"] if engine == "torch" else ["channels_last"])
    ]


@dataclass(frozen=True)
class EngineChoice:
    """A started engine, its configuration, and how it was chosen.

    seconds: shortest time of a batch by configuration; empty if nothing was measured. batch: its size.
    failures: engine -> why it cannot run this network. from_cache: whether an earlier measurement was used.
    """

    engine: Engine
    config: EngineConfig
    seconds: Mapping[EngineConfig, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    from_cache: bool = False
    batch: int = 0

    def __str__(self) -> str:
        """The configuration and the reason for it, in one line."""
        if not self.seconds:
            return f"{self.config}" + (", the fastest in an earlier measurement" if self.from_cache else "")
        ranking = sorted(self.seconds.items(), key=lambda item: item[1])
        return f"{self.config}: the fastest of " + ", ".join(f"{config} {1000 * s:.1f} ms" for config, s in ranking)


def choose_engine(
    name: str, network: Network, header: Header, *, batch: int, macs: int, count: int | None = None,
    log: Callable[[str], None] | None = None,
) -> EngineChoice:  # fmt: skip
    """Return the fastest configuration for batches of `batch` images of one engine, or of all installed ("auto").

    The result of a measurement is stored in the cache directory; one that other processes disturbed is used until the
    machine is quiet (see `StoredChoice.is_usable`).
    macs: multiply-adds of one image, or clip. count: expected number of them (default: many). If they are so few that a
        measurement would take longer than it saves, the stored choice or else the default is used.
    log: called with one line before a measurement.
    Raises EngineError if the engine is not installed or cannot run the network.
    """
    if name != "auto":
        check_engine(name)
    if header.preprocessing.is_whole:
        config = whole_image_config(name)
        return EngineChoice(NetworkEngine(config, network, header, batch=batch), config)
    if header.preprocessing.sampling is not None:
        batch = 1  # in a batch, each clip takes as long
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    configs = engine_configs(
        name if device.type == "cpu" or name != "auto" else "torch", one_thread=macs * batch < MAX_MACS_OF_ONE_THREAD
    )  # fmt: skip
    versions = [f"{each} {metadata.version(each)}" for each in installed_engines() if each != "torch"]
    cache = TuningCache(
        CHOICES_FILE, device, header.spec.to_plain(), header.task.outputs, batch, [asdict(each) for each in configs],
        versions,
    )  # fmt: skip
    little_work = count is not None and macs * count < MIN_MACS_TO_MEASURE
    stored = cache.load()
    for config in configs:
        is_stored = stored is not None and stored.choice == asdict(config)
        if len(configs) == 1 or (is_stored and stored and stored.is_usable(little_work=little_work)):
            return EngineChoice(NetworkEngine(config, network, header, batch=batch), config, from_cache=is_stored)
    if little_work:
        return EngineChoice(NetworkEngine(configs[0], network, header, batch=batch), configs[0])
    if log:
        names = ", ".join(dict.fromkeys(config.engine for config in configs))
        log(f"measuring once which engine is the fastest for batches of {batch}: {names}")
    engines: dict[EngineConfig, Engine] = {}
    failures: dict[str, str] = {}
    for config in configs:
        try:
            engines[config] = NetworkEngine(config, network, header, batch=batch)
        except EngineError as error:
            if name != "auto":
                raise
            failures[config.engine] = str(error)
    meter = LoadMeter()
    seconds = time_engines(engines, header, batch)
    best = min(seconds, key=seconds.__getitem__)
    if isinf(seconds[best]):
        what = pluralize(batch, header.preprocessing.reads.removesuffix("s"))
        raise EngineError(f"{header.name}: no engine can run a batch of {what}; use a smaller batch")
    cache.store(asdict(best), meter.share())
    return EngineChoice(engines[best], best, seconds, failures, batch=batch)


def whole_image_config(name: str) -> EngineConfig:
    """Return the configuration for networks that read images of any size; raises EngineError for other engines."""
    known = ("torch", "onnxruntime")
    if name not in ("auto", *known):
        raise EngineError(
            f"engine {name}: cannot run a detector, whose images differ in size; use {' or '.join(known)}"
        )
    return EngineConfig(known[0] if name == "auto" else name)


def time_engines(engines: Mapping[EngineConfig, Engine], header: Header, batch: int) -> dict[EngineConfig, float]:
    """Return the shortest time in seconds of a batch by configuration; infinity for those that fail."""
    pixels = example_inputs(header, batch)
    times = time_candidates(
        engines, lambda config: engines[config].outputs(pixels), rules=TIMING,
        is_failure=lambda error: isinstance(error, EngineError),
    )  # fmt: skip
    return min_times(times)
