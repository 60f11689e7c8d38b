"""Model selection: the networks of the catalog within a budget, compared by successive halving on the data."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import SMALL, Spec
from convatlas.data.dataset import Dataset
from convatlas.data.decode.headers import read_header
from convatlas.data.open import open_data
from convatlas.data.source import Source
from convatlas.errors import DataError, RunError, SpecError, WeightsError, brief
from convatlas.models.card import LIBRARIES
from convatlas.models.catalog import CATALOG, FAMILIES, Stem, adapted, build_fresh, reads_clips
from convatlas.system.autotune import time_repeatedly
from convatlas.system.devices import resolve_device
from convatlas.system.progress import Progress, progress_callback
from convatlas.train.cpu.execution import process_settings
from convatlas.train.distributed import init_distributed
from convatlas.train.fit import choose_recipe, load_data, preprocessing_for
from convatlas.train.recipe import Recipe
from convatlas.train.run_folder import write_table
from convatlas.train.settings import DataOptions, ExecutionOptions
from convatlas.train.successive_halving import successive_halving
from convatlas.train.trial import NetworkTrial
from convatlas.weights.open import open_weights
from convatlas.weights.pretrained import list_weights

MAX_SMALL_SIDE = 64
"""Shorter side in pixels up to which images are small: they get networks and stems for small images."""

CANDIDATES = "candidates.csv"
"""File in the run directory of the best network that lists all candidates."""

MAX_TRIALS = 8
"""Maximum number of networks that are trained, each of another family."""

PROBED_IMAGES = 50
"""Number of training images whose size is read."""


@dataclass(frozen=True)
class Budget:
    """Upper limits for one image: latency in seconds, parameters, multiply-adds. At least one must be finite."""

    latency_s: float = math.inf
    params: float = math.inf
    macs: float = math.inf

    def __post_init__(self) -> None:
        limits = dataclasses.asdict(self)
        for name, limit in limits.items():
            if not limit > 0:
                raise SpecError(f"Budget: {name} must be a number > 0, got {limit}")
        if min(limits.values()) == math.inf:
            raise SpecError(f"Budget: one of {', '.join(limits)} must be given")


@dataclass(frozen=True)
class Candidate:
    """A network within the budget, with the input that it would be trained with.

    params, macs: for one image. latency_s: lower quartile of the seconds for one image on this machine.
    weights: "library:tag" of the pretrained weights, or empty. scores: on val after each of its rungs
    in the search. error: why it could not be trained, or empty.
    """

    name: str
    family: str
    stem: Stem
    resolution: int
    params: int
    macs: int
    latency_s: float = math.nan
    weights: str = ""
    scores: tuple[float, ...] = ()
    error: str = ""

    @property
    def spec(self) -> Spec:
        return adapted(CATALOG[self.name].spec, stem=self.stem, resolution=self.resolution)

    @property
    def reported_accuracy(self) -> float:
        """The best top-1 accuracy on ImageNet, in percent, that is reported for published weights; 0 if none is."""
        metrics = [weights.reported_metrics.items() for weights in list_weights(self.name)]
        return max((value for items in metrics for name, value in items if name.endswith("acc@1")), default=0.0)


@dataclass(frozen=True)
class ModelSelection:
    """The networks within a budget: those that were trained, best first, then the others by latency.

    metric: name of the score, empty if only one network was left and none was trained. rung_seconds: training time per
    network up to the end of each rung. chance_score: upper bound (two standard deviations) of the score that constant
    predictions reach on the evaluated images.
    """

    candidates: tuple[Candidate, ...]
    metric: str = ""
    rung_seconds: tuple[float, ...] = ()
    chance_score: float = 0.0

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    @property
    def conclusive(self) -> bool:
        """Whether the best network is better than chance, or the only candidate."""
        return not self.best.scores or self.best.scores[-1] > self.chance_score

    @property
    def warning(self) -> str:
        """What to do if the search is inconclusive; empty if it is conclusive."""
        if self.conclusive:
            return ""
        return (
            f"search inconclusive: no candidate is better than chance ({self.chance_score:.1%}) after "
            f"{self.rung_seconds[-1]:.0f} s; increase --search-time, use --weights, or name a network"
        )

    def write(self, path: Path) -> None:
        """Write all candidates as CSV."""
        rows = [dataclasses.asdict(each) | {"scores": " ".join(map(str, each.scores))} for each in self.candidates]
        write_table(path, rows)

    def data_options(self, options: DataOptions | None = None) -> DataOptions:
        """Return options for a run with the best network: stem and resolution are replaced."""
        return dataclasses.replace(options or DataOptions(), stem=self.best.stem, resolution=self.best.resolution)

    def __repr__(self) -> str:
        lines = [f"best of {len(self.candidates)} networks: {self.best.name}"]
        for each in self.candidates[:20]:
            scores = each.error or ", ".join(f"{score:.1%}" for score in each.scores)
            lines.append(
                f"  {each.name:<24} {each.resolution:>4} px {each.params / 1e6:>7.2f} M params "
                f"{each.macs / 1e6:>8.1f} M MACs {1000 * each.latency_s:>7.1f} ms  {scores}".rstrip()
            )
        return "\n".join([*lines, *([self.warning] if self.warning else [])])


def select_model(
    data: str | Path,
    budget: Budget,
    *,
    weights: str | None = None,
    recipe: str | Recipe | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    search_time: float = 300.0,
    data_options: DataOptions | None = None,
    execution: ExecutionOptions | None = None,
    progress: Progress | bool = True,
) -> ModelSelection:
    """Find the networks of the catalog within a budget on this machine, and compare them by training on the data.

    The network with the most multiply-adds of each family is trained; of more than eight, those with the best reported
    accuracy. Successive halving gives each rung an equal share of the time and keeps the better half.
    weights: "torchvision" or "timm": only networks with cached weights of this library, which they start from.
    recipe, overrides: as for `fit`; epochs and schedule are not used.
    search_time: seconds of training in total.
    progress: a callback, True for a progress bar in terminals and notebooks, or False.
    Raises RunError if no network is within the budget, and in distributed training.
    """
    data_options, execution = data_options or DataOptions(), execution or ExecutionOptions()
    if weights not in (None, *LIBRARIES):
        raise RunError(f"weights: must be {' or '.join(LIBRARIES)} for a model selection, got {weights}")
    device = resolve_device(execution.device)
    if init_distributed(device).world_size > 1:
        raise RunError("model selection runs in one process; run it first, then train its choice with torchrun")
    retain_malloc = execution.retain_malloc and device.type == "cpu"
    settings = process_settings(threads=execution.threads, retain_malloc=retain_malloc)
    with settings, progress_callback(progress) as report:
        source = open_data(data, download=data_options.download, progress=report)
        channels = source.channels if data_options.channels is None else data_options.channels
        candidates = list(find_candidates(source, channels, budget, data_options, weights))
        candidates = measure_latency(candidates, source, channels, budget, device, report)
        if not candidates:
            cached = f" with cached {weights} weights" if weights else ""
            fix = ", or download some with `convatlas weights pull`" if weights else ""
            raise RunError(f"budget: too low for every network of the catalog{cached} on this machine; raise it{fix}")
        finalists = choose_finalists(candidates)
        search = _Search(source, channels, recipe, overrides or {}, seed, device, data_options, execution)
        selection = search.run(finalists, search_time, report)
    names = {candidate.name for candidate in selection.candidates}
    others = sorted((each for each in candidates if each.name not in names), key=lambda each: each.latency_s)
    return dataclasses.replace(selection, candidates=(*selection.candidates, *others))


def _median_short_side(source: Source) -> int:
    """Return the median of the shorter sides of some training images, in pixels."""
    train = source.splits["train"]
    if train.pixels is not None:
        return min(train.pixels.shape[-2:])
    sides = []
    for name in train.names[:PROBED_IMAGES]:
        try:
            sides.append(min(read_header(Path(name)).size))
        except DataError:
            continue
    if not sides:
        raise DataError(f"{source.location}: none of the first {PROBED_IMAGES} images is readable")
    return int(statistics.median(sides))


def find_candidates(
    source: Source, channels: int, budget: Budget, options: DataOptions, library: str | None
) -> Iterator[Candidate]:
    """Yield the networks for images of this size whose parameters and multiply-adds are within the budget."""
    side = _median_short_side(source) if options.resolution is None else options.resolution
    small_images = side <= MAX_SMALL_SIDE
    for family, rows in FAMILIES.items():
        for name, row in rows.variants.items():
            if reads_clips(row.spec) or row.recipe != "default":
                continue
            for_small_images = row.spec.resolution <= MAX_SMALL_SIDE
            if for_small_images and not small_images:
                continue
            needs_stem = small_images and not for_small_images
            stem: Stem = "cifar" if needs_stem or options.stem == "cifar" else "default"
            resolution = options.resolution or (SMALL if needs_stem else row.spec.resolution)
            weights = "" if library is None else _cached_weights(name, library)
            if weights is None:
                continue
            try:
                spec = adapted(row.spec, stem=stem, resolution=resolution)
                network = build_fresh(spec, classes=source.task.outputs, channels=channels, device="meta")
            except SpecError:
                continue  # the family has no stem for small images, or is too deep for the resolution
            total = cost(network)
            if total.parameters <= budget.params and total.macs <= budget.macs:
                yield Candidate(name, family, stem, resolution, total.parameters, total.macs, weights=weights)


def _cached_weights(name: str, library: str) -> str | None:
    """Return "library:tag" of a network's best cached weights, or None."""
    try:
        return next((f"{each.library}:{each.tag}" for each in list_weights(name, library) if each.cached_file), None)
    except WeightsError:
        return None


