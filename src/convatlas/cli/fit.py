"""The command `fit`: train a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from convatlas.cli import console, training
from convatlas.cli.missing_weights import with_weights
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
    DownloadAll,
    MaxUnreadable,
    RecipeChanges,
    Resolution,
    SmallImages,
    ValShare,
    assignments,
    complete_network,
    integer,
    number,
    option,
    stem_for,
)
from convatlas.errors import InputError, nearest, printable
from convatlas.system import quantities
from convatlas.system.quantities import Interval

if TYPE_CHECKING:
    from convatlas.core.spec import Spec
    from convatlas.search.select_model import ModelSelection
    from convatlas.train.cross_validation import CrossValidation
    from convatlas.train.run import Run


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
               metavar="NAME", panel=MODEL, autocompletion=complete_network),
    ],
    task: Annotated[
        str | None,
        option("Task: classify, multi-label, detect (boxes), segment (masks), keypoints, video or multi-label-video. "
               "The default is that of data and network.", metavar="NAME", panel=MODEL),
    ] = None,
    body: Annotated[
        str | None,
        option("Replace the body (backbone) of the detector, or of the inflated network, of --model by this network of "
               "`convatlas list`. --model fasterrcnn, maskrcnn or keypointrcnn with --body is of torchvision's size: "
               "800 px, for GPUs; --model inflated reads clips.",
               metavar="NAME", panel=MODEL, autocompletion=complete_network),
    ] = None,
    weights: Annotated[
        str,
        option("Initial weights: auto (published ones, if the network has some), none (random), DEFAULT, LIBRARY:TAG, "
               "NETWORK@TAG, or a checkpoint (FILE or FILE:KEY). With --model auto: auto, none, or a library whose "
               "cached weights are used.",
               metavar="WEIGHTS", panel=MODEL),
    ] = "auto",
    inflate: Annotated[
        str | None,
        option("The weights are those of a network for images, such as resnet18@torchvision:IMAGENET1K_V1; inflate "
               "their convolutions over time for a network that reads videos, such as r3d_18: mean or center.",
               metavar="mean|center", panel=MODEL),
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
        option("Time of the trainings that are compared, for example 10min; only with --model auto.",
               metavar="TIME", panel=SEARCH, read=quantities.seconds, default="5min"),
    ] = 300.0,
    recipe: Annotated[
        str | None,
        option("A recipe (default, finetune, finetune-detection, scratch-detection, scratch-small, imagenet, "
               "lecun1989, lecun1998, sabour2017; see `convatlas recipes`) or a .yaml file. The default is finetune or "
               "finetune-detection with pretrained weights, otherwise the recipe of the network.",
               metavar="RECIPE", panel=RECIPE),
    ] = None,
    epochs: Annotated[
        int | None, option("Number of passes over the training data.", metavar="N", panel=RECIPE, read=integer())
    ] = None,
    batch: Annotated[
        int | None, option("Number of images, or clips, in a batch.", metavar="N", panel=RECIPE, read=integer())
    ] = None,
    lr: Annotated[
        str | None,
        option("Maximum learning rate, or find for the learning-rate finder.",
               metavar="X|find", panel=RECIPE, read=_learning_rate),
    ] = None,
    change: RecipeChanges = None,
    seed: Annotated[
        int,
        option("Random seed of initial weights, data order, augmentation and splits.",
               metavar="N", panel=RECIPE, read=integer()),
    ] = 0,
    val_share: ValShare = 0.2,
    group_pattern: Annotated[
        str | None,
        option("Regular expression, searched in the path of each file: files with the same text in its first group "
               "stay in the same split, for example '_g(\\d+)_' for the recordings of UCF101.",
               metavar="REGEX", panel=DATA),
    ] = None,
    frames: Annotated[
        int | None, option("Frames of a clip, for networks that read videos.", metavar="N", panel=DATA, read=integer())
    ] = None,
    frame_rate: Annotated[
        float | None,
        option("Frames per second of a clip; videos are read by time, whatever their own frame rate.",
               metavar="FPS", panel=DATA, read=number),
    ] = None,
    clips: Annotated[
        int | None,
        option("Clips of a video in evaluation, evenly spaced; their probabilities are averaged.",
               metavar="N", panel=DATA, read=integer()),
    ] = None,
    folds: Annotated[
        int,
        option("Number of cross-validation folds; 0 trains a single run.", metavar="K", panel=DATA, read=integer(0)),
    ] = 0,
    max_unreadable: MaxUnreadable = 0.01,
    download: DownloadAll = False,
    device: Device = "auto",
    threads: Annotated[
        int | None, option("Number of CPU threads; the default is one per core, or fewer beside other processes.",
                           metavar="N", panel=EXECUTION,
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
    preview: Annotated[
        Path | None,
        option("Draw augmented training images, or clips, as the network reads them into this .png, .svg or .pdf file, "
               "and stop: nothing is trained.", metavar="FILE", panel=OUTPUT),
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
    diagnostics: Annotated[
        bool,
        option("Measure activations and gradients by layer in one step of each epoch, for the report and `convatlas "
               "diagnose`.", "--diagnostics/--no-diagnostics", panel=OUTPUT),
    ] = True,
    license: Annotated[
        str, option("License of the weights, for the model file, for example CC-BY-4.0.", metavar="NAME", panel=OUTPUT)
    ] = "",
) -> None:  # fmt: skip
    """Train a network and write the best weights into a model file."""
    from convatlas.search.limits import Limits
    from convatlas.search.select_model import select_model
    from convatlas.train.cross_validation import cross_validate
    from convatlas.train.fit import check_start, prepare_run
    from convatlas.train.preview import preview as draw_preview
    from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions

    options: dict[str, Any] = {
        "task": task,
        "recipe": recipe,
        **({} if inflate is None else {"inflate": inflate}),
        **_given(epochs=epochs, batch=batch, lr=None if lr in (None, "find") else number(lr)),
        **recipe_fields(change or []),
        "seed": seed,
        "download": download,
        "data_options": DataOptions().replaced({
            "resolution": resolution, "stem": stem_for(small_images), "channels": channels,
            "val_share": val_share, "max_unreadable": max_unreadable, "group_pattern": group_pattern,
            "frames": frames, "frame_rate": frame_rate, "clips": clips,
        }),
        "execution": ExecutionOptions().replaced({
            "device": device, "threads": threads, "memory_format": memory_format, "precision": precision,
            "compiled": compiled, "fused_norms": fused_norms,
        }),
    }  # fmt: skip
    network = _network(model, body)
    if preview is not None:
        if model == "auto":
            raise InputError("--preview: needs the name of a network, got --model auto")
        with_weights(lambda given: draw_preview(data, network, path=preview, **given), options | {"weights": weights})
        console.console.print(printable(f"preview: {preview}"))
        return
    budget: dict[str, float | None] = {"latency_s": max_latency, "params": max_params, "macs": max_macs}
    limits = {name: value for name, value in budget.items() if value is not None}
    selection: ModelSelection | None = None
    run_options = RunOptions().replaced({
        "log": tuple(log or ()), "license": license, "diagnostics": diagnostics, **_checkpoints(checkpoint_every),
    })  # fmt: skip
    if model == "auto":
        check_start(data, None if folds else out, run_options)  # before the search, which takes minutes
        with console.progress_bar() as progress:
            selection = select_model(
                data, Limits(**limits), weights=weights, search_time=search_time, progress=progress, **options
            )
        training.print_selection(selection)
        network, weights = selection.best.name, selection.best.weights or "none"
        options["data_options"] = selection.data_options(options["data_options"])
    elif limits:
        raise InputError(f"--max-{next(iter(limits)).removesuffix('_s')}: only with --model auto, got {model}")
    options |= {"weights": weights, "out": out, "options": run_options}
    if folds:
        if lr == "find":
            raise InputError("--lr: find works on one run; run it first, then give its rate with --folds")

        def validate(options: Mapping[str, Any]) -> CrossValidation:
            with console.progress_bar(console.console) as progress:
                printer = training.FoldPrinter(progress)
                return cross_validate(data, network, folds=folds, on_event=printer.add, progress=progress, **options)

        outcome = with_weights(validate, options)
        if selection:
            selection.write(outcome.folder)
        training.print_folds(outcome)
        return

    def prepare(options: Mapping[str, Any]) -> Run:
        with console.progress_bar() as progress:
            return prepare_run(data, network, find_lr=lr == "find", progress=progress, **options)

    run = with_weights(prepare, options)
    if selection and run.distributed.is_main:
        selection.write(run.folder)
    if lr == "find":
        console.console.print(f"learning rate {run.config.recipe.lr:.2g}, from the learning-rate finder")
    console.display().print_header(run)
    training.train(run)
    console.display().print_results(run)


def _network(model: str, body: str | None) -> str | Spec:
    """Return the network of --model and --body."""
    from convatlas.models.catalog import variant
    from convatlas.models.families import inflated
    from convatlas.models.families.rcnn import KINDS, FasterRCNN, on_body

    if body is None:
        if model in (*KINDS, inflated.KIND):
            raise InputError(f"--model: {model} needs a body, such as --body resnet18")
        return model
    if model == inflated.KIND:
        return inflated.on_body(model, variant(body))
    detector = model if model in KINDS else variant(model).spec
    if isinstance(detector, inflated.Inflated):
        return inflated.on_body(detector, variant(body))
    if not isinstance(detector, (str, FasterRCNN)):
        raise InputError(
            "--body: needs a detector, such as --model fasterrcnn_resnet18_fpn, or --model inflated, got --model "
            f"{model}"
        )
    return on_body(detector, variant(body))


def _given(**fields: float | None) -> dict[str, float]:
    """Return the fields of the recipe whose options are given."""
    return {name: value for name, value in fields.items() if value is not None}


def _checkpoints(interval: Interval) -> dict[str, float]:
    """Return the options of an interval; with one in steps, the default time between checkpoints holds, too."""
    if interval.steps:
        return {"checkpoint_steps": interval.steps}
    return {"checkpoint_seconds": interval.seconds}


def recipe_fields(pairs: list[str]) -> dict[str, Any]:
    """Return FIELD=VALUE pairs as a mapping."""
    from convatlas.train.recipe_fields import RecipeFields

    fields: dict[str, Any] = {}
    for name, value in assignments(pairs, "FIELD=VALUE such as label_smoothing=0.1"):
        if name not in (known := RecipeFields.__annotations__):
            problem = f"--set: {name} is not a field of a recipe{nearest(name, known)}"
            raise InputError(f"{problem}; `convatlas recipes default` lists the fields")
        fields[name] = value
    return fields
