"""Train a network: `fit` prepares a run and trains it, `resume` continues one from its last checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.data.dataset import Dataset
from convatlas.data.open import open_data
from convatlas.data.rng import derive_key
from convatlas.data.source import Source
from convatlas.draw import charts
from convatlas.errors import DataError, RunError, brief
from convatlas.models.card import Variant
from convatlas.models.catalog import adapted, build_fresh, reads_clips, resolve
from convatlas.system.devices import is_out_of_memory, resolve_device
from convatlas.system.progress import Progress, progress_display
from convatlas.tasks.task import Task
from convatlas.train.batch_norm import check_batch
from convatlas.train.cpu import fused_norm
from convatlas.train.cpu.execution import ExecutionPlan, process_settings
from convatlas.train.cpu.tune import choose_plan
from convatlas.train.distributed import Distributed, init_distributed
from convatlas.train.recipe import Recipe, get_recipe
from convatlas.train.regularization import regularize
from convatlas.train.run import Event, Run, current_versions
from convatlas.train.run_folder import CONFIG, LR_FINDER, UNREADABLE, lock_run, start_run, write_table
from convatlas.train.settings import DataOptions, ExecutionOptions, RunConfig, RunOptions, read_config, write_config
from convatlas.weights.adapt import load_into
from convatlas.weights.open import open_weights
from convatlas.weights.read import Checkpoint


def choose_recipe(
    recipe: str | Recipe | None, row: Variant, *, pretrained: bool, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Return the recipe of a run: by default "finetune" with pretrained weights, else the network's own.

    recipe: a recipe, its name, or a YAML file. overrides: new values of its fields.
    """
    if recipe is None:
        recipe = "finetune" if pretrained else row.recipe
    chosen = recipe if isinstance(recipe, Recipe) else get_recipe(recipe)
    return chosen.replaced(overrides or {})


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
        for_random_crop=recipe.augment.min_crop_area > 0, max_unreadable=options.max_unreadable, progress=progress,
    )  # fmt: skip
    if dataset.val is None and dataset.test is None:
        raise DataError(f"{source.name}: there is no val or test split to evaluate on; set a val share above 0")
    return dataset


def preprocessing_for(
    source: Source, base: Preprocessing, resolution: int, channels: int, seed: int, options: DataOptions
) -> Preprocessing:
    """Return `base` for another resolution and number of channels, with the statistics of the training images.

    The statistics are measured for images with more than 8 bits and for other channels than grayscale and RGB.
    """
    steps = base.for_resolution(resolution).for_channels(channels)
    statistics = source.statistics(channels, seed=seed, val_share=options.val_share, fold=options.fold)
    if statistics is None:
        return steps
    return dataclasses.replace(steps, window=statistics.window, mean=statistics.mean, std=statistics.std)


