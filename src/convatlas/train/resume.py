"""Open the run of a run directory, and continue it from its last checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from torch import nn

from convatlas.core.network import Network
from convatlas.data.open import open_data
from convatlas.data.readers.memory import IN_MEMORY, Data
from convatlas.data.source import Source
from convatlas.errors import DataError, RunError, brief
from convatlas.models.own_module import OwnModule, load_module
from convatlas.system.devices import is_out_of_memory, resolve_device
from convatlas.system.progress import Progress
from convatlas.train.batch_norm import check_batch
from convatlas.train.checkpoint import read_state
from convatlas.train.cpu.execution import ExecutionPlan, process_settings
from convatlas.train.display import training_display
from convatlas.train.distributed import Distributed, init_distributed
from convatlas.train.preparation import build_network, load_data
from convatlas.train.run import Event, Run
from convatlas.train.run_folder import CHECKPOINT, CONFIG, lock_run
from convatlas.train.settings import RunConfig, read_config, write_config
from convatlas.train.state import State


def open_run(
    folder: str | Path,
    *,
    data: Data | None = None,
    module: nn.Module | None = None,
    epochs: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Open a run at its last checkpoint, at step 0 before the first one.

    data: where the data is now, if it was moved. module: for a run of an own module, one of the same class. epochs,
    threads: new values. See `resume`; run.json records what changed.
    Raises RunError if the folder is not a run directory, the data changed, or the checkpoint is damaged.
    """
    folder = Path(folder)
    before = read_config(folder)
    config = _changed(folder, before, epochs, threads)
    device = resolve_device(config.execution.device)
    distributed = init_distributed(device)
    with process_settings(threads=config.execution.threads):
        given = _given(folder, config, module)
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
            network = build_network(
                config.spec, config.task, config.preprocessing.channels, config.recipe, config.seed, given=given
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(f"{folder / CONFIG}: out of memory for the network ({brief(error)})") from error
        check_batch(network, config.recipe, len(dataset.train))
        config = dataclasses.replace(config, data=source.location)
        run = Run(folder, config, dataset, network, _plan_of(config, distributed), distributed)
        run.load()
        if config != before and distributed.is_main:
            with lock_run(folder):
                write_config(folder, config)
    return run


def read_progress(folder: Path) -> State:
    """Read how far the run of a directory has come: the state of its checkpoint, or of step 0 if there is none."""
    path = folder / CHECKPOINT
    return read_state(path) if path.exists() else State()


def _changed(folder: Path, config: RunConfig, epochs: int | None, threads: int | None) -> RunConfig:
    """Return the configuration with other epochs and threads; raises RunError unless the run can be continued so."""
    recipe, execution = config.recipe, config.execution
    if epochs is not None and epochs != recipe.epochs:
        recipe = recipe.replaced({"epochs": epochs})
    if threads is not None:
        execution = execution.replaced({"threads": threads, "adapt_threads": False})
    if (recipe, execution) == (config.recipe, config.execution):
        return config
    state = read_progress(folder)
    if state.finished:
        further = f"convatlas fit {config.data} --model {config.model} --weights {folder} --epochs {recipe.epochs}"
        raise RunError(f"{folder}: the run is finished; a new run can start from its weights: `{further}`")
    if recipe.epochs < state.epochs_begun:
        raise RunError(
            f"{folder}: epochs must be >= {state.epochs_begun}, the number of epochs that have begun, got {epochs}; "
            f"`convatlas finish {folder}` ends the training here"
        )
    values = {
        "epochs": (config.recipe.epochs, recipe.epochs), "threads": (config.execution.threads, execution.threads),
    }  # fmt: skip
    texts = [f"{name} {old} -> {new} at step {state.step:,}" for name, (old, new) in values.items() if old != new]
    return dataclasses.replace(config, recipe=recipe, execution=execution, changes=(*config.changes, *texts))


def _given(folder: Path, config: RunConfig, module: nn.Module | None) -> Network | None:
    """Return the network of a run of an own module; None for other networks. Raises RunError without its module."""
    if not isinstance(config.spec, OwnModule):
        if module is not None:
            raise RunError(f"{folder}: is a run of {config.model}, which is built from its spec; leave out module=")
        return None
    if module is None:
        data = "data=..., " if config.data.startswith(IN_MEMORY) else ""
        raise RunError(
            f"{folder}: is a run of the own module {config.spec.module}, whose code is in no file; in Python, "
            f"ca.resume({str(folder)!r}, {data}module={config.spec.class_name}(...))"
        )
    if (config.spec.channels, config.spec.outputs) != (config.preprocessing.channels, config.task.outputs):
        raise RunError(f"{folder / CONFIG}: spec must have the channels and outputs of preprocessing and task")
    return load_module(module, config.spec)


def _open_moved(folder: Path, config: RunConfig, data: Data | None, progress: Progress) -> Source:
    """Open the data of a run; data: where it is now, if it was moved."""
    if data is None and config.data.startswith(IN_MEMORY):
        name = config.data.removeprefix(IN_MEMORY)
        raise DataError(f"{folder}: its data ({name}) was in memory; in Python, ca.resume({str(folder)!r}, data=...)")
    try:
        source = open_data(
            config.data if data is None else data, reads=config.spec.reads,
            group_pattern=config.data_options.group_pattern, progress=progress,
        )  # fmt: skip
        return source.for_task(config.task.short_name)
    except DataError as error:
        if data is not None:
            raise
        raise DataError(f"{error}; if the data was moved, add --data NEW (in Python: data=)") from error


def _plan_of(config: RunConfig, distributed: Distributed) -> ExecutionPlan:
    """Return the execution plan that a run was started with."""
    execution = config.execution
    return ExecutionPlan.from_plain({  # "auto" was replaced when the run was prepared
        "memory_format": execution.memory_format, "precision": execution.precision, "compiled": execution.compiled,
        "fused_norms": execution.fused_norms and distributed.world_size == 1,
    })  # fmt: skip


def resume(
    folder: str | Path,
    *,
    data: Data | None = None,
    module: nn.Module | None = None,
    epochs: int | None = None,
    threads: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    progress: bool = True,
) -> Run:
    """Continue an interrupted run; the result equals that of an uninterrupted one (bit for bit on CPU).

    data: where the data is now, if it was moved; data with another fingerprint is refused. Data in memory must be given
        again.
    module: for a run of an own module, one of the same class; a copy of it continues with the weights of the run.
    epochs: a new number of epochs, at least those that have begun; the learning rates from here on are those of the
        schedule over the new number. threads: a new number of CPU threads, on which the last bits depend.
    A finished run is evaluated again, from its model file; with other epochs or threads it is refused.
    """
    with training_display(progress) as display:
        run = open_run(folder, data=data, module=module, epochs=epochs, threads=threads, progress=display.progress)
        display.print_header(run)
        if run.state.finished:
            run.finish()
        else:
            display.train(run, on_event)
        display.print_results(run)
    return run


def finish(
    folder: str | Path, *, data: Data | None = None, module: nn.Module | None = None, progress: bool = True
) -> Run:
    """End an interrupted run: evaluate its best and its last weights, write both model files and the report.

    data, module: as for `resume`. The run is then finished and cannot be resumed; a finished run is
    evaluated again. Raises RunError before the end of the first epoch.
    """
    folder = Path(folder)
    read_config(folder)
    if not read_progress(folder).history:
        raise RunError(
            f"{folder}: there is no model before the end of the first epoch; `convatlas resume {folder}` continues"
        )
    with training_display(progress) as display:
        run = open_run(folder, data=data, module=module, progress=display.progress)
        run.finish()
        display.print_results(run)
    return run
