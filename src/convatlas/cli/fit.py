"""The commands that train: fit and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convatlas.cli import console, training
from convatlas.cli.options import (
    DATA,
    EXECUTION,
    MODEL,
    OUTPUT,
    RECIPE,
    SEARCH,
    Channels,
    DataSet,
    Device,
    Download,
    MaxUnreadable,
    Resolution,
    SmallImages,
    integer,
    number,
    option,
)
from convatlas.errors import InputError, printable
from convatlas.system import quantities
from convatlas.system.quantities import Interval

if TYPE_CHECKING:
    from convatlas.train.select_model import ModelSelection


CHECKPOINT_INTERVAL = Interval(seconds=30.0)


def _learning_rate(text: str) -> str:
    """Check a learning rate: a number or `find`."""
    if text != "find":
        try:
            number(text)
        except ValueError:
            raise ValueError(f"must be a number or find, got {text}") from None
    return text


def fit(
    data: DataSet,
    model: Annotated[
        str,
        option("A network of `convatlas list`, or auto for the best network within a budget.",
               metavar="NAME", panel=MODEL),
    ],
    weights: Annotated[
        str | None,
        option("Initial weights: LIBRARY:TAG, NETWORK@TAG, or a checkpoint (FILE or FILE:KEY). With --model auto: a "
               "library whose cached weights are used.",
               metavar="WEIGHTS", panel=MODEL),
    ] = None,
    resolution: Resolution = None,
    small_images: SmallImages = False,
    channels: Channels = None,
    max_latency: Annotated[
        float | None,
        option("Maximum latency for one image, for example 10ms; only with --model auto.",
               metavar="TIME", panel=SEARCH, read=quantities.seconds),
    ] = None,
    max_params: Annotated[
        int | None,
        option("Maximum number of parameters, for example 5M; only with --model auto.",
               metavar="COUNT", panel=SEARCH, read=quantities.count),
    ] = None,
    max_macs: Annotated[
        int | None,
        option("Maximum number of MACs for one image, for example 300M; only with --model auto.",
               metavar="COUNT", panel=SEARCH, read=quantities.count),
    ] = None,
    search_time: Annotated[
        float,
        option("Training time of the search by successive halving, for example 10min; only with --model auto.",
               metavar="TIME", panel=SEARCH, read=quantities.seconds, default="5min"),
    ] = 300.0,
    recipe: Annotated[
        str | None,
        option("A recipe by name or a .yaml file. The default is finetune with --weights, otherwise the recipe of the "
               "network.", metavar="RECIPE", panel=RECIPE),
    ] = None,
    epochs: Annotated[
        int | None, option("Number of passes over the training images.", metavar="N", panel=RECIPE, read=integer())
    ] = None,
    batch: Annotated[
        int | None, option("Number of images in a batch.", metavar="N", panel=RECIPE, read=integer())
    ] = None,
    lr: Annotated[
        str | None,
        option("Maximum learning rate, or find for the learning-rate finder.",
               metavar="X|find", panel=RECIPE, read=_learning_rate),
    ] = None,
    change: Annotated[
        list[str] | None,
        option("Set a field of the recipe, for example label_smoothing=0.1; repeatable.", "--set",
               metavar="FIELD=VALUE", panel=RECIPE),
    ] = None,
    seed: Annotated[
        int,
        option("Random seed of initial weights, data order, augmentation and splits.",
               metavar="N", panel=RECIPE, read=integer()),
    ] = 0,
    val_share: Annotated[
        float,
        option("Share of the training images that becomes the val split, if the data has none.",
               metavar="SHARE", panel=DATA, read=quantities.share, default="20%"),
    ] = 0.2,
    folds: Annotated[
        int,
        option("Number of cross-validation folds; 0 trains a single run.", metavar="K", panel=DATA, read=integer(0)),
    ] = 0,
    max_unreadable: MaxUnreadable = 0.01,
    download: Download = False,
    device: Device = "auto",
    threads: Annotated[
        int | None, option("Number of CPU threads; the default is one per core.", metavar="N", panel=EXECUTION,
                           read=integer()),
    ] = None,
    memory_format: Annotated[
        str,
        option("Memory format of the activations: channels_last, contiguous, mkldnn, or auto for the fastest one.",
               metavar="NAME", panel=EXECUTION),
    ] = "auto",
    precision: Annotated[
        str,
        option("Precision of the arithmetic: float32, bfloat16, or auto for the fastest one.",
               metavar="NAME", panel=EXECUTION),
    ] = "auto",
    compiled: Annotated[
        bool, option("Use torch.compile, which takes minutes before the first step.", "--compile", panel=EXECUTION)
    ] = False,
    fused_norms: Annotated[
        bool,
        option("Use the fused batch-norm kernel on CPUs; it needs a C compiler.",
               "--fused-norms/--no-fused-norms", panel=EXECUTION),
    ] = True,
    out: Annotated[
        Path | None,
        option("Run directory, new or empty; the default is runs/DATA-MODEL.", "--out", "-o", metavar="FOLDER",
               panel=OUTPUT),
    ] = None,
    log: Annotated[
        list[str] | None,
        option("Also log metrics to tensorboard, wandb or mlflow; repeatable.", metavar="NAME", panel=OUTPUT),
    ] = None,
    checkpoint_every: Annotated[
        Interval,
        option("Interval between checkpoints: a time such as 30s, or a number of steps such as 100 (and 30s at most).",
               metavar="INTERVAL", panel=OUTPUT, read=quantities.interval, default="30s"),
    ] = CHECKPOINT_INTERVAL,
    license: Annotated[
        str, option("License of the weights, for the model file, for example CC-BY-4.0.", metavar="NAME", panel=OUTPUT)
    ] = "",
) -> None:  # fmt: skip
    """Train a network and write the best weights into a model file."""
    from convatlas.train.cross_validation import cross_validate
    from convatlas.train.fit import prepare_run
    from convatlas.train.select_model import CANDIDATES, Budget, select_model
    from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions

    options: dict[str, Any] = {
        "recipe": recipe,
        "overrides": {**_overrides(epochs=epochs, batch=batch, lr=lr), **_fields(change or [])},
        "seed": seed,
        "data_options": DataOptions().replaced({
            "resolution": resolution, "stem": "cifar" if small_images else "default", "channels": channels,
            "val_share": val_share, "max_unreadable": max_unreadable, "download": download,
        }),
        "execution": ExecutionOptions().replaced({
            "device": device, "threads": threads, "memory_format": memory_format, "precision": precision,
            "compiled": compiled, "fused_norms": fused_norms,
        }),
    }  # fmt: skip
    budget: dict[str, float | None] = {"latency_s": max_latency, "params": max_params, "macs": max_macs}
    limits = {name: value for name, value in budget.items() if value is not None}
    selection: ModelSelection | None = None
    if model == "auto":
        with console.progress_bar() as progress:
            selection = select_model(
                data, Budget(**limits), weights=weights, search_time=search_time, progress=progress, **options
            )
        training.print_selection(selection)
        model, weights = selection.best.name, selection.best.weights or None
        options["data_options"] = selection.data_options(options["data_options"])
    elif limits:
        raise InputError(f"--max-{next(iter(limits)).removesuffix('_s')}: only with --model auto, got {model}")
    options |= {
        "weights": weights, "out": out,
        "options": RunOptions().replaced({
            "log": tuple(log or ()), "license": license, **_checkpoints(checkpoint_every),
        }),
    }  # fmt: skip
    if folds:
        if lr == "find":
            raise InputError("--lr: find works on one run; run it first, then give its rate with --folds")
        with console.progress_bar(console.console) as progress:
            printer = training.FoldPrinter(progress)
            outcome = cross_validate(data, model, folds=folds, on_event=printer.add, progress=progress, **options)
        if selection:
            selection.write(outcome.folder / CANDIDATES)
        training.print_folds(outcome)
        return
    with console.progress_bar() as progress:
        run = prepare_run(data, model, find_lr=lr == "find", progress=progress, **options)
    if selection and run.distributed.is_main:
        selection.write(run.folder / CANDIDATES)
    if lr == "find":
        console.console.print(f"learning rate {run.config.recipe.lr:.2g}, from the learning-rate finder")
    training.print_run_header(run)
    training.train(run)
    training.print_results(run)


def _overrides(*, epochs: int | None, batch: int | None, lr: str | None) -> dict[str, Any]:
    rate = None if lr in (None, "find") else number(lr)
    return {name: value for name, value in {"epochs": epochs, "batch": batch, "lr": rate}.items() if value is not None}


def _checkpoints(interval: Interval) -> dict[str, float]:
    """Return the options of an interval; with one in steps, the default time between checkpoints holds, too."""
    if interval.steps:
        return {"checkpoint_steps": interval.steps}
    return {"checkpoint_seconds": interval.seconds}


def _fields(pairs: list[str]) -> dict[str, Any]:
    """Return FIELD=VALUE pairs as a mapping; a value is JSON (a number, true, false, null) or text."""
    fields: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise InputError(f"--set: must be FIELD=VALUE such as label_smoothing=0.1, got {pair}")
        try:
            fields[name] = json.loads(text)
        except json.JSONDecodeError:
            fields[name] = text
    return fields


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory of an interrupted run.")],
    data: Annotated[
        str | None,
        option("Where the data is now, if it was moved; it must be the same data.", metavar="DATA", panel=DATA),
    ] = None,
) -> None:  # fmt: skip
    """Resume an interrupted run. On a CPU the result is bit-identical to that of an uninterrupted run."""
    from convatlas.train.fit import open_run

    with console.progress_bar() as progress:
        opened = open_run(run, data=data, progress=progress)
    if opened.state.finished:
        if not opened.report_file.exists():  # the run was interrupted while it was written, or could not write it
            opened.finish()
        console.console.print(printable(f"{run} is finished; its model file is {opened.model_file}"))
        training.print_notes(opened)
        return
    for library, (before, now) in opened.changed_versions.items():
        console.errors.print(
            f"convatlas: {library} was {before} at the start of the run and is {now} now; results may differ in the "
            "last bits"
        )
    console.console.print(f"{opened.config.model}: resuming at step {opened.state.step:,}")
    training.train(opened)
    training.print_results(opened)