def build_network(
    spec: Spec, task: Task, channels: int, recipe: Recipe, seed: int, weights: Checkpoint | None = None
) -> Network:
    """Return the network that training starts from; its initial weights are a function of the seed.

    The order matters: weights are drawn, then overwritten by pretrained ones, then layers for regularization are added.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_key(seed, 0, 8))
        network = build_fresh(spec, classes=task.outputs, channels=channels)
    if weights:
        fresh_head = weights.class_names != task.classes
        load_into(network, spec, weights, num_classes=task.outputs, fresh_head=fresh_head)
    regularize(network, dropout=recipe.dropout, drop_path=recipe.drop_path)
    return network


def prepare_run(
    data: str | Path,
    model: str | Spec,
    *,
    weights: str | Path | None = None,
    recipe: str | Recipe | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    find_lr: bool = False,
    data_options: DataOptions | None = None,
    execution: ExecutionOptions | None = None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> Run:
    """Prepare data, network and directory of a new run, without training yet; see `fit`.

    find_lr: replace the recipe's learning rate by the suggestion of the learning-rate finder, whose curve is saved in
        the run directory.
    """
    data_options = data_options or DataOptions()
    execution = execution or ExecutionOptions()
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise RunError(f"seed must be an integer in [0, {2**32 - 1}], got {seed!r}")
    device = resolve_device(execution.device)
    distributed = init_distributed(device)
    with process_settings(threads=execution.threads), ExitStack() as stack:
        # 1. what is trained: network, recipe, task
        name, row = resolve(model)
        run_recipe = choose_recipe(recipe, row, pretrained=weights is not None, overrides=overrides)
        spec = adapted(row.spec, stem=data_options.stem, resolution=data_options.resolution)
        if reads_clips(spec):
            raise RunError(f"{name}: reads clips; training on clips is not supported yet, choose a network for images")
        checkpoint = open_weights(weights, spec, name=name, row=row) if weights is not None else None
        if checkpoint:
            spec = checkpoint.spec_for(spec)
        source = distributed.rank0_first(  # downloads the data, or probes new files
            lambda report: open_data(data, download=data_options.download, progress=report), progress
        )
        task = source.task.with_loss(run_recipe.loss)
        channels = source.channels if data_options.channels is None else data_options.channels

        # 2. the run directory, locked until run.json is written
        new = stack.enter_context(start_run(out, source.name, name)) if distributed.is_main else None
        folder = distributed.broadcast(new)

        # 3. the network, built once; its kernels are compiled while the data is prepared
        network = build_network(spec, task, channels, run_recipe, seed, checkpoint)
        check_batch(network, run_recipe, len(source.splits["train"]))
        fused_norms = execution.fused_norms and distributed.world_size == 1
        if device.type == "cpu" and fused_norms:
            fused_norm.compile_in_background(network)

        # 4. the data
        base = checkpoint.preprocessing if checkpoint else row.preprocessing
        preprocessing = preprocessing_for(source, base, spec.resolution, channels, seed, data_options)
        dataset = distributed.rank0_first(
            lambda report: load_data(source, preprocessing, run_recipe, seed, data_options, report), progress
        )

        # 5. how steps are executed: measured by one process for all
        plan = None
        if distributed.is_main:
            plan = choose_plan(
                network, spec, classes=task.outputs, batch=run_recipe.micro_batch or run_recipe.batch, device=device,
                memory_format=execution.memory_format, precision=execution.precision, compiled=execution.compiled,
                fused_norms=fused_norms,
            ).plan  # fmt: skip
        plan = distributed.broadcast(plan)

        # 6. the run and its files; run.json is the last one
        config = RunConfig(
            data=source.location,
            model=name,
            weights="" if weights is None else str(weights),
            task=task,
            spec=spec,
            preprocessing=preprocessing,
            recipe=run_recipe,
            seed=seed,
            data_options=data_options,
            execution=dataclasses.replace(
                execution, threads=torch.get_num_threads(), memory_format=plan.memory_format, precision=plan.precision,
                device=device.type if execution.device == "auto" else execution.device,
            ),
            options=options or RunOptions(),
            fingerprint=dataset.fingerprint(),
            versions=current_versions(device, plan, network),
        )  # fmt: skip
        run = Run(folder, config, dataset, network, plan, distributed)
        if find_lr:
            result = run.find_lr(progress)
            config = dataclasses.replace(config, recipe=run_recipe.replaced({"lr": result.suggestion}))
            run = Run(folder, config, dataset, network, plan, distributed)
            try:
                charts.lr_finder(result.lrs, result.losses, result.suggestion, path=folder / LR_FINDER)
            except Exception as error:  # a figure must not keep the run from starting
                run.state.note(f"{LR_FINDER} cannot be written ({type(error).__name__}: {brief(error)})")
        if distributed.is_main and dataset.unreadable:
            write_table(folder / UNREADABLE, [dataclasses.asdict(image) for image in dataset.unreadable])
        if checkpoint:  # so that resuming does not need the weights file
            run.save()
        if distributed.is_main:
            write_config(folder, config)
    return run


def open_run(folder: str | Path, *, data: str | Path | None = None, progress: Progress | None = None) -> Run:
    """Open a run at its last checkpoint, at step 0 before the first one.

    data: where the data is now, if it was moved; run.json then records it.
    Raises RunError if the folder is not a run directory, the data changed, or the checkpoint is damaged.
    """
    folder = Path(folder)
    config = read_config(folder)
    device = resolve_device(config.execution.device)
    distributed = init_distributed(device)
    with process_settings(threads=config.execution.threads):
        source = distributed.rank0_first(lambda report: _open_moved(folder, config, data, report), progress)
        dataset = distributed.rank0_first(
            lambda report: load_data(
                source, config.preprocessing, config.recipe, config.seed, config.data_options, report
            ),
            progress,
        )
        if dataset.fingerprint() != config.fingerprint:
            raise RunError(
                f"{source.location}: is not the data that {folder} was started with (another fingerprint); restore it, "
                "or start a new run"
            )
        task = dataset.task.with_loss(config.recipe.loss)
        if task != config.task:
            raise RunError(f"{folder / CONFIG}: task must be that of the data and the recipe; restore the file")
        try:
            network = build_network(config.spec, config.task, config.preprocessing.channels, config.recipe, config.seed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(f"{folder / CONFIG}: out of memory for the network ({brief(error)})") from error
        check_batch(network, config.recipe, len(dataset.train))
        if source.location != config.data:
            config = dataclasses.replace(config, data=source.location)
            if distributed.is_main:
                with lock_run(folder):
                    write_config(folder, config)
        run = Run(folder, config, dataset, network, _plan_of(config, distributed), distributed)
        run.load()
    return run


def _open_moved(folder: Path, config: RunConfig, data: str | Path | None, progress: Progress) -> Source:
    """Open the data of a run; data: where it is now, if it was moved."""
    try:
        return open_data(config.data if data is None else data, progress=progress)
    except DataError as error:
        if data is not None:
            raise
        raise DataError(f"{error}; if the data was moved: `convatlas resume {folder} --data NEW`") from error


def _plan_of(config: RunConfig, distributed: Distributed) -> ExecutionPlan:
    """Return the execution plan that a run was started with."""
    execution = config.execution
    return ExecutionPlan.from_plain({  # "auto" was replaced when the run was prepared
        "memory_format": execution.memory_format, "precision": execution.precision, "compiled": execution.compiled,
        "fused_norms": execution.fused_norms and distributed.world_size == 1,
    })  # fmt: skip


def fit(
    data: str | Path,
    model: str | Spec,
    *,
    weights: str | Path | None = None,
    recipe: str | Recipe | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    find_lr: bool = False,
    data_options: DataOptions | None = None,
    execution: ExecutionOptions | None = None,
    options: RunOptions | None = None,
    on_event: Callable[[Event], None] | None = None,
    progress: bool = True,
) -> Run:
    """Train a network on a data set and write the best weights into `<run>/model.safetensors`.

    data: a data set by name, a folder, a table of images, or arrays (see docs/data.md).
    model: a name of the catalog, or a spec of one of its families.
    weights: pretrained weights, as for `convatlas.build`; by default random. The head is random if the classes differ.
    recipe: a Recipe, its name or a YAML file; by default "finetune" with weights, else the network's own.
    overrides: new values of the recipe's fields, such as {"epochs": 3}.
    seed: of initial weights, order, augmentation and the val split, if the data has none.
    out: the run directory, new or empty; by default runs/<data>-<model>.
    find_lr: use the suggestion of the learning-rate finder.
    on_event: called with every Step and every Epoch.
    progress: show a progress bar in terminals and notebooks.
    """
    with progress_display(progress) as report:
        run = prepare_run(
            data, model, weights=weights, recipe=recipe, overrides=overrides, seed=seed, out=out, find_lr=find_lr,
            data_options=data_options, execution=execution, options=options, progress=report,
        )  # fmt: skip
        return _train(run, on_event, report)


def resume(
    folder: str | Path, *, data: str | Path | None = None, on_event: Callable[[Event], None] | None = None,
    progress: bool = True,
) -> Run:  # fmt: skip
    """Continue an interrupted run; the result equals that of an uninterrupted one (bit for bit on CPU).

    data: where the data is now, if it was moved; data with another fingerprint is refused.
    A finished run is evaluated again, from its model file.
    """
    with progress_display(progress) as report:
        run = open_run(folder, data=data, progress=report)
        if run.state.finished:
            run.finish()
        return _train(run, on_event, report)


def _train(run: Run, on_event: Callable[[Event], None] | None, progress: Progress) -> Run:
    """Train a run to its end, with a progress bar."""
    for event in run.steps():
        if on_event:
            on_event(event)
        progress(f"training: {event.describe()}", run.state.step, run.total_steps)
    return run
