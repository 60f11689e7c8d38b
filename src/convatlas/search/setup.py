"""The start of a search: which networks compete, and what this machine can do; everything that `search.json` states."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from convatlas.core.choice import Template
from convatlas.core.spec import SMALL, Spec
from convatlas.data.open import open_for_training
from convatlas.data.source import Source
from convatlas.errors import SearchError
from convatlas.models.catalog import resolve
from convatlas.search.contestant import Contestant, hand_baselines, is_small, largest_baselines, pretrained_networks
from convatlas.search.counts import Counts
from convatlas.search.latency import LatencyMeter, LatencyModel
from convatlas.search.latency_files import fit_latency_model
from convatlas.search.limits import Limits, Objective, hard_limits
from convatlas.search.settings import SearchSettings
from convatlas.search.space import SpecSpace
from convatlas.search.spaces import DEFAULT_SPACE, space_at
from convatlas.system.cores import count_cores
from convatlas.system.progress import Progress
from convatlas.tasks.task import Task
from convatlas.train.cpu.execution import MemoryFormat, Precision
from convatlas.train.fit import prepare_run
from convatlas.train.preparation import preprocessing_for
from convatlas.train.recipe_fields import RecipeFields
from convatlas.train.select_model import input_side
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions

LARGE = 128
"""Resolution of candidates for images of more than 64 pixels."""

FACTORS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)
"""Widths of a named space, of which the largest that suits the limits is taken."""

DRAWN, MIN_WITHIN = 24, 0.2
"""Networks that are drawn for each width, and the share of them that must be within the limits."""

MEASURED = {"torch": 30, "compile": 12}
"""Networks whose latency is measured at the start; of engines that need an export, 14."""

NEAR, LATENCY_RESERVE = 1.5, 0.97
"""Networks whose predicted latency is within this factor of the limit are measured, and must stay this far below it."""

TRAINING_SHARE = 0.1
"""Seconds of a candidate at full fidelity, as a share of the whole time of one worker."""

FIDELITIES = (0.25, 1.0)
"""Shares of the training after which candidates are compared."""

ENGINES = ("quick", "transfer")
"""quick: candidates and baselines from random weights. transfer: pretrained networks of the catalog."""


@dataclass(frozen=True)
class SearchOptions:
    """What a search may be told; see `convatlas search --help`.

    space: the name of one, or a spec with choices. engines: of `ENGINES`. engine, latency_threads: how the network will
    be deployed. latency_model: of another machine. workers: processes on this machine.
    """

    space: str | Template | Any = ""
    engines: Sequence[str] = ENGINES
    objective: Objective = "hard"
    engine: str = "torch"
    latency_threads: int = 1
    latency_model: LatencyModel | None = None
    workers: int = 1
    seed: int = 0
    recipe: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    data_options: DataOptions = field(default_factory=DataOptions)
    storage: str | None = None


def set_up(
    data: str, limits: Limits, time_s: float, options: SearchOptions, *, progress: Progress
) -> tuple[SearchSettings, list[Contestant]]:
    """Measure this machine and return the settings of a search, and the networks that compete with its candidates.

    Raises SearchError if no network of the space is within the limits.
    """
    begin, hard = time.monotonic(), hard_limits(limits, options.objective)
    unknown = [name for name in options.engines if name not in ENGINES]
    if unknown or not options.engines:
        raise SearchError(f"engines: must be some of {', '.join(ENGINES)}, got {', '.join(options.engines) or 'none'}")
    data_options = options.data_options
    source = open_for_training(
        data, reads="images", group_pattern=data_options.group_pattern, val_share=data_options.val_share,
        progress=progress,
    )  # fmt: skip
    if source.task.predicts != Task.predicts:
        raise SearchError(f"{source.name}: a search compares classifiers, and this data has {source.task.predicts}")
    channels = source.channels if data_options.channels is None else data_options.channels
    small = is_small(input_side(source, data_options))
    resolution = data_options.resolution or (SMALL if small else LARGE)
    data_options = replace(data_options, resolution=None)  # the specs have it

    # 1. how steps are executed, by a network in the middle
    first = space_at(options.space, 0.5, small, resolution).template.first
    execution, preprocessing = _try_out(data, source, first, channels, options, data_options)

    # 2. latencies, and with them the width of the space
    meter = LatencyMeter(preprocessing, source.task, options.engine, options.latency_threads)
    random = np.random.default_rng(options.seed)
    factors = FACTORS if not options.space or isinstance(options.space, str) else (1.0,)
    drawn = {factor: _draw(space_at(options.space, factor, small, resolution), random) for factor in factors}
    hand_made = largest_baselines(resolution=resolution, small=small)
    latency = options.latency_model or _measure(drawn, hand_made, meter, channels, progress)
    counted = {
        factor: [Counts.of(spec, classes=source.task.outputs, channels=channels) for spec in specs]
        for factor, specs in drawn.items()
    }
    space = space_at(options.space, _choose_width(counted, hard, latency), small, resolution)

    settings = SearchSettings(
        data=str(data), space=space.template.to_plain(), space_name=_name_of(options.space), limits=limits,
        task=source.task, preprocessing=preprocessing, data_options=data_options,
        train_images=len(source.splits["train"]), time_s=time_s, setup_s=time.monotonic() - begin,
        training_s=TRAINING_SHARE * time_s, fidelities=FIDELITIES, latency=latency,
        measures=options.latency_model is None, seed=options.seed, objective=options.objective,
        memory_format=cast(MemoryFormat, execution.memory_format), precision=cast(Precision, execution.precision),
        threads=max(1, count_cores() // options.workers), workers=options.workers, recipe=options.recipe,
        fields=dict(options.fields), storage=options.storage, draws_candidates="quick" in options.engines,
    )  # fmt: skip

    # 3. the networks that compete with the candidates; near the limit, their latency is measured
    def fits(spec: Spec) -> bool:
        counts = Counts.of(spec, classes=settings.classes, channels=channels)
        predicted = latency.predict(counts)
        if options.latency_model is not None and not latency.knows(counts):
            return False
        if hard.exceeded(counts, predicted / NEAR):
            return False
        if not settings.measures or predicted * NEAR < hard.target_s:
            return not hard.exceeded(counts, predicted)
        return meter.measure_alone([spec])[0].seconds < LATENCY_RESERVE * hard.target_s

    others: list[Contestant] = []
    if "transfer" in options.engines:
        others += pretrained_networks(source, data_options, channels=channels, fits=fits)
    if "quick" in options.engines:
        others += hand_baselines(resolution=resolution, small=small, fits=fits)
    if not others and not settings.draws_candidates:
        raise SearchError(
            "search: no pretrained network within the limits has weights in the cache; download some with `convatlas "
            "weights pull`, or add the engine quick"
        )
    return replace(settings, setup_s=time.monotonic() - begin), [replace(each, seed=options.seed) for each in others]


def _name_of(space: str | Template | Any) -> str:
    return (space or DEFAULT_SPACE) if isinstance(space, str) else space.kind.__name__


def _try_out(
    data: str, source: Source, spec: Spec, channels: int, options: SearchOptions, data_options: DataOptions
) -> tuple[ExecutionOptions, Any]:  # fmt: skip
    """Return how steps are executed the fastest, and the preprocessing of the data."""
    with tempfile.TemporaryDirectory(prefix="convatlas-search-") as folder:
        run = prepare_run(
            data, spec, weights="none", recipe=options.recipe, seed=options.seed, out=Path(folder) / "run",
            data_options=data_options, options=RunOptions(diagnostics=False, report=False),
            **cast(RecipeFields, {**options.fields, "epochs": 1}),
        )  # fmt: skip
        shutil.rmtree(Path(folder) / "run")
    _, row = resolve(spec)
    preprocessing = preprocessing_for(source, row.preprocessing, spec, channels, options.seed, data_options)
    return run.config.execution, preprocessing


def _draw(space: SpecSpace, random: np.random.Generator) -> list[Spec]:
    return [space.value(space.decode(codes)) for codes in space.sample(DRAWN, random)]


def _measure(
    drawn: Mapping[float, Sequence[Spec]], hand_made: Sequence[Spec], meter: LatencyMeter, channels: int,
    progress: Progress,
) -> LatencyModel:  # fmt: skip
    """Measure some networks of each width, and the baselines, on this machine, and fit a model to them."""
    number = MEASURED.get(meter.engine, 14)
    specs = [specs[i] for i in range(DRAWN) for specs in drawn.values() if i < len(specs)]
    specs = [*hand_made, *specs][:number]
    return fit_latency_model(specs, meter, channels, progress)


def _choose_width(counted: Mapping[float, Sequence[Counts]], limits: Limits, latency: LatencyModel) -> float:
    """Return the largest width of which enough networks are within the limits."""
    shares = {
        factor: sum(not limits.exceeded(each, latency.predict(each)) for each in counts) / max(1, len(counts))
        for factor, counts in counted.items()
    }
    suitable = [factor for factor, share in shares.items() if share >= MIN_WITHIN]
    if not suitable and max(shares.values()) == 0:
        smallest = min((each for counts in counted.values() for each in counts), key=lambda each: each.macs)
        raise SearchError(
            f"limits: too low for the networks of the space; the smallest of some has {smallest.parameters:,} "
            f"parameters, {smallest.macs:,} MACs and about {1000 * latency.predict(smallest):.2g} ms; raise them, or "
            "choose another space or a smaller resolution"
        )
    return max(suitable, default=max(shares, key=lambda factor: shares[factor]))
