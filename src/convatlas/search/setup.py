"""The start of a search: which networks compete, and what this machine can do; everything that `search.json` states."""

from __future__ import annotations

import math
import secrets
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from convatlas.core.choice import Template
from convatlas.core.spec import SMALL, Spec
from convatlas.data.object_tasks import task_named
from convatlas.data.open import open_for_training
from convatlas.data.readers.memory import Data
from convatlas.data.source import Source
from convatlas.errors import SearchError, nearest
from convatlas.models.card import LIBRARIES
from convatlas.models.catalog import CATALOG, resolve
from convatlas.search.catalog_networks import (
    CatalogNetwork,
    find_networks,
    input_side,
    is_small,
    largest_of_families,
)
from convatlas.search.contestant import Contestant, catalog_contestants, hand_baselines, largest_baselines
from convatlas.search.counts import Counts
from convatlas.search.latency import MIN_FITTED, LatencyMeter, LatencyModel
from convatlas.search.latency_files import fit_latency_model
from convatlas.search.limits import Limits, Objective, hard_limits
from convatlas.search.screen import Screen
from convatlas.search.settings import Candidates, SearchSettings
from convatlas.search.spaces import DEFAULT_SPACE, given_space, space_at, stated_resolution
from convatlas.search.standings import promoted
from convatlas.search.supernet import extreme, with_shared_weights
from convatlas.search.supernet_search import SUPERNET
from convatlas.system.cores import count_cores
from convatlas.system.devices import resolve_device
from convatlas.system.locks import HAS_LOCKS, MachineLock
from convatlas.system.progress import Progress
from convatlas.system.quantities import COUNT
from convatlas.tasks.task import Task
from convatlas.train.fit import prepare_run
from convatlas.train.initial_weights import AUTO
from convatlas.train.preparation import check_clip_options, example_networks, preprocessing_for
from convatlas.train.recipe_fields import RecipeFields
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions
from convatlas.train.step import Step

LARGE = 128
"""Resolution of candidates for images of more than 64 pixels."""

FACTORS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)
"""Widths of a named space, of which the largest that suits the limits is taken."""

DRAWN = 24
"""Networks that are drawn for each width."""

MIN_WITHIN: dict[Candidates, float] = {"none": 0.2, "quick": 0.2, "random": 0.2, "supernet": 0.7}
"""Share of them that must be within the limits, and train `least_passes` images in the time of a candidate. The largest
network of a supernet, of which every step is trained, is then not much above them."""

PROBED_S, PROBED_STEPS = 5.0, 12
"""Seconds and steps, at most, in which the speed of a training is measured; the first third is left out."""

MEASURED = {"torch": 30, "compile": 12}
"""Networks whose latency is measured at the start; of engines that need an export, 14."""

SEARCH_SHARE: dict[Candidates, float] = {"none": 0.5, "quick": 0.4, "random": 0.4, "supernet": 0.6}
"""Share of the time for the search, before the finalists are trained."""

TRAINING_SHARE: dict[Candidates, float] = {"none": 0.1, "quick": 0.08, "random": 0.08, "supernet": 0.05}
"""Seconds of a candidate at full fidelity, as a share of the whole time of one worker."""

FOR_ONE_WORKER = 0.5
"""Factor on it for a single worker, which has all cores, and as many networks to train as two."""

MAX_WORKERS = 4
"""Most processes of a search that is told no number: each has the data in memory."""

FIDELITIES = (0.25, 1.0)
"""Shares of the training after which candidates are compared."""

HALVING_MARGIN, OVERHEAD_S = 0.9, 3.0
"""Share of the time of a search among given networks in which they are trained, and seconds of the start, latency and
evaluation of each."""

ALONE_SHARE = 0.02
"""Share of the time of a search in which a single network is trained before the winner is."""

METHODS = {
    "quick": "candidates that two Gaussian processes choose, and hand-made baselines",
    "supernet": "sub-networks of a supernet, and hand-made baselines",
    "random": "random candidates",
    "baselines": "hand-made baselines",
    "transfer": "networks of the catalog with cached pretrained weights",
    "catalog": "networks of the catalog, with cached pretrained weights or random ones",
}
"""What competes in a search."""

