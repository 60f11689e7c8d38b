"""The parts of a training before its first step: task, recipe, data set, preprocessing, network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch

from convatlas.core.choice import Template
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.data.dataset import Dataset
from convatlas.data.object_tasks import task_named, task_predicting
from convatlas.data.rng import derive_key
from convatlas.data.source import Source
from convatlas.errors import DataError, RunError, SpecError, listed
from convatlas.models.card import Variant
from convatlas.models.catalog import CATALOG, adapted, build_fresh
from convatlas.system.progress import Progress
from convatlas.tasks.task import Task
from convatlas.train.recipe import Recipe, fine_tuning, get_recipe
from convatlas.train.regularization import regularize
from convatlas.train.settings import DataOptions
from convatlas.train.step import last_frozen
from convatlas.weights.adapt import load_into
from convatlas.weights.read import Checkpoint


def check_clip_options(options: DataOptions, reads: str) -> None:
    """Raise RunError if options of videos are given for networks that read images."""
    given = [name for name in ("frames", "frame_rate", "clips") if getattr(options, name) is not None]
    if given and reads != "clips":
        raise RunError(f"{listed(given)}: must not be given, because the network reads {reads}, not videos")


def spec_for(spec: Spec, options: DataOptions) -> Spec:
    """Return a network with the stem, the resolution and the frames of the options."""
    check_clip_options(options, spec.reads)
    return adapted(spec, stem=options.stem, resolution=options.resolution, frames=options.frames)


def source_for(source: Source, spec: Spec, model: str, task: str | None = None) -> Source:
    """Return the data for a task that a network can be trained for.

    task: its short name, such as "detect"; None: the data's own task if the network fits it, else that of the network.
    Raises RunError if network and task do not fit, DataError if the data has no targets of the task.
    """
    own, predicts = source.task, spec.predicts
    if own.reads != spec.reads:
        raise RunError(
            f"{model}: reads {spec.reads}, and {source.name} has {own.noun}s; choose "
            f"{example_networks(own.predicts, own.reads)}"
        )
    network_task = task_predicting(predicts, spec.reads)
    chosen = task_named(task) if task is not None else own if own.predicts == predicts else network_task
    if chosen.reads == own.reads and chosen.predicts != predicts:
        raise RunError(
            f"task {task} needs a network for {chosen.predicts}, and {model} is one for {predicts}; choose "
            f"{example_networks(chosen.predicts, chosen.reads)}, or --task {network_task.short_name}"
        )
    if own.predicts != predicts == Task.predicts:
        raise RunError(
            f"{model}: is a network for {predicts}, and {source.name} has {own.predicts}; choose "
            f"{example_networks(own.predicts, own.reads)}"
        )
    return source.for_task(chosen.short_name)


def example_networks(predicts: str, reads: str) -> str:
    """Return the smallest networks of the catalog for a kind of outputs and inputs as text."""
    rows = {name: row.spec for name, row in CATALOG.items() if (row.spec.predicts, row.spec.reads) == (predicts, reads)}
    return " or ".join(sorted(rows, key=lambda name: rows[name].resolution)[:2])


def choose_recipe(
    recipe: str | Recipe | None, row: Variant, *, pretrained: bool, fields: Mapping[str, Any] | None = None
) -> Recipe:
    """Return the recipe of a run: by default that for pretrained weights, or the network's own.

    recipe: a recipe, its name, or a YAML file. fields: new values of its fields.
    Raises RunError for a recipe with choices.
    """
    if recipe is None:
        recipe = fine_tuning(row.spec.predicts) if pretrained else row.recipe
    chosen: Any = get_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = chosen.replaced(fields or {})
    if isinstance(chosen, Template):
        raise RunError(f"recipe: {next(iter(chosen.choices))} has choices; give it one value")
    return cast(Recipe, chosen)


def check_recipe(recipe: Recipe, task: Task) -> None:
    """Raise SpecError, in one line, for fields of a recipe that the task cannot use."""
    values, defaults = recipe.to_plain(), Recipe().to_plain()
    used = [
        f"{name}={values[name]}" for name in values if name in task.unused_fields and values[name] != defaults[name]
    ]
    if used:
        raise SpecError(
            f"recipe: {listed(used)} cannot be used for {task.name}; leave out what was set, or choose --recipe "
            f"{fine_tuning(task.predicts)}"
        )


def load_data(
    source: Source,
    preprocessing: Preprocessing,
    recipe: Recipe,
    seed: int,
    options: DataOptions,
    progress: Progress | None = None,
) -> Dataset:
    """Return the prepared data set; raises DataError if there is no split to evaluate on."""
    dataset = source.load(
        preprocessing, seed=seed, val_share=options.val_share, fold=options.fold,
        for_random_crop=recipe.augment.min_crop_area > 0, for_random_clips=preprocessing.sampling is not None,
        max_unreadable=options.max_unreadable, progress=progress,
    )  # fmt: skip
    if dataset.val is None and dataset.test is None:
        raise DataError(f"{source.name}: there is no val or test split to evaluate on; set a val share above 0")
    return dataset


def preprocessing_for(
    source: Source, base: Preprocessing, spec: Spec, channels: int, seed: int, options: DataOptions
) -> Preprocessing:
    """Return `base` for the resolution and frames of a network, and another number of channels.

    Mean and deviation are those of the training images, if they have more than 8 bits, or other channels than grayscale
    and RGB.
    """
    steps = _sampled(base, spec, options).for_resolution(spec.resolution).for_channels(channels)
    statistics = source.statistics(channels, seed=seed, val_share=options.val_share, fold=options.fold)
    if statistics is None:
        return steps
    if steps.is_whole:  # the network standardizes them
        return dataclasses.replace(steps, window=statistics.window)
    return dataclasses.replace(steps, window=statistics.window, mean=statistics.mean, std=statistics.std)


def _sampled(steps: Preprocessing, spec: Spec, options: DataOptions) -> Preprocessing:
    """Return the steps with the clips of the options, for networks that read clips."""
    if steps.sampling is None:
        return steps
    changes = {"rate": options.frame_rate, "clips": options.clips}
    given = {name: value for name, value in changes.items() if value is not None}
    sampling = steps.sampling.replaced({**given, "frames": spec.input_shape(1)[1]})
    return dataclasses.replace(steps, sampling=sampling)


def build_network(
    spec: Spec, task: Task, channels: int, recipe: Recipe, seed: int, weights: Checkpoint | None = None,
    given: Network | None = None,
) -> Network:  # fmt: skip
    """Return the network that training starts from; its initial weights are a function of the seed.

    given: the network itself, with its weights. The order matters: weights are drawn, then overwritten by pretrained
    ones, then layers for regularization are added.
    """
    if given is not None:
        network = given
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_key(seed, 0, 8))
            network = build_fresh(spec, classes=task.outputs, channels=channels)
    if weights:
        fresh_head = weights.class_names != task.classes
        load_into(network, spec, weights, num_classes=task.outputs, fresh_head=fresh_head)
    regularize(network, dropout=recipe.dropout, drop_path=recipe.drop_path)
    last_frozen(network, recipe)
    return network
