"""The recipe of a run as differences from a recipe with a name, and the command that repeats the run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from convatlas.models.catalog import CATALOG
from convatlas.models.families import inflated
from convatlas.models.families.rcnn import KINDS, FasterRCNN, on_body
from convatlas.tasks.task import Task
from convatlas.train.preparation import spec_for
from convatlas.train.recipe import RECIPES, Recipe
from convatlas.train.settings import DataOptions, RunConfig

OWN_OPTIONS = ("epochs", "batch", "lr")
"""Fields of a recipe that have an option of their own; others are set by --set."""


def nearest_recipe(recipe: Recipe) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """Return the recipe with a name that differs in the fewest fields, and {field: (its value, the run's value)}."""
    plain = recipe.to_plain()
    differences = {name: _differences(known.to_plain(), plain) for name, known in RECIPES.items()}
    name = min(differences, key=lambda name: len(differences[name]))
    return name, differences[name]


def _differences(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    fields = dict.fromkeys((*base, *own))
    return {field: (base.get(field), own.get(field)) for field in fields if base.get(field) != own.get(field)}


def fit_command(config: RunConfig) -> str:
    """Return the command that trains the network of a run again; empty if the network is not in the catalog.

    Its learning rate is the one that was used, also where the learning-rate finder chose it.
    """
    model = _model_words(config)
    if not model or not config.data:
        return ""
    name, changes = nearest_recipe(config.recipe)
    words = ["convatlas", "fit", config.data, *model, "--weights", config.weights or "none"]
    if config.inflate is not None:
        words += ["--inflate", config.inflate]
    words += ["--recipe", name]
    for field, (_, value) in changes.items():
        words += [f"--{field}", f"{value}"] if field in OWN_OPTIONS else ["--set", f"{field}={_field(value)}"]
    words += ["--seed", str(config.seed), *_data_words(config.data_options)]
    if config.execution.threads and not config.execution.adapt_threads:
        words += ["--threads", str(config.execution.threads)]
    return shlex.join(words)


def _model_words(config: RunConfig) -> list[str]:
    """Return the options that choose the network and the task; none if there are no such options."""
    spec = config.spec
    task = ["--task", config.task.short_name] if spec.predicts != Task.predicts else []
    if config.model in CATALOG:
        return ["--model", config.model, *task]
    kind, _, body = config.model.partition("-")
    if isinstance(spec, inflated.Inflated) and body in CATALOG:
        known: dict[str, str | inflated.Inflated] = {kind: kind}
        known |= {name: row.spec for name, row in CATALOG.items() if isinstance(row.spec, inflated.Inflated)}
        for name, network in known.items():
            default = spec_for(inflated.on_body(network, CATALOG[body]), config.data_options)
            if default.replaced({"body": spec.body}) == spec:  # weights may change cells of the body
                return ["--model", name, "--body", body]
        return []
    if kind not in KINDS or body not in CATALOG:
        return []
    chosen = {name: value for name, value in spec.to_plain().items() if name in ("resolution", "max_size", "norm")}
    detectors: dict[str, str | FasterRCNN] = {kind: kind}
    detectors |= {
        name: row.spec
        for name, row in CATALOG.items()
        if isinstance(row.spec, FasterRCNN) and type(row.spec) is KINDS[kind]
    }
    for name, detector in detectors.items():
        if config.task.adapted(on_body(detector, CATALOG[body])).replaced(chosen) == spec:
            return ["--model", name, "--body", body, *task]
    return []


def _field(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float) -> str:
    """Return a number with all of its digits."""
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def _data_words(options: DataOptions) -> list[str]:
    default, words = DataOptions(), []
    if options.resolution is not None:
        words += ["--resolution", str(options.resolution)]
    if options.stem == "cifar":
        words += ["--small-images"]
    if options.channels is not None:
        words += ["--channels", str(options.channels)]
    if options.val_share != default.val_share:
        words += ["--val-share", _number(options.val_share)]
    for name in ("frames", "frame_rate", "clips"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name.replace('_', '-')}", _number(value)]
    if options.group_pattern:
        words += ["--group-pattern", options.group_pattern]
    if options.max_unreadable != default.max_unreadable:
        words += ["--max-unreadable", _number(options.max_unreadable)]
    return words
