"""Recipes: how a network is trained, as frozen values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from convatlas.core.record import Inline, Record, at_least, between, from_up_to
from convatlas.data.augment import Augment
from convatlas.errors import SpecError, nearest
from convatlas.system.files import read_yaml
from convatlas.tasks.classification.losses import SMOOTHED
from convatlas.tasks.known import check_loss

Optimizer = Literal["sgd", "adamw", "rmsprop"]
Schedule = Literal["constant", "cosine", "onecycle", "wsd"]


@dataclass(frozen=True)
class Recipe(Record):
    """All decisions of a training, apart from data, network and seed.

    epochs: passes over the training images.
    min_steps: minimum number of steps of the training; of few images, there are more epochs to reach it.
    batch: images per step.
    micro_batch: images per forward pass, fewer than `batch` to save memory; their gradients are accumulated, so the
        update is that of the whole batch (batch norms see the smaller number). 0: the whole batch.
    lr: peak learning rate. It rises from zero over `warmup` epochs ("onecycle": over a quarter of the training if
        that is longer), then stays ("constant"), falls along half a cosine ("cosine", "onecycle"), or stays and falls
        in the last 60 % of the training ("wsd": warm-up, stable, decay; Hu et al. 2024, MiniCPM, section 4).
    momentum: Nesterov momentum of SGD, the first beta of AdamW, or momentum of RMSprop.
    weight_decay: for weights only, never for biases and norms.
    grad_clip: maximum norm of the gradient of all weights; a larger one is scaled down. 0: no clipping.
    loss: one of the task's losses; "auto" is the task's default (cross entropy, binary for multi-label data).
    label_smoothing: share of the target that is spread over all classes (cross entropies only).
    class_weight_power: a class's weight in the loss is its frequency to the power of -class_weight_power. 0: equal
        weights for all images; 1: as if all classes had equally many images.
    ema_decay: decay per step of the exponential moving average of the weights, which is evaluated and saved instead of
        them. 0: none.
    head_epochs: epochs at the start in which only the head is trained.
    frozen_stages: number of parts at the input that are never trained, norms included. 0: none; 1: the stem; 2: the
        stem and the first stage; and so on.
    layer_decay: factor on the learning rate from each stage to the one before it, from the head down to the stem.
    freeze_bn_stats: keep the running statistics of batch norms as they are.
    patience: number of epochs without an improvement on val after which training stops early. 0: no early stopping.
    dropout: rate of the dropout layers, or of one before the classifier. None: as in the network's paper.
    drop_path: rate of stochastic depth in the last residual branch, lower in earlier ones. None: as in the paper.
    shuffle: a new order each epoch; False keeps the order of the data.
    """

    epochs: Annotated[int, at_least(1)] = 20
    min_steps: Annotated[int, at_least(0)] = 0
    batch: Annotated[int, at_least(1)] = 64
    micro_batch: Annotated[int, at_least(0)] = 0
    optimizer: Optimizer = "sgd"
    lr: Annotated[float, at_least(0)] = 0.05
    momentum: Annotated[float, between(0, 0.9999)] = 0.9
    weight_decay: Annotated[float, at_least(0)] = 5e-4
    schedule: Schedule = "onecycle"
    warmup: Annotated[float, at_least(0)] = 0.0
    grad_clip: Annotated[float, at_least(0)] = 0.0
    loss: str = "auto"
    label_smoothing: Annotated[float, between(0, 1)] = 0.0
    class_weight_power: Annotated[float, between(0, 1)] = 0.0
    ema_decay: Annotated[float, between(0, 0.99999)] = 0.0
    head_epochs: Annotated[int, at_least(0)] = 0
    frozen_stages: Annotated[int, at_least(0)] = 0
    layer_decay: Annotated[float, between(0, 1)] = 1.0
    freeze_bn_stats: bool = False
    patience: Annotated[int, at_least(0)] = 0
    dropout: Annotated[float, from_up_to(0, 1)] | None = None
    drop_path: Annotated[float, from_up_to(0, 1)] | None = None
    shuffle: bool = True
    augment: Annotated[Augment, Inline()] = field(default_factory=Augment)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, limit in (("micro_batch", "batch"), ("warmup", "epochs"), ("head_epochs", "epochs")):
            value, largest = getattr(self, name), getattr(self, limit)
            if value > largest:
                raise SpecError(f"Recipe: {name} must be <= {limit} ({largest}), got {value}")
        check_loss(self.loss)
        if self.label_smoothing and self.loss not in ("auto", *SMOOTHED):
            raise SpecError(f"Recipe: label_smoothing must be 0 for {self.loss}; {' and '.join(SMOOTHED)} support it")

    def replaced(self, changes: Mapping[str, Any], *, where: str = "") -> Self:
        """Return the recipe with new values; given epochs are exact: `min_steps` is then 0 unless it is given, too."""
        if "epochs" in changes and "min_steps" not in changes:
            changes = {**changes, "min_steps": 0}
        return super().replaced(changes, where=where)

    def lengthened(self, steps_per_epoch: int) -> Recipe:
        """Return the recipe with as many epochs as `min_steps` takes; warmup grows with them.

        If the head is trained alone at first, it is in the added epochs, too: few images hardly improve other layers.
        """
        epochs = max(self.epochs, math.ceil(self.min_steps / steps_per_epoch))
        head_epochs = self.head_epochs + epochs - self.epochs if self.head_epochs else 0
        return dataclasses.replace(
            self, epochs=epochs, head_epochs=head_epochs, warmup=self.warmup * epochs / self.epochs
        )


RECIPES: dict[str, Recipe] = {
    # Small images and networks: shifts of up to 2 px stand in for distortions.
    # LeNet-5 (modern) on Fashion-MNIST: 89.1 % in 10 epochs, 36 s (README.md).
    "default": Recipe(augment=Augment(max_shift=2)),
    # Pretrained weights: the head alone for an epoch, then all layers, the stem slowest. Statistics of batch norms
    # are updated: with frozen ones (freeze_bn_stats, for batches below 8) lr=0.01 diverges and 0.002 works.
    # MobileNetV2 on hymenoptera: 93.6 % over five seeds, 22 s each (docs/benchmarks.md). At least 40 steps: on 40
    # images in 4 classes (32 are trained on), 5 epochs are 10 steps (docs/training.md).
    # Gradients are clipped because of networks without norms: SqueezeNet 1.1 diverges otherwise (docs/benchmarks.md).
    "finetune": Recipe(
        epochs=5, min_steps=40, batch=16, lr=0.01, weight_decay=1e-4, grad_clip=2.0, head_epochs=1, layer_decay=0.8,
        label_smoothing=0.1, augment=Augment(min_crop_area=0.35, flip=True),
    ),
    # Detectors with a pretrained body: the stem and the first stage stay as they are, and so do the statistics of batch
    # norms, because a step has few images. The rate is high for the few steps of small data, and a quarter of one that
    # diverges (docs/detection.md).
    "finetune-detection": Recipe(
        epochs=12, min_steps=400, batch=4, lr=0.01, weight_decay=1e-4, schedule="cosine", warmup=0.5, grad_clip=10.0,
        frozen_stages=2, freeze_bn_stats=True, augment=Augment(flip=True, jitter=0.2, multi_scale=0.3),
    ),
    # Detectors from random weights (He et al. 2019, "Rethinking ImageNet pre-training"): trained norms, and longer.
    # Not yet tested in a complete training.
    "scratch-detection": Recipe(
        epochs=36, min_steps=2000, batch=4, lr=0.01, weight_decay=1e-4, schedule="cosine", warmup=1, grad_clip=10.0,
        augment=Augment(flip=True, jitter=0.2, multi_scale=0.3),
    ),
    # Small networks on small images from scratch: shifts, flips, random erasing, EMA.
    # CIFAR ResNet-20 on Fashion-MNIST: 93.6 % in 415 s (docs/benchmarks.md).
    "scratch-small": Recipe(
        epochs=30, batch=128, lr=0.1, label_smoothing=0.05, ema_decay=0.999,
        augment=Augment(max_shift=4, flip=True, random_erasing=0.25),
    ),
    # Large images from scratch: Wightman et al. 2021 and torchvision's new recipe, without their most expensive parts.
    # Not yet tested in a complete training.
    "imagenet": Recipe(
        epochs=100, batch=256, lr=0.5, weight_decay=5e-5, warmup=5, schedule="cosine", label_smoothing=0.1,
        ema_decay=0.9999,
        augment=Augment(min_crop_area=0.08, flip=True, policy="trivial", random_erasing=0.1, mixup=0.2, cutmix=1.0),
    ),
    # LeCun et al. 1989: one image per step in a fixed order, squared error, 23 epochs. Plain SGD replaces their
    # diagonal quasi-Newton step.
    "lecun1989": Recipe(
        epochs=23, batch=1, lr=0.01, momentum=0.0, weight_decay=0.0, schedule="constant", loss="squared_error",
        shuffle=False,
    ),
    # LeCun et al. 1998: the discriminative MAP loss, 20 epochs, distorted images. AdamW replaces their stochastic
    # Levenberg-Marquardt, a step size for each weight; shifts replace their distortions.
    "lecun1998": Recipe(optimizer="adamw", lr=0.002, weight_decay=0.0, loss="lecun_map", augment=Augment(max_shift=1)),
    # Sabour et al. 2017: Adam, margin loss, shifts of up to 2 px. One cycle replaces their slow decay, which needs
    # hundreds of epochs. CapsNet (reduced) on MNIST: 0.69 % error (docs/benchmarks.md).
    "sabour2017": Recipe(
        epochs=5, batch=128, optimizer="adamw", lr=0.003, weight_decay=0.0, loss="margin", augment=Augment(max_shift=2),
    ),
}  # fmt: skip


PURPOSES = {
    "default": "small networks on small images, from random weights",
    "finetune": "pretrained weights; the default if a training starts from them",
    "finetune-detection": "detectors whose body has pretrained weights; the default if a training starts from them",
    "scratch-detection": "detectors from random weights",
    "scratch-small": "CIFAR networks on images of up to 64 px, from random weights, to a high accuracy",
    "imagenet": "large data sets of large images, from random weights",
    "lecun1989": "the training of LeCun et al. 1989; the default of convnet1989",
    "lecun1998": "the training of LeCun et al. 1998; the default of the LeNets of that paper",
    "sabour2017": "the training of Sabour et al. 2017; the default of the CapsNets",
}
"""What each recipe is for."""


def fine_tuning(predicts: str) -> str:
    """Return the name of the recipe for pretrained weights of networks for a kind of outputs; see `Spec.predicts`."""
    return "finetune" if predicts == "classes" else "finetune-detection"


def recipe_changes(recipe: Recipe) -> dict[str, Any]:
    """Return the fields in which a recipe differs from "default"."""
    default = RECIPES["default"].to_plain()
    return {name: value for name, value in recipe.to_plain().items() if value != default[name]}


def get_recipe(name: str) -> Recipe:
    """Return a recipe by name, or from a YAML file; raises SpecError that suggests the nearest name.

    A file contains the fields that differ from the recipe that its field `recipe` names ("default" if omitted).
    """
    if name.endswith((".yaml", ".yml")):
        return _read_yaml(Path(name))
    if name not in RECIPES:
        raise SpecError(f"unknown recipe {name!r}{nearest(name, RECIPES)}; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def _to_number(value: Any) -> Any:
    """Return a number for text such as 1e-3, which YAML 1.1 reads as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _read_yaml(path: Path) -> Recipe:
    plain = read_yaml(path, SpecError)
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise SpecError(f"{path}: must be fields of a recipe, one on each line, such as `lr: 0.1`")
    base = plain.pop("recipe", "default")
    if not isinstance(base, str) or base not in RECIPES:
        raise SpecError(f"{path}: recipe must be one of {', '.join(RECIPES)}, got {base!r}")
    return RECIPES[base].replaced({name: _to_number(value) for name, value in plain.items()}, where=str(path))
