"""Model selection: the networks of the catalog within a budget, compared by successive halving on the data."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import SMALL
from convatlas.data.dataset import Dataset
from convatlas.data.decode.headers import read_header
from convatlas.data.object_tasks import task_named
from convatlas.data.open import open_for_training
from convatlas.data.readers.memory import Data
from convatlas.data.source import Source
from convatlas.errors import DataError, RunError, SpecError, WeightsError, brief
from convatlas.models.card import LIBRARIES
from convatlas.models.catalog import CATALOG, FAMILIES, Stem, adapted, build_fresh
from convatlas.system.autotune import time_repeatedly
from convatlas.system.devices import resolve_device
from convatlas.system.progress import Progress, progress_callback
from convatlas.tasks.task import Task
from convatlas.train.candidates import Budget, Candidate, ModelSelection
from convatlas.train.cpu.execution import process_settings
from convatlas.train.distributed import init_distributed
from convatlas.train.initial_weights import AUTO, NONE, cached_weights
from convatlas.train.preparation import (
    check_clip_options,
    choose_recipe,
    example_networks,
    load_data,
    preprocessing_for,
)
from convatlas.train.recipe import Recipe
from convatlas.train.recipe_fields import RecipeFields, check_fields
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions
from convatlas.train.successive_halving import successive_halving
from convatlas.train.trial import NetworkTrial
from convatlas.weights.open import open_weights

MAX_SMALL_SIDE = 64
"""Shorter side in pixels up to which images are small: they get networks and stems for small images."""

MAX_TRIALS = 8
"""Maximum number of networks that are trained, each of another family."""

PROBED_IMAGES = 50
"""Number of training images whose size is read."""


_OF_FIT = ("out", "options", "find_lr", "on_event")
_NOTHING_KEPT = "select_model trains nothing that is kept; give it to fit, with the selected network"


def select_model(
    data: Data,
    budget: Budget,
    *,
    task: str | None = None,
    weights: str | None = AUTO,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    download: bool = False,
    search_time: float = 300.0,
    data_options: DataOptions | None = None,
    execution: ExecutionOptions | None = None,
    progress: Progress | bool = True,
    **fields: Unpack[RecipeFields],
) -> ModelSelection:
    """Find the networks of the catalog within a budget on this machine, and compare them by training on the data.

    The network with the most multiply-adds of each family is trained; of more than eight, those with the best reported
    accuracy. Successive halving gives each rung an equal share of the time and keeps the better half.
    weights: "auto": each network starts from its published weights if they are cached, or from imported ones, else
        from random weights. "none": all start from random weights. "torchvision" or "timm": only networks with cached
        weights of this library, which they start from.
    recipe, fields: as for `fit`; epochs and schedule are not used.
    download: allow to download the data set; weights are never downloaded.
    search_time: seconds of training in total.
    progress: a callback, True for a progress bar in terminals and notebooks, or False.
    Raises RunError if no network is within the budget, and in distributed training.
    """
    check_fields(select_model, fields, dict.fromkeys((*_OF_FIT, *RunOptions.hints()), _NOTHING_KEPT))
    data_options, execution = data_options or DataOptions(), execution or ExecutionOptions()
    weights = NONE if weights is None else weights
    if weights not in (AUTO, NONE, *LIBRARIES):
        raise RunError(f"weights: must be {', '.join((AUTO, NONE, *LIBRARIES))} for a model selection, got {weights}")
    device = resolve_device(execution.device)
    if init_distributed(device).world_size > 1:
        raise RunError("model selection runs in one process; run it first, then train its choice with torchrun")
    retain_malloc = execution.retain_malloc and device.type == "cpu"
    settings = process_settings(threads=execution.threads, retain_malloc=retain_malloc)
    with settings, progress_callback(progress) as report:
        source = open_for_training(
            data, reads=task_named(task).reads if task else None, group_pattern=data_options.group_pattern,
            val_share=data_options.val_share, download=download, progress=report,
        )  # fmt: skip
        check_clip_options(data_options, source.task.reads)
        if (predicts := (task_named(task) if task else source.task).predicts) != Task.predicts:
            raise RunError(
                f"{source.name}: a model selection compares classifiers, and this data has {predicts}; choose "
                f"{example_networks(predicts, source.task.reads)}"
            )
        channels = source.channels if data_options.channels is None else data_options.channels
        candidates = list(find_candidates(source, channels, budget, data_options, weights))
        candidates = measure_latency(candidates, source, channels, budget, device, report)
        if not candidates:
            cached = f" with cached {weights} weights" if weights in LIBRARIES else ""
            fix = ", or download some with `convatlas weights pull`" if weights in LIBRARIES else ""
            raise RunError(
                f"budget: too low for every network of the catalog{cached} on this machine, got {budget} for one "
                f"{source.task.reads[:-1]}; raise it{fix}"
            )
        finalists = choose_finalists(candidates)
        search = _Search(source, channels, recipe, fields, seed, device, data_options, execution)
        selection = search.run(finalists, search_time, report)
    names = {candidate.name for candidate in selection.candidates}
    others = sorted((each for each in candidates if each.name not in names), key=lambda each: each.latency_s)
    return dataclasses.replace(selection, candidates=(*selection.candidates, *others))


def input_side(source: Source, options: DataOptions) -> int:
    """Return the resolution of the options, or the median of the shorter sides of some training images, in pixels."""
    if options.resolution is not None:
        return options.resolution
    train = source.splits["train"]
    if train.pixels is not None:
        return round(statistics.median(map(min, train.sizes)))
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
    source: Source, channels: int, budget: Budget, options: DataOptions, weights: str
) -> Iterator[Candidate]:
    """Yield the networks for images of this size whose parameters and multiply-adds are within the budget."""
    small_images = source.task.reads == "images" and input_side(source, options) <= MAX_SMALL_SIDE
    for family, rows in FAMILIES.items():
        for name, row in rows.variants.items():
            if row.recipe != "default" or not type(source.task).fits(row.spec):
                continue
            for_small_images = row.spec.reads == "images" and row.spec.resolution <= MAX_SMALL_SIDE
            if for_small_images and not small_images:
                continue
            needs_stem = small_images and not for_small_images
            stem: Stem = "cifar" if needs_stem or options.stem == "cifar" else "default"
            resolution = options.resolution or (SMALL if needs_stem else row.spec.resolution)
            try:
                spec = adapted(row.spec, stem=stem, resolution=resolution, frames=options.frames)
                network = build_fresh(spec, classes=source.task.outputs, channels=channels, device="meta")
            except SpecError:
                continue  # the family has no stem for small images, or is too deep for the resolution
            total = cost(network)
            if total.parameters > budget.params or total.macs > budget.macs:
                continue
            library = weights if weights in LIBRARIES else None
            initial = "" if weights == NONE else cached_weights(spec, network=name, stem=stem, library=library)
            if initial or library is None:
                yield Candidate(
                    name, family, stem, resolution, total.parameters, total.macs, weights=initial, frames=options.frames
                )


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
    fields: RecipeFields
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
        baseline = best.task.baseline(best.val.targets)
        return ModelSelection(tuple(ranked), metric, halving.rung_seconds, baseline)

    def _start(self, candidate: Candidate, datasets: dict[Preprocessing, Dataset], progress: Progress) -> NetworkTrial:
        """Start a trial; candidates with the same preprocessing share a prepared data set."""
        row = CATALOG[candidate.name]
        recipe = choose_recipe(self.recipe, row, pretrained=bool(candidate.weights), fields=self.fields)
        checkpoint, spec = None, candidate.spec
        if candidate.weights:
            checkpoint = open_weights(candidate.weights, spec, name=candidate.name, row=row)
            spec = checkpoint.spec_for(spec)
        base = checkpoint.preprocessing if checkpoint else row.preprocessing
        preprocessing = preprocessing_for(self.source, base, spec, self.channels, self.seed, self.data_options)
        if preprocessing not in datasets:
            datasets[preprocessing] = load_data(
                self.source, preprocessing, recipe, self.seed, self.data_options, progress
            )
        return NetworkTrial(
            spec, datasets[preprocessing], preprocessing, recipe, seed=self.seed, device=self.device,
            execution=self.execution, checkpoint=checkpoint,
        )  # fmt: skip
