"""Diagnose: the layers of a run over its training, or of a network at initialization."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from convatlas.core.spec import Spec, replace_cells
from convatlas.errors import InputError, RunError
from convatlas.explanation.propagation import Propagation, propagate, propagate_noise
from convatlas.models.catalog import Stem, adapted, build_fresh, resolve
from convatlas.overview.look import is_model
from convatlas.train.cpu.execution import process_settings
from convatlas.train.diagnosis import Diagnosis
from convatlas.train.diagnostics import read_diagnostics
from convatlas.train.fit import prepare_run
from convatlas.train.resume import read_progress
from convatlas.train.run_folder import DIAGNOSTICS
from convatlas.train.settings import DataOptions, ExecutionOptions, read_config

if TYPE_CHECKING:
    from convatlas.data.readers.memory import Data

MAX_BATCH = 64
"""Maximum number of images of a data set that a network at initialization reads."""


def diagnose(
    source: str | os.PathLike[str] | Spec,
    *,
    depth: float = 1.0,
    width: float = 1.0,
    cells: Mapping[str, Any] | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    stem: Stem = "default",
    data: Data | None = None,
    download: bool = False,
    seed: int = 0,
) -> Diagnosis | Propagation:
    """Return the first layer of a run that goes wrong; or of a network, signal propagation at initialization.

    source: a run, a run directory, a network of the catalog by name, or a spec. The other arguments are for networks:
    depth, width: factors, as in `Spec.scaled`. cells: new values of cells, such as {"rows[0].depth": 2}. resolution,
        channels, classes, stem: see `convatlas.build`.
    data: the network reads a training batch of it and gradients are those of the training loss; by default it reads
        noise of variance 1, and gradients are those of noise of variance 1 at the outputs.
    seed: of the initial weights, of noise, and of the batch.
    """
    if isinstance(source, Spec) or not (isinstance(source, os.PathLike) or is_model(source)):
        spec = _spec(source, depth, width, cells or {})
        name = resolve(spec)[0]
        if data is not None:
            options = DataOptions(resolution=resolution, channels=channels, stem=stem)
            if classes is not None:
                raise InputError("diagnose: classes must not be given with data, which has its own")
            return _propagate_data(name, spec, data, options, download=download, seed=seed)
        with process_settings():
            torch.manual_seed(seed)
            network = build_fresh(adapted(spec, stem=stem, resolution=resolution), classes=classes, channels=channels)
            return propagate_noise(name, network, seed=seed)
    given: dict[str, object] = {
        "depth": depth != 1, "width": width != 1, "cells": cells, "data": data is not None, "resolution": resolution,
        "channels": channels, "classes": classes, "stem": stem != "default", "download": download, "seed": seed,
    }  # fmt: skip
    if wrong := [argument for argument, value in given.items() if value]:
        raise InputError(f"diagnose: {wrong[0]} is for networks by name, and {source} is a path")
    return diagnose_run(source)


def _spec(source: str | os.PathLike[str] | Spec, depth: float, width: float, cells: Mapping[str, Any]) -> Spec:
    spec = source if isinstance(source, Spec) else resolve(os.fspath(source))[1].spec
    return replace_cells(spec.scaled(depth=depth, width=width), cells)


def diagnose_run(folder: str | os.PathLike[str]) -> Diagnosis:
    """Diagnose the run of a directory: finished, interrupted, in training, or stopped by an error.

    Raises RunError if there is no run, or no diagnostics.csv.
    """
    folder = Path(folder)
    config = read_config(folder)
    path = folder / DIAGNOSTICS
    if not path.exists():
        reason = "no step was trained" if config.options.diagnostics else "the run was trained with --no-diagnostics"
        raise RunError(f"{path}: is missing: {reason}")
    return Diagnosis.of(str(folder), config, read_diagnostics(path), read_progress(folder).history)


def _propagate_data(
    name: str, spec: Spec, data: Data, options: DataOptions, *, download: bool, seed: int
) -> Propagation:
    """Measure the first training step of a network on data, without the update."""
    # how steps are executed is not measured, and does not change statistics but for rounding
    execution = ExecutionOptions(memory_format="contiguous", precision="float32", fused_norms=False)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(
            data, spec, weights="none", seed=seed, out=Path(folder) / "run", download=download, data_options=options,
            execution=execution,
        )  # fmt: skip
        with process_settings():
            torch.manual_seed(seed)
            loader = run.loader()
            batch = next(loader.epoch(0))
            criterion = run.task.criterion()

            def loss() -> torch.Tensor:
                return run.task.training_loss(run.network, run.network, batch.inputs, batch.targets, criterion)[1]

            layers = propagate(run.network, loss)
    images = f"{batch.size} {run.task.noun}s of {run.dataset.name}"
    return Propagation(name, images, "the training loss", layers, classes=len(run.task.classes))