DEFAULT_METHODS = ("quick", "transfer")


@dataclass(frozen=True)
class SearchOptions:
    """What a search may be told; see `convatlas search --help`.

    space: the name of one, or a spec with choices. methods: of `METHODS`, at most one of which chooses candidates.
    engine, latency_threads: how the network will be deployed. latency_model: of another machine. workers: processes on
    this machine; None for one per core, at most `MAX_WORKERS`, and a single one with a GPU or a supernet. weights: of
    networks of the catalog: auto, none, or those of a library. task: by its short name; that of the data by default.
    download: allow to download the data.
    """

    space: str | Template | Any = ""
    methods: Sequence[str] = DEFAULT_METHODS
    objective: Objective = "hard"
    engine: str = "torch"
    latency_threads: int = 1
    latency_model: LatencyModel | None = None
    workers: int | None = None
    seed: int = 0
    recipe: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    data_options: DataOptions = field(default_factory=DataOptions)
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    weights: str = AUTO
    task: str | None = None
    download: bool = False
    storage: str | None = None


def set_up(
    data: Data, limits: Limits, time_s: float, options: SearchOptions, *, progress: Progress
) -> tuple[SearchSettings, list[Contestant]]:
    """Measure this machine and return the settings of a search, and the networks that compete with its candidates.

    Raises SearchError if no network is within the limits.
    """
    begin, hard = time.monotonic(), hard_limits(limits, options.objective)
    candidates = _candidates_of(options.methods)
    workers = options.workers or _default_workers(candidates, options.execution.device)
    has_baselines = bool({"quick", "supernet", "baselines"} & set(options.methods))
    has_sizes = candidates != "none" or has_baselines  # networks that are widened or narrowed to the limits
    source = _open(data, options, only_images=has_sizes, progress=progress)
    chosen, data_options = options.data_options, replace(options.data_options, resolution=None)  # the specs have it
    channels = source.channels if chosen.channels is None else chosen.channels
    classes, small = source.task.outputs, source.task.reads == "images" and is_small(input_side(source, chosen))
    resolution = chosen.resolution or stated_resolution(options.space) or (SMALL if small else LARGE)

    def counts_of(spec: Spec) -> Counts:
        return Counts.of(spec, classes=classes, channels=channels)

    # 1. how steps are executed, by a network in the middle; networks of the catalog decide on their own
    middle = space_at(options.space, 0.5, small, resolution).template.first
    most_macs = math.inf  # of a network that trains enough images in the time of a candidate
    device = options.execution.device
    execution = options.execution.replaced({
        "threads": options.execution.threads or max(1, count_cores() // workers),
        "device": resolve_device(device).type if device == "auto" else device,  # all workers: time is compared
    })  # fmt: skip
    if has_sizes:
        execution, image_s = _try_out(data, middle, options, data_options, execution)
        passes_s = image_s * least_passes(len(source.splits["train"]))
        most_macs = _candidate_s(candidates, time_s, workers) / passes_s * counts_of(middle).macs
    _, row = resolve(middle)
    preprocessing = preprocessing_for(source, row.preprocessing, middle, channels, options.seed, data_options)
    meter = LatencyMeter(preprocessing, source.task, options.engine, options.latency_threads)

    # 2. latencies, and with them the width of the space
    space, note, cap, latency = None, "", None, options.latency_model
    if has_sizes:
        drawn = _draw_sizes(options, small, resolution)
        latency = latency or _measure(drawn, largest_baselines(resolution=resolution, small=small), meter, progress)
    if candidates != "none" and latency is not None:
        counted = {factor: [counts_of(spec) for spec in specs] for factor, specs in drawn.items()}
        has_cap = candidates != "supernet" and given_space(options.space) is None  # else the networks are given
        width, timely = _choose_width(
            counted, hard, latency, MIN_WITHIN[candidates], most_macs if has_cap else math.inf
        )  # fmt: skip
        if has_cap:
            cap = int(most_macs) if timely else None
            number = COUNT.format(float(f"{most_macs:.3g}"))
            note = (
                f"of at most {number} MACs, because larger ones learn little in the time" if timely else
                f"which learn little in the time, because few have less than {number} MACs; give it more time"
            )  # fmt: skip
        space = space_at(options.space, width, small, resolution)
    if candidates == "supernet" and space is not None:
        space, left_out = with_shared_weights(space, classes=classes, channels=channels)
        note = _left_out(left_out)

    # 3. the networks that compete with the candidates
    screen = Screen(hard, meter, latency, measures=options.latency_model is None)
    others: list[Contestant] = []
    if {"transfer", "catalog"} & set(options.methods):
        others += _from_catalog(source, screen, options, progress)
    if has_baselines:
        baselines = list(hand_baselines(
            resolution=resolution, small=small, latency_of=screen.latency,
            is_timely=lambda spec: counts_of(spec).macs <= most_macs,
        ))  # fmt: skip
        others = [*_different_names(others, baselines), *baselines]
    if candidates == "supernet" and space is not None:
        largest = space.value(extreme(space, classes=classes, channels=channels, smallest=False))
        first = 0 if workers > 1 else len(others)  # the other workers train baselines meanwhile
        others.insert(first, Contestant(SUPERNET, "supernet", largest))
    if not others and candidates == "none":
        raise SearchError(_none_within(options, limits, source))

    setup_s = time.monotonic() - begin
    settings = SearchSettings(
        data=str(data) if isinstance(data, str | Path) else source.location,
        space=None if space is None else space.template.to_plain(),
        space_name="catalog" if space is None else _name_of(options.space), limits=limits, task=source.task,
        preprocessing=preprocessing, data_options=data_options, train_images=len(source.splits["train"]), time_s=time_s,
        setup_s=setup_s, search_share=SEARCH_SHARE[candidates],
        training_s=_training_s(candidates, time_s, setup_s, len(others), workers),
        fidelities=FIDELITIES, engine=options.engine, latency_threads=options.latency_threads, latency=latency,
        measures=options.latency_model is None, seed=options.seed, objective=options.objective, execution=execution,
        workers=workers, most_macs=cap, recipe=_absolute(options.recipe), fields=dict(options.fields),
        storage=options.storage, candidates=candidates, task_name=options.task, note=note,
        study=f"{source.name}-{secrets.token_hex(4)}",
    )  # fmt: skip
    return settings, [replace(each, seed=options.seed) for each in others]


def _open(data: Data, options: SearchOptions, *, only_images: bool, progress: Progress) -> Source:
    """Return the data of a search; raises SearchError for data that networks cannot be compared on."""
    chosen = options.data_options
    source = open_for_training(
        data, reads="images" if only_images else None if options.task is None else task_named(options.task).reads,
        group_pattern=chosen.group_pattern, val_share=chosen.val_share, download=options.download, progress=progress,
    )  # fmt: skip
    if options.task is not None:
        source = source.for_task(options.task)
    if source.task.predicts != Task.predicts:
        raise SearchError(
            f"{source.name}: a search compares classifiers, and this data has {source.task.predicts}; choose "
            f"{example_networks(source.task.predicts, source.task.reads)} and `convatlas fit`"
        )
    if "val" not in source.splits and not chosen.val_share:
        raise SearchError(f"{source.name}: networks are compared on a val split; set a val share above 0")
    check_clip_options(chosen, source.task.reads)
    return source


def _draw_sizes(options: SearchOptions, small: bool, resolution: int) -> dict[float, list[Spec]]:
    """Return random networks of each width of the space; a space of the user has one."""
    random = np.random.default_rng(options.seed)
    factors = FACTORS if given_space(options.space) is None else (1.0,)
    drawn = {}
    for factor in factors:
        space = space_at(options.space, factor, small, resolution)
        drawn[factor] = [space.value(space.decode(codes)) for codes in space.sample(DRAWN, random)]
    return drawn


def _from_catalog(
    source: Source, screen: Screen, options: SearchOptions, progress: Progress
) -> list[Contestant]:  # fmt: skip
    """Return the largest network of each family of the catalog that is within the limits."""
    chosen, measured = options.data_options, count(1)
    channels = screen.meter.preprocessing.channels
    networks = [
        each for each in find_networks(source, channels, chosen, options.weights)
        if each.weights or "catalog" in options.methods
    ]  # fmt: skip

    def latency_of(network: CatalogNetwork) -> float | None:
        progress("measuring latency", next(measured), len(networks))
        base = CATALOG[network.name].preprocessing
        steps = preprocessing_for(source, base, network.spec, channels, options.seed, chosen)
        return screen.latency(network.spec, steps)

    return catalog_contestants(largest_of_families(networks, latency_of))


def _absolute(recipe: str | None) -> str | None:
    """Return the name of a recipe, or the whole path of its file: workers may start in another directory."""
    return str(Path(recipe).resolve()) if recipe and Path(recipe).suffix else recipe


def _default_workers(candidates: Candidates, device: str) -> int:
    """Return as many workers as there are cores, up to `MAX_WORKERS`, or one fewer if fewer cores are idle then."""
    if candidates == "supernet" or resolve_device(device).type != "cpu" or not HAS_LOCKS:
        return 1
    cores = count_cores()
    most = min(cores, MAX_WORKERS)
    return max(range(max(1, most - 1), most + 1), key=lambda number: (number * (cores // number), number))


def _training_s(candidates: Candidates, time_s: float, setup_s: float, number: int, workers: int) -> float:
    """Return the seconds of a contestant at full fidelity.

    Given networks share the time. A single one is compared with nothing, and trained to know the time of a step.
    """
    if candidates != "none":
        return _candidate_s(candidates, time_s, workers)
    if number == 1:
        return ALONE_SHARE * time_s
    evaluations = math.ceil(number / workers) + math.ceil(promoted(number) / workers)
    training = HALVING_MARGIN * (SEARCH_SHARE[candidates] * time_s - setup_s) - OVERHEAD_S * evaluations
    return max(1.0, halving_s(training, number, workers))


def _candidate_s(candidates: Candidates, time_s: float, workers: int) -> float:
    """Return the seconds of a candidate at full fidelity, or what they would be."""
    is_alone = workers == 1 and candidates != "supernet"
    return TRAINING_SHARE[candidates] * time_s * (FOR_ONE_WORKER if is_alone else 1)


def halving_s(seconds: float, number: int, workers: int = 1) -> float:
    """Return the seconds of a network at full fidelity if successive halving of so many takes the given time."""
    low = FIDELITIES[0]
    return seconds / (math.ceil(number / workers) * low + math.ceil(promoted(number) / workers) * (1 - low))


def _different_names(networks: Sequence[Contestant], others: Sequence[Contestant]) -> list[Contestant]:
    """Return networks of the catalog, with other names where a baseline has the same."""
    taken = {each.name for each in others}
    return [replace(each, name=f"{each.name}-catalog") if each.name in taken else each for each in networks]


def _left_out(options: Mapping[str, Sequence[object]]) -> str:
    texts = [f"{name} {option}" for name, each in options.items() for option in each]
    return f"left out, because they share no weights: {', '.join(texts)}" if texts else ""


def _none_within(options: SearchOptions, limits: Limits, source: Source) -> str:
    """Return the error of a search without candidates, and without other networks within the limits."""
    if set(options.methods) == {"transfer"}:
        return (
            "search: no pretrained network within the limits has weights in the cache; download some with `convatlas "
            "weights pull`, or add the method quick"
        )
    if "catalog" not in options.methods:
        return f"limits: too low for every hand-made baseline, got {limits} for one image; raise them"
    cached = f" with cached {options.weights} weights" if options.weights in LIBRARIES else ""
    fix = ", or download some with `convatlas weights pull`" if cached else ""
    return (
        f"limits: too low for every network of the catalog{cached} on this machine, got {limits} for one "
        f"{source.task.reads[:-1]}; raise them{fix}"
    )


def _candidates_of(methods: Sequence[str]) -> Candidates:
    """Return how candidates are chosen; raises SearchError for a method that is not there, and for two that choose."""
    for name in methods or ("",):
        if name not in METHODS:
            raise SearchError(
                f"method: must be one of {', '.join(METHODS)}, got {name or 'none'}{nearest(name, METHODS)}"
            )
    choosing = [name for name in methods if name in get_args(Candidates)]
    if len(choosing) > 1:
        raise SearchError(f"method: must have one way to choose candidates, got {' and '.join(choosing)}")
    return cast(Candidates, choosing[0]) if choosing else "none"


def _name_of(space: str | Template | Any) -> str:
    return (space or DEFAULT_SPACE) if isinstance(space, str) else space.kind.__name__


def least_passes(images: int) -> int:
    """Return how many images, counted again in each epoch, a candidate should train on until it is compared.

    images: of the train split.
    """
    return min(10 * images, 100_000)


def _try_out(
    data: Data, spec: Spec, options: SearchOptions, data_options: DataOptions, execution: ExecutionOptions
) -> tuple[ExecutionOptions, float]:  # fmt: skip
    """Return how steps of a network are executed the fastest, and the seconds of an image in a step."""
    fields = {"epochs": PROBED_STEPS, "warmup": float(PROBED_STEPS), "head_epochs": 0, "patience": 0}
    with tempfile.TemporaryDirectory(prefix="convatlas-search-") as folder:
        run = prepare_run(
            data, spec, weights="none", recipe=options.recipe, seed=options.seed, out=Path(folder) / "run",
            task=options.task, data_options=data_options, execution=execution,
            options=RunOptions(diagnostics=False, report=False),
            **cast(RecipeFields, {**options.fields, **fields}),
        )  # fmt: skip
        step_s: list[float] = []
        begin = time.perf_counter()
        with closing(MachineLock()) as lock, closing(run.steps()) as events:
            while len(step_s) < PROBED_STEPS and time.perf_counter() - begin < PROBED_S:
                before = time.perf_counter()
                with lock.working():
                    event = next(events, None)
                if event is None:
                    break
                if isinstance(event, Step):
                    step_s.append(time.perf_counter() - before)
        batch = min(run.config.recipe.batch, len(run.dataset.train))
        image_s = statistics.median(step_s[len(step_s) // 3 :]) / batch
        return run.config.execution, image_s


def _measure(
    drawn: Mapping[float, Sequence[Spec]], hand_made: Sequence[Spec], meter: LatencyMeter, progress: Progress
) -> LatencyModel:  # fmt: skip
    """Measure some networks of each width, and the baselines, on this machine, and fit a model to them."""
    number = MEASURED.get(meter.engine, 14)
    specs = [specs[i] for i in range(DRAWN) for specs in drawn.values() if i < len(specs)]
    specs = specs[: max(MIN_FITTED, number - len(hand_made))]
    return fit_latency_model(specs, hand_made, meter, meter.preprocessing.channels, progress)


def _choose_width(
    counted: Mapping[float, Sequence[Counts]], limits: Limits, latency: LatencyModel, min_within: float,
    most_macs: float,
) -> tuple[float, float]:  # fmt: skip
    """Return the largest width of which enough networks are within the limits and have at most so many MACs.

    Also their share, 0 if there are none: then those within the limits that have the fewest MACs are chosen.
    """
    within = {
        factor: [each for each in counts if not limits.exceeded(each, latency.predict(each))]
        for factor, counts in counted.items()
    }
    shares = {factor: len(within[factor]) / max(1, len(counts)) for factor, counts in counted.items()}
    timely = {
        factor: sum(each.macs <= most_macs for each in within[factor]) / max(1, len(counts))
        for factor, counts in counted.items()
    }
    suitable = [factor for factor in counted if timely[factor] >= min_within]
    if not suitable and max(shares.values()) == 0:
        smallest = min((each for counts in counted.values() for each in counts), key=lambda each: each.macs)
        raise SearchError(
            f"limits: too low for the networks of the space; the smallest of some has {smallest.parameters:,} "
            f"parameters, {smallest.macs:,} MACs and about {1000 * latency.predict(smallest):.2g} ms; raise them, or "
            "choose another space or a smaller resolution"
        )
    width = max(suitable, default=max(counted, key=lambda factor: (timely[factor], shares[factor], -factor)))
    return width, timely[width]