@torch.inference_mode()
def measure_latency(
    candidates: Sequence[Candidate], source: Source, channels: int, budget: Budget, device: torch.device,
    progress: Progress | None = None,
) -> list[Candidate]:  # fmt: skip
    """Return the candidates whose latency for one image is within the budget, with their latency."""
    within = []
    for done, candidate in enumerate(sorted(candidates, key=lambda each: each.macs), 1):
        network = build_fresh(candidate.spec, classes=source.task.outputs, channels=channels).to(device).eval()
        image = torch.zeros(1, *network.input_shape, device=device)
        seconds = time_repeatedly(
            partial(_run_and_wait, network, image), seconds=0.3, min_runs=8, max_runs=50, max_run_s=2 * budget.latency_s
        )
        latency = statistics.quantiles(seconds, n=4)[0]  # other processes slow down some of the runs
        if latency <= budget.latency_s:
            within.append(dataclasses.replace(candidate, latency_s=latency))
        if progress:
            progress("measuring latency", done, len(candidates))
    return within


def _run_and_wait(network: Network, image: Tensor) -> None:
    network(image).sum().item()  # waits for the device


def choose_finalists(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the largest network of each family, at most `MAX_TRIALS`: those with the best reported accuracy."""
    largest = {each.family: each for each in sorted(candidates, key=lambda each: each.macs)}
    return sorted(largest.values(), key=lambda each: (-each.reported_accuracy, -each.macs))[:MAX_TRIALS]


@dataclass(frozen=True)
class _Search:
    """The arguments that all trials of a model selection share."""

    source: Source
    channels: int
    recipe: str | Recipe | None
    overrides: Mapping[str, Any]
    seed: int
    device: torch.device
    data_options: DataOptions
    execution: ExecutionOptions

    def run(self, candidates: Sequence[Candidate], seconds: float, progress: Progress) -> ModelSelection:
        """Train the candidates and return them, best first; raises RunError if none can be trained."""
        if len(candidates) == 1:
            return ModelSelection(tuple(candidates))
        datasets: dict[Preprocessing, Dataset] = {}
        trained: list[Candidate] = []
        trials: list[NetworkTrial] = []
        unsuitable: list[Candidate] = []
        for done, candidate in enumerate(candidates, 1):
            try:
                trials.append(self._start(candidate, datasets, progress))
                trained.append(candidate)
            except (SpecError, WeightsError) as error:  # such as stochastic depth without residual branches
                unsuitable.append(dataclasses.replace(candidate, error=brief(error)))
            progress("preparing candidates", done, len(candidates))
        halving = successive_halving(trials, seconds, progress=progress)
        ranked = [
            dataclasses.replace(trained[i], scores=halving.records[i].scores, error=halving.records[i].error)
            for i in halving.ranking
        ] + unsuitable
        if ranked[0].error:
            raise RunError(f"no candidate could be trained; {ranked[0].name}: {ranked[0].error}")
        best = trials[halving.ranking[0]]
        metric = (best.result.headline_name or best.result.headline) if best.result else ""
        chance = best.task.chance_score(best.val.targets)
        return ModelSelection(tuple(ranked), metric, halving.rung_seconds, chance)

    def _start(self, candidate: Candidate, datasets: dict[Preprocessing, Dataset], progress: Progress) -> NetworkTrial:
        """Start a trial; candidates with the same preprocessing share a prepared data set."""
        row = CATALOG[candidate.name]
        recipe = choose_recipe(
            self.recipe, row, pretrained=bool(candidate.weights), overrides=self.overrides
        )  # fmt: skip
        checkpoint, spec = None, candidate.spec
        if candidate.weights:
            checkpoint = open_weights(candidate.weights, spec, name=candidate.name, row=row)
            spec = checkpoint.spec_for(spec)
        base = checkpoint.preprocessing if checkpoint else row.preprocessing
        preprocessing = preprocessing_for(
            self.source, base, candidate.resolution, self.channels, self.seed, self.data_options
        )
        if preprocessing not in datasets:
            datasets[preprocessing] = load_data(
                self.source, preprocessing, recipe, self.seed, self.data_options, progress
            )
        return NetworkTrial(
            spec, datasets[preprocessing], preprocessing, recipe, seed=self.seed, device=self.device,
            execution=self.execution, checkpoint=checkpoint,
        )  # fmt: skip
