"""Train a network: fit and resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.data.dataset import Dataset
from convatlas.data.open import find
from convatlas.data.source import Source
from convatlas.draw.charts import draw_lr_finder
from convatlas.errors import DataError, RunError, SpecError
from convatlas.models.catalog import adapted, build_fresh, reads_clips, resolve
from convatlas.system.devices import device_named
from convatlas.system.files import write_text
from convatlas.system.progress import Progress
from convatlas.tasks.classification.losses import loss_for
from convatlas.train.checkpoint import load_checkpoint
from convatlas.train.cpu import execution as execution_module
from convatlas.train.cpu import fused_norm
from convatlas.train.distributed import init_distributed
from convatlas.train.recipe import Recipe, usual
from convatlas.train.recipe import recipe as recipe_named
from convatlas.train.run import Run, Watch, _versions
from convatlas.train.run_folder import (
    CHECKPOINT,
    CONFIG,
    RATES,
    UNREADABLE,
    _cleared_if_refused,
    new_folder,
    write_table,
)
from convatlas.train.settings import Config, Settings
from convatlas.weights.open import open_weights


def load(
    source: Source, preprocessing: Preprocessing, recipe: Recipe, seed: int, settings: Settings,
    progress: Progress | None,
) -> Dataset:  # fmt: skip
    """Return the data set, prepared; raises DataError if there is nothing to measure on."""
    dataset = source.load(
        preprocessing, seed=seed, val_share=settings.val_share, fold=settings.fold, for_random_crop=recipe.augment.min_crop_area > 0,
        max_unreadable=settings.max_unreadable, progress=progress,
    )  # fmt: skip
    if dataset.val is None and dataset.test is None:
        raise DataError(f"{source.name}: without val and test there is nothing to measure on; set a val share above 0")
    return dataset


def fitted(recipe: Recipe, source: Source) -> Recipe:
    """Return the recipe with the loss that goes with the data; raises SpecError if its own does not."""
    return dataclasses.replace(recipe, loss=loss_for(recipe.loss, several=source.several))


def preprocessing_for(
    source: Source, usual: Preprocessing, size: int, channels: int, seed: int, settings: Settings
) -> Preprocessing:
    """Return a network's usual preprocessing for an input of `size` pixels, and for what the training images hold."""
    steps = usual.for_size(size).for_channels(channels)
    held = source.statistics(channels, seed=seed, val_share=settings.val_share, fold=settings.fold)
    return dataclasses.replace(steps, window=held.window, mean=held.mean, std=held.std) if held else steps


