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
from convatlas.draw.charts import draw_rates
from convatlas.errors import DataError, RunError, SpecError
from convatlas.models.catalog import adapted, grow, reads_clips, resolve
from convatlas.system.devices import device_named
from convatlas.system.files import write_text
from convatlas.system.progress import Progress
from convatlas.tasks.classification.losses import loss_for
from convatlas.train.checkpoint import load_checkpoint
from convatlas.train.cpu import execution as computing
from convatlas.train.cpu import fused_norm
from convatlas.train.distributed import joined
from convatlas.train.recipe import Recipe, usual
from convatlas.train.recipe import recipe as recipe_named
from convatlas.train.run import Run, Watch, _versions
from convatlas.train.run_folder import BROKEN, CHECKPOINT, CONFIG, RATES, _cleared_if_refused, new_folder, write_table
from convatlas.train.settings import Config, Settings
from convatlas.weights.open import opened


def load(
    source: Source, preprocessing: Preprocessing, recipe: Recipe, seed: int, settings: Settings,
    progress: Progress | None,
) -> Dataset:  # fmt: skip
    """Return the data set, prepared; raises DataError if there is nothing to measure on."""
    dataset = source.load(
        preprocessing, seed=seed, val_share=settings.val_share, fold=settings.fold, roomy=recipe.augment.crop > 0,
        max_broken=settings.max_broken, progress=progress,
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
    """Return a network's usual preprocessing for an input of `size` pixels, and for what the training pictures hold."""
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
    ranks = joined(device)
    threads = settings.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    given = opened(weights, spec, name=name, row=row) if weights is not None else None
    source = find(data, download=settings.download, progress=progress)
    recipe = fitted(recipe, source)
    channels = source.channels if settings.channels is None else settings.channels
    counted = grow(spec, classes=len(source.classes), channels=channels, device="meta")
    kernels = settings.kernels and ranks.count == 1
    if device.type == "cpu" and kernels:
        fused_norm.prepare(counted)
    usually = given.preprocessing if given else row.preprocessing
    preprocessing = preprocessing_for(source, usually, spec.resolution, channels, seed, settings)
    dataset = ranks.in_turn(lambda told: load(source, preprocessing, recipe, seed, settings, told), progress)
    way = None if not ranks.first else computing.choose(
        spec, classes=len(source.classes), channels=channels, batch=recipe.micro or recipe.batch, device=device,
        layout=settings.layout, precision=settings.precision, compiled=settings.compiled, kernels=kernels,
    ).compute  # fmt: skip
    way = ranks.told(way)
    folder = ranks.told(new_folder(out, source.name, name) if ranks.first else None)
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
    with _cleared_if_refused(folder, ranks):
        run = Run(folder, config, dataset, given, ranks)
        if find_lr:
            rates = run.find_rate(progress)
            config = dataclasses.replace(config, recipe=dataclasses.replace(recipe, lr=rates.chosen))
            run = Run(folder, config, dataset, given, ranks)
            draw_rates(rates.rates, rates.losses, rates.chosen, folder / RATES)
        if ranks.first:
            write_text(folder / CONFIG, json.dumps(config.to_plain(), indent=2, ensure_ascii=False) + "\n")
    if ranks.first and dataset.broken:
        write_table(folder / BROKEN, [dataclasses.asdict(broken) for broken in dataset.broken])
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
    ranks = joined(device_named(config.settings.device))
    dataset = ranks.in_turn(
        lambda told: load(source, config.preprocessing, config.recipe, config.seed, config.settings, told), progress
    )
    if dataset.fingerprint() != config.fingerprint:
        raise RunError(f"{config.data}: the data changed since {folder} began; bring it back, or start a new run")
    run = Run(folder, config, dataset, ranks=ranks)
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

    data: a data set by name, a folder, a table of pictures, or arrays (see docs/data.md).
    model: a name of the catalogue, or a spec of one of its families.
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
