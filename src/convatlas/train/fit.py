"""Train a network: `prepare_run` makes a run and its directory, `fit` trains it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from convatlas.core.spec import Spec
from convatlas.data.loader import batch_sizes
from convatlas.data.open import open_data, open_for_training
from convatlas.data.readers.memory import Data
from convatlas.draw import charts
from convatlas.errors import RunError, brief
from convatlas.models.catalog import resolve
from convatlas.system.devices import resolve_device
from convatlas.system.load import LoadMeter
from convatlas.system.progress import Progress
from convatlas.train.batch_norm import check_batch, min_images, unfold_norms
from convatlas.train.cpu import conv3d, fused_norm
from convatlas.train.cpu.execution import process_settings
from convatlas.train.cpu.threads import choose_threads
from convatlas.train.cpu.tune import choose_plan
from convatlas.train.display import training_display
from convatlas.train.distributed import init_distributed
from convatlas.train.given import copy_module, reads_of
from convatlas.train.initial_weights import AUTO, choose_weights
from convatlas.train.loggers import check_loggers
from convatlas.train.preparation import (
    build_network,
    check_recipe,
    choose_recipe,
    load_data,
    preprocessing_for,
    source_for,
    spec_for,
)
from convatlas.train.recipe import Recipe
from convatlas.train.recipe_fields import RecipeFields, check_fields
from convatlas.train.run import Event, Run
from convatlas.train.run_folder import LR_FINDER, UNREADABLE, check_out, start_run, write_table
from convatlas.train.session import current_versions
from convatlas.train.settings import DataOptions, ExecutionOptions, RunConfig, RunOptions, write_config
from convatlas.train.state import State
from convatlas.weights.inflate import Inflation
from convatlas.weights.open import open_weights


def check_start(data: Data, out: str | Path | None, options: RunOptions) -> None:
    """Raise RunError for what would stop a run before its first step: its directory, or a logger."""
    check_loggers(options.log)
    check_out(out, str(data) if isinstance(data, str | Path) else "")


def prepare_run(
    data: Data,
    model: str | Spec | nn.Module,
    *,
    task: str | None = None,
    weights: str | Path | None = AUTO,
    inflate: Inflation | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    find_lr: bool = False,
    download: bool = False,
    data_options: DataOptions | None = None,
    execution: ExecutionOptions | None = None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
    **fields: Unpack[RecipeFields],
) -> Run:
    """Prepare data, network and directory of a new run, without training yet; see `fit`.

    find_lr: replace the recipe's learning rate by the suggestion of the learning-rate finder, whose curve is saved in
        the run directory.
    """
    check_fields(fit, fields)
    data_options = data_options or DataOptions()
    execution = execution or ExecutionOptions()
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise RunError(f"seed must be an integer in [0, {2**32 - 1}], got {seed!r}")
    options = options or RunOptions()
    device = resolve_device(execution.device)
    distributed = init_distributed(device)
    meter = LoadMeter()
    with process_settings(threads=execution.threads), ExitStack() as stack:
        if distributed.is_main:
            check_start(data, out, options)
        # 1. what is trained: network, recipe, task
        given = None
        if isinstance(model, nn.Module):
            reads = reads_of(model)
            data = distributed.rank0_first(
                lambda report: open_data(
                    data, reads=reads, group_pattern=data_options.group_pattern, download=download, progress=report
                ),
                progress,
            )
            given = copy_module(model, data, data_options, weights)
            if distributed.world_size > 1:  # random weights differ between ranks
                given.network.load_state_dict(distributed.broadcast(given.network.state_dict()))
            model = given.spec
        name, row = resolve(model)
        spec = spec_for(row.spec, data_options)
        opened = distributed.rank0_first(  # downloads the data, or probes new files
            lambda report: open_for_training(
                data,
                reads=spec.reads,
                group_pattern=data_options.group_pattern,
                val_share=data_options.val_share,
                fold=data_options.fold,
                download=download,
                progress=report,
            ),
            progress,
        )
        source = source_for(opened, spec, name, task)
        spec = source.task.adapted(spec)
        initial = distributed.rank0_first(
            lambda report: (
                choose_weights(
                    weights,
                    spec,
                    network=name,
                    stem=data_options.stem,
                    inflate=inflate,
                    download=download,
                    progress=report,
                )
                if given is None
                else given.initial
            ),
            progress,
        )
        pretrained = bool(initial.name) and given is None
        run_recipe = choose_recipe(recipe, row, pretrained=pretrained, fields=fields)
        checkpoint = open_weights(initial.name, spec, name=name, row=row, inflate=inflate) if pretrained else None
        if checkpoint:
            spec = checkpoint.spec_for(spec)
        images_at_once = run_recipe.micro_batch or run_recipe.batch
        spec = spec.for_training(pretrained=bool(initial.name), images=images_at_once)
        check_recipe(run_recipe, source.task)
        run_task = source.task.with_loss(run_recipe.loss)
        channels = source.channels if data_options.channels is None else data_options.channels
        if given is not None:
            channels = given.network.input_shape[0]

        # 2. the run directory, locked until run.json is written
        new = stack.enter_context(start_run(out, source.name, name, source.location)) if distributed.is_main else None
        folder = distributed.broadcast(new)

        # 3. the network, built once; its kernels are compiled while the data is prepared
        network = build_network(
            spec, run_task, channels, run_recipe, seed, checkpoint, None if given is None else given.network
        )
        check_batch(network, run_recipe, len(source.splits["train"]))
        fused_norms = execution.fused_norms and distributed.world_size == 1
        if device.type == "cpu" and fused_norms:
            fused_norm.compile_in_background(network)
            conv3d.compile_in_background(network)

        # 4. the data
        base = checkpoint.preprocessing if checkpoint else given.preprocessing if given else row.preprocessing
        preprocessing = preprocessing_for(source, base, spec, channels, seed, data_options)
        dataset = distributed.rank0_first(
            lambda report: load_data(source, preprocessing, run_recipe, seed, data_options, report), progress
        )

        if checkpoint and unfold_norms(network, checkpoint.tensors, dataset.train, preprocessing):
            network.load_state_dict(distributed.broadcast(network.state_dict()))

        steps_per_epoch = len(batch_sizes(len(dataset.train), run_recipe.batch, min_images(network, run_recipe)))
        run_recipe = run_recipe.lengthened(steps_per_epoch)

        # 5. how steps are executed: measured by one process for all
        plan = None
        if distributed.is_main:
            plan = choose_plan(
                network, spec, classes=run_task.outputs, batch=images_at_once, device=device,
                memory_format=execution.memory_format, precision=execution.precision, compiled=execution.compiled,
                fused_norms=fused_norms,
            ).plan  # fmt: skip
        plan = distributed.broadcast(plan)
        adapt_threads = execution.adapt_threads and execution.threads is None
        state = State()
        if adapt_threads and distributed.world_size == 1:
            state.threads, state.other_load = choose_threads(
                network, spec, plan, load=meter.share(), batch=images_at_once,
                classes=run_task.outputs, device=device,
            )  # fmt: skip

        # 6. the run and its files; run.json is the last one
        config = RunConfig(
            data=source.location,
            model=name,
            weights=initial.name,
            weights_reason=initial.reason,
            inflate=inflate,
            task=run_task,
            spec=spec,
            preprocessing=preprocessing,
            recipe=run_recipe,
            seed=seed,
            data_options=data_options,
            execution=dataclasses.replace(
                execution, threads=torch.get_num_threads(), adapt_threads=adapt_threads,
                memory_format=plan.memory_format, precision=plan.precision,
                device=device.type if execution.device == "auto" else execution.device,
            ),
            options=options,
            fingerprint=dataset.fingerprint(),
            annotation_faults=tuple(fault.shortened() for fault in source.faults),
            versions=current_versions(device, plan, network),
        )  # fmt: skip
        run = Run(folder, config, dataset, network, plan, distributed, state)
        if find_lr:
            result = run.find_lr(progress)
            config = dataclasses.replace(config, recipe=run_recipe.replaced({"lr": result.suggestion}))
            run = Run(folder, config, dataset, network, plan, distributed, state)
            try:
                charts.lr_finder(result.lrs, result.losses, result.suggestion, path=folder / LR_FINDER)
            except Exception as error:  # a figure must not keep the run from starting
                run.state.note(f"{LR_FINDER} cannot be written ({type(error).__name__}: {brief(error)})")
        if distributed.is_main and dataset.unreadable:
            write_table(folder / UNREADABLE, [dataclasses.asdict(image) for image in dataset.unreadable])
        # so that resuming needs neither the weights file nor the weights of the given module, and has the same threads
        if initial.name or run.threads != config.execution.threads:
            run.save()
        if distributed.is_main:
            write_config(folder, config)
    return run


def fit(
    data: Data,
    model: str | Spec | nn.Module,
    *,
    task: str | None = None,
    weights: str | Path | None = AUTO,
    inflate: Inflation | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    find_lr: bool = False,
    download: bool = False,
    data_options: DataOptions | None = None,
    execution: ExecutionOptions | None = None,
    options: RunOptions | None = None,
    on_event: Callable[[Event], None] | None = None,
    progress: bool = True,
    **fields: Unpack[RecipeFields],
) -> Run:
    """Train a network on a data set and write the best weights into `<run>/model.safetensors`.

    data: a data set by name, a folder, a table of images, arrays (x, y), or a torch Dataset (see docs/data.md).
    model: a name of the catalog, a spec of one of its families, or any module that computes scores (n, classes) from
        images: a copy of it is trained, from its weights (see docs/adding-an-architecture.md).
    task: "classify", "multi-label", "detect", "segment" or "keypoints"; by default that of data and network.
    weights: initial weights. "auto": the network's published weights if they are cached (or `download` is given), or
        imported ones; random weights if no published ones fit. "none": random weights. Others as for `convatlas.build`.
        The head is random if the classes differ.
    inflate: "mean" or "center": `weights` are those of a network for images, such as resnet18, and become those of its
        counterpart for clips, such as r3d_18; see `convatlas.build`.
    recipe: a Recipe, its name or a YAML file; by default "finetune" with weights, else the network's own.
    download: allow to download the data set and published weights.
    seed: of initial weights, order, augmentation and the val split, if the data has none.
    out: the run directory, new or empty; by default runs/<data>-<model>.
    find_lr: use the suggestion of the learning-rate finder.
    on_event: called with every Step and every Epoch.
    progress: show header, progress, epochs and results in terminals (on standard error) and notebooks.
    fields: new values of the recipe's fields, such as epochs=3, lr=0.01 or flip=True.
    Raises WeightsNotCachedError if the published weights are not in the cache.
    """
    with training_display(progress) as display:
        run = prepare_run(
            data, model, task=task, weights=weights, inflate=inflate, recipe=recipe, seed=seed, out=out,
            find_lr=find_lr, download=download, data_options=data_options, execution=execution, options=options,
            progress=display.progress, **fields,
        )  # fmt: skip
        display.print_header(run)
        display.train(run, on_event)
        display.print_results(run)
    return run
