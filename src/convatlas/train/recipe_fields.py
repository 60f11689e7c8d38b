"""The fields of a recipe as keywords of `fit`, and what other keywords probably mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from convatlas.core.record import Record
from convatlas.data.augment_ops import Policy
from convatlas.errors import check_keywords
from convatlas.train.recipe import Optimizer, Schedule
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions


class RecipeFields(TypedDict, total=False):
    """The fields of a recipe and of its augmentation, as keywords; see `Recipe` and `Augment`."""

    epochs: int
    min_steps: int
    batch: int
    micro_batch: int
    optimizer: Optimizer
    lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule
    warmup: float
    grad_clip: float
    loss: str
    label_smoothing: float
    class_weight_power: float
    ema_decay: float
    head_epochs: int
    frozen_stages: int
    layer_decay: float
    freeze_bn_stats: bool
    patience: int
    dropout: float | None
    drop_path: float | None
    shuffle: bool
    min_crop_area: float
    flip: bool
    max_shift: int
    policy: Policy
    magnitude: int
    jitter: float
    random_erasing: float
    mixup: float
    cutmix: float
    multi_scale: float
    scale_jitter: float


_OPTIONS: dict[str, type[Record]] = {"data_options": DataOptions, "execution": ExecutionOptions, "options": RunOptions}

_WEIGHTS = 'weights="auto" (the default) starts from published weights, weights="none" from random ones'

_HINTS = {
    "overrides": "the fields of a recipe are keywords themselves, such as epochs=3",
    "augment": "the fields of the augmentation are keywords themselves, such as flip=True",
    "pretrained": _WEIGHTS,
    "pretrained_weights": _WEIGHTS,
    "verbose": "progress=False prints nothing",
    **dict.fromkeys(("num_classes", "classes", "n_classes", "nc"), "the classes are those of the data"),
    **dict.fromkeys(("workers", "num_workers"), "images are read once, without worker processes"),
    **dict.fromkeys(("batch_size", "bs"), "the number of images per step is batch"),
    **dict.fromkeys(("learning_rate", "lr0"), "the peak learning rate is lr"),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs", "steps"), "the length of the training is epochs"),
    **dict.fromkeys(
        ("image_size", "img_size", "imgsz", "input_size", "size"),
        "the resolution is data_options=ca.DataOptions(resolution=224)",
    ),
}


def check_fields(
    function: Callable[..., Any], fields: Mapping[str, object], hints: Mapping[str, str] | None = None
) -> None:
    """Raise InputError for a keyword of `function` that is neither a parameter of it nor a field of a recipe.

    hints: what other keywords mean, in addition to those of `fit`.
    """
    parameters = [
        name for name, each in inspect.signature(function).parameters.items() if each.kind != each.VAR_KEYWORD
    ]
    known = {*parameters, *RecipeFields.__annotations__}
    if fields.keys() <= known:
        return
    all_hints = dict(_HINTS)
    for parameter, record in _OPTIONS.items():
        for name in record.hints():
            all_hints[name] = f"it is a field of {parameter}=ca.{record.__name__}({name}=...)"
    check_keywords(function.__name__, fields, known, {**all_hints, **(hints or {})})