def start(
    data: str | Path,
    model: str | Spec,
    *,
    weights: str | Path | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Settings | None = None,
    find_lr: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Prepare data, network and folder of a new run, without training yet; see `fit`.

    find_lr: replace the recipe's learning rate by one that a short search finds; the search is kept in the run's
        folder.
    """
    settings = settings or Settings()
    if not 0 <= seed < 2**32:
        raise RunError(f"seed: a whole number from 0 to {2**32 - 1}, not {seed}")
    name, row = resolve(model)
    if not isinstance(recipe, Recipe):
        recipe = recipe_named(recipe or usual(row.recipe, pretrained=weights is not None))
    spec = adapted(row.spec, stem=settings.stem, resolution=settings.size)
    if reads_clips(spec):
        raise RunError(f"{name}: reads clips; training on clips is not there yet, choose a network for images")
    device = device_named(settings.device)
    distributed = init_distributed(device)
    threads = settings.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    given = open_weights(weights, spec, name=name, row=row) if weights is not None else None
    source = find(data, download=settings.download, progress=progress)
    recipe = fitted(recipe, source)
    channels = source.channels if settings.channels is None else settings.channels
    counted = build_fresh(spec, classes=len(source.classes), channels=channels, device="meta")
    kernels = settings.kernels and distributed.world_size == 1
    if device.type == "cpu" and kernels:
        fused_norm.prepare(counted)
    usually = given.preprocessing if given else row.preprocessing
    preprocessing = preprocessing_for(source, usually, spec.resolution, channels, seed, settings)
    dataset = distributed.rank0_first(lambda told: load(source, preprocessing, recipe, seed, settings, told), progress)
    way = None if not distributed.is_main else execution_module.choose(
        spec, classes=len(source.classes), channels=channels, batch=recipe.micro_batch or recipe.batch, device=device,
        layout=settings.layout, precision=settings.precision, compiled=settings.compiled, kernels=kernels,
    ).execution  # fmt: skip
    way = distributed.broadcast(way)
    folder = distributed.broadcast(new_folder(out, source.name, name) if distributed.is_main else None)
    config = Config(
        data=source.location,
        model=name,
        weights="" if weights is None else str(weights),
        spec=spec,
        preprocessing=preprocessing,
        recipe=recipe,
        seed=seed,
        settings=dataclasses.replace(
            settings, threads=threads, device=device.type if settings.device == "auto" else settings.device,
            layout=way.layout, precision=way.precision,
        ),
        classes=source.classes,
        fingerprint=dataset.fingerprint(),
        versions=_versions(device, way, counted),
    )  # fmt: skip
    with _cleared_if_refused(folder, distributed):
        run = Run(folder, config, dataset, given, distributed)
        if find_lr:
            rates = run.find_lr(progress)
            config = dataclasses.replace(config, recipe=dataclasses.replace(recipe, lr=rates.chosen))
            run = Run(folder, config, dataset, given, distributed)
            draw_lr_finder(rates.rates, rates.losses, rates.chosen, folder / RATES)
        if distributed.is_main:
            write_text(folder / CONFIG, json.dumps(config.to_plain(), indent=2, ensure_ascii=False) + "\n")
    if distributed.is_main and dataset.unreadable:
        write_table(folder / UNREADABLE, [dataclasses.asdict(unreadable) for unreadable in dataset.unreadable])
    if given:  # so that going on does not need the file of the weights
        run._save()
    return run


def reopen(folder: str | Path, *, progress: Progress | None = None) -> Run:
    """Open a run where its last checkpoint stands, at step 0 before the first one.

    Raises RunError if the folder is no run, the data changed, or the checkpoint is damaged.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise RunError(f"{folder}: not a run (there is no {CONFIG})")
    try:
        config = Config.from_plain(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, SpecError) as error:
        raise RunError(f"{path}: damaged: {error}") from error
    source = find(config.data, progress=progress)
    distributed = init_distributed(device_named(config.settings.device))
    dataset = distributed.rank0_first(
        lambda told: load(source, config.preprocessing, config.recipe, config.seed, config.settings, told), progress
    )
    if dataset.fingerprint() != config.fingerprint:
        raise RunError(f"{config.data}: the data changed since {folder} began; bring it back, or start a new run")
    run = Run(folder, config, dataset, distributed=distributed)
    if (folder / CHECKPOINT).exists():
        run.state = load_checkpoint(folder / CHECKPOINT, run.network, run.optimizer, run.average)
    elif config.weights:
        raise RunError(f"{folder}: its checkpoint is gone, and with it the weights it began from; start a new run")
    return run


def _drive(run: Run, watch: Watch | None) -> Run:
    for event in run.steps():
        if watch:
            watch(event)
    return run


def fit(
    data: str | Path,
    model: str | Spec,
    *,
    weights: str | Path | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Settings | None = None,
    watch: Watch | None = None,
) -> Run:
    """Train a network on a data set and seal the best weights into `<run>/model.safetensors`.

    data: a data set by name, a folder, a table of images, or arrays (see docs/data.md).
    model: a name of the catalog, or a spec of one of its families.
    weights: where to begin, as for `convatlas.build`; fresh ones where left out. Other classes get a fresh head.
    recipe: a Recipe or the name of one; the network's own, or "finetune" with weights, where left out.
    seed: decides initial weights, order, augmentation and missing splits.
    out: the run's folder, new or empty; runs/<data>-<model> where left out.
    watch: called with every Step and with each epoch's row of metrics.
    """
    return _drive(start(data, model, weights=weights, recipe=recipe, seed=seed, out=out, settings=settings), watch)


def resume(folder: str | Path, *, watch: Watch | None = None) -> Run:
    """Go on with a run that was stopped; the result is the one of a run that never was (bit for bit on CPU).

    A finished run is measured again, from its model file.
    """
    run = reopen(folder)
    if run.state.finished:
        run.finish()
    return _drive(run, watch)
