"""Recipes: how a network is trained, as frozen values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import optim

from convatlas.core.network import Network
from convatlas.data.augment import Augment
from convatlas.errors import SpecError, brief, nearest
from convatlas.tasks.classification.losses import CRITERIA, SMOOTHED
from convatlas.train.optim import param_groups_by_depth

Optimizer = Literal["sgd", "adamw", "rmsprop"]
Schedule = Literal["constant", "cosine", "onecycle"]


@dataclass(frozen=True)
class Recipe:
    """All decisions of a training, apart from data, network and seed.

    epochs: passes over the training images.
    batch: images per step.
    lr: highest learning rate. It grows from zero over `warmup` epochs ("onecycle": over a quarter of the training if
        that is longer), then stays ("constant") or falls along half a cosine ("cosine", "onecycle").
    micro: images in memory at once, fewer than `batch` where memory is short; their gradients are added up, so the
        update stays that of the whole batch (norms see the smaller number). 0: the whole batch.
    momentum: Nesterov momentum of SGD, the first beta of AdamW, or momentum of RMSprop.
    weight_decay: on weights only, never on biases, gains and norms.
    clip: largest norm of the gradient of all weights; a longer one is shortened. 0: as it is.
    loss: one of tasks.classification.losses; for multi-label data, cross entropy becomes binary cross entropy.
    smoothing: share of the target that is spread over all classes (cross entropies only).
    balance: weight of a class in the loss: its share of the images to the power of -balance. 0: all alike; 1: as if
        all classes had equally many images.
    average: decay per step of a moving average of the weights, which is measured and sealed in their place. 0: none.
    head_epochs: epochs at the start in which the head learns alone.
    layer_decay: factor on the learning rate from each stage to the one before it, from the head down to the stem.
    freeze_bn_stats: keep the running statistics of batch norms as they are.
    patience: the training ends after so many epochs without a better val split. 0: never before the last epoch.
    dropout: rate of the dropout layers, before the classifier where there is none. None: as in the network's paper.
    drop_path: share of the images for which the last residual branch is left out (stochastic depth), earlier ones less.
        None: as in the network's paper.
    shuffle: a new order each epoch; without it the order of the data.
    """

    epochs: int = 20
    batch: int = 64
    micro_batch: int = 0
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "onecycle"
    warmup: float = 0.0
    grad_clip: float = 0.0
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    class_weight_power: float = 0.0
    ema_decay: float = 0.0
    head_epochs: int = 0
    layer_decay: float = 1.0
    freeze_bn_stats: bool = False
    patience: int = 0
    dropout: float | None = None
    drop_path: float | None = None
    shuffle: bool = True
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch": 1, "micro_batch": 0, "head_epochs": 0, "patience": 0}.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise SpecError(f"recipe.{name}: a whole number from {least} on, not {getattr(self, name)}")
        for name, low, high in (
            ("lr", 0, math.inf), ("momentum", 0, 0.9999), ("weight_decay", 0, math.inf), ("warmup", 0, self.epochs),
            ("label_smoothing", 0, 1), ("grad_clip", 0, math.inf), ("class_weight_power", 0, 1), ("ema_decay", 0, 0.99999),
            ("layer_decay", 0, 1), ("micro_batch", 0, self.batch), ("head_epochs", 0, self.epochs),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high or math.isinf(getattr(self, name)):
                raise SpecError(f"recipe.{name}: {getattr(self, name)} is not between {low} and {high}")
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise SpecError(f"recipe.{name}: {value} is not a share from 0 to 1")
        for name, known in (
            ("optimizer", get_args(Optimizer)),
            ("schedule", get_args(Schedule)),
            ("loss", tuple(CRITERIA)),
        ):
            if getattr(self, name) not in known:
                raise SpecError(f"recipe.{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise SpecError(f"recipe.label_smoothing: only {' and '.join(SMOOTHED)} can be smoothed, not {self.loss}")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of `step`, counted from 0 over the whole training."""
        total, done = self.epochs * steps_per_epoch, step + 1
        rising = self.warmup * steps_per_epoch
        if self.schedule == "onecycle":
            rising = max(rising, 0.25 * total)
        if done < rising:
            return self.lr * done / rising
        if self.schedule == "constant":
            return self.lr
        # from the top to nearly zero at the last step, which still moves a little
        return self.lr * 0.5 * (1 + math.cos(math.pi * (done - rising) / (total - rising + 1)))

    def build_optimizer(self, network: Network) -> optim.Optimizer:
        """Return the optimizer: a group of weights, which decay, and one of the rest for each learning rate.

        A group's `share` is its factor on the learning rate of a step.
        """
        groups: list[dict[str, Any]] = []
        # what waits for the head has groups of its own: the fused optimizers want all of a group to have begun
        apart = self.layer_decay < 1 or self.head_epochs
        by_depth = param_groups_by_depth(network) if apart else [("all", list(network.parameters()))]
        matrices = {id(p) for name, p in network.named_parameters() if p.ndim >= 2 and not name.endswith("bias")}
        for distance, (_, parameters) in enumerate(reversed(by_depth)):
            share = self.layer_decay**distance
            weights = [p for p in parameters if id(p) in matrices]
            others = [p for p in parameters if id(p) not in matrices]
            for chosen, decay in ((weights, self.weight_decay), (others, 0.0)):
                if chosen:
                    groups.append({"params": chosen, "weight_decay": decay, "share": share})
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in network.parameters())
        if self.optimizer == "sgd":
            nesterov = self.momentum > 0
            return optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=nesterov, fused=fused)
        if self.optimizer == "rmsprop":  # the constants of the MobileNets and EfficientNets, from their papers
            return optim.RMSprop(groups, lr=self.lr, alpha=0.9, eps=0.001, momentum=self.momentum)
        return optim.AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999), fused=fused)

    def replaced(self, changes: Mapping[str, Any]) -> Recipe:
        """Return this recipe with other values; fields of augment are named without a prefix.

        Raises SpecError for unknown fields and for values of a wrong type.
        """
        own = {f.name: f.type for f in dataclasses.fields(Recipe) if f.name != "augment"}
        extra = {f.name: f.type for f in dataclasses.fields(Augment)}
        for name, value in changes.items():
            kind = {**own, **extra}.get(name)
            if kind is None:
                raise SpecError(f"recipe.{name}: no such field{nearest(name, {**own, **extra})}")
            fits: tuple[type, ...] = _TYPES.get(str(kind), (str,))
            if type(value) not in fits:
                raise SpecError(f"recipe.{name}: expected {kind}, got {value!r}")
        augment = dataclasses.replace(self.augment, **{n: v for n, v in changes.items() if n in extra})
        return dataclasses.replace(self, **{n: v for n, v in changes.items() if n in own}, augment=augment)

    def to_plain(self) -> dict[str, Any]:
        """Return all fields as plain data, those of augment beside the others; `replaced` reads it back."""
        plain = dataclasses.asdict(self)
        augment: dict[str, Any] = plain.pop("augment")
        return plain | augment


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "float | None": (int, float, type(None)),
}  # fmt: skip


RECIPES: dict[str, Recipe] = {
    # small images, small networks: shifts of up to 2 px stand for distortions
    "default": Recipe(augment=Augment(max_shift=2)),
    # pretrained weights: the head alone for an epoch, then all, the stem slowest. Batch norms learn along: with their
    # statistics kept, a learning rate of 0.01 diverges (freeze_bn_stats wants 0.002, and is right for batches below 8)
    "finetune": Recipe(
        epochs=5, batch=16, lr=0.01, weight_decay=1e-4, head_epochs=1, layer_decay=0.8, label_smoothing=0.1,
        augment=Augment(min_crop_area=0.35, flip=True),
    ),
    # small networks on small images from nothing: crops, flips, erased rectangles, an average of the weights
    "scratch-small": Recipe(
        epochs=30, batch=128, lr=0.1, label_smoothing=0.05, ema_decay=0.999, augment=Augment(max_shift=4, flip=True, random_erasing=0.25),
    ),
    # large images from nothing (Wightman et al. 2021 and torchvision's new recipe, without their most costly parts)
    "imagenet": Recipe(
        epochs=100, batch=256, lr=0.5, weight_decay=5e-5, warmup=5, schedule="cosine", label_smoothing=0.1, ema_decay=0.9999,
        augment=Augment(min_crop_area=0.08, flip=True, policy="trivial", random_erasing=0.1, mixup=0.2, cutmix=1.0),
    ),
    # LeCun et al. 1989: one image at a time in a fixed order, squared error, 23 passes. Their diagonal quasi-Newton
    # step is replaced by plain SGD.
    "lecun1989": Recipe(
        epochs=23, batch=1, lr=0.01, momentum=0.0, weight_decay=0.0, schedule="constant", loss="squared_error",
        shuffle=False,
    ),
    # LeCun et al. 1998: the discriminative MAP loss, 20 passes, distorted images. Their stochastic
    # Levenberg-Marquardt, a step size for each weight, is replaced by AdamW; their distortions by shifts.
    "lecun1998": Recipe(optimizer="adamw", lr=0.002, weight_decay=0.0, loss="map", augment=Augment(max_shift=1)),
    # Sabour et al. 2017: Adam, margin loss, shifts of up to 2 px. One cycle stands for their slow decay, which needs
    # hundreds of passes.
    "sabour2017": Recipe(
        epochs=5, batch=128, optimizer="adamw", lr=0.003, weight_decay=0.0, loss="margin", augment=Augment(max_shift=2),
    ),
}  # fmt: skip


def usual(own: str, *, pretrained: bool) -> str:
    """Return the name of the recipe for a network whose `own` is this, where none is asked for."""
    return "finetune" if pretrained else own


def recipe(name: str) -> Recipe:
    """Return a recipe by name, or from a YAML file; raises SpecError that suggests the nearest.

    A file has the fields that differ from the recipe that its field `recipe` names ("default" if it has none).
    """
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name))
    if name not in RECIPES:
        raise SpecError(f"unknown recipe {name!r}{nearest(name, RECIPES)}; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def _number(value: Any) -> Any:
    """Return a number for text such as 1e-3, which is none to YAML 1.1."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _read(path: Path) -> Recipe:
    import yaml

    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {brief(error)}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(held, dict) or not all(isinstance(key, str) for key in held):
        raise SpecError(f"{path}: expected fields of a recipe, one on each line, such as `lr: 0.1`")
    base = held.pop("recipe", "default")
    if not isinstance(base, str) or base not in RECIPES:
        raise SpecError(f"{path}: recipe: {base!r} is not one of {', '.join(RECIPES)}")
    try:
        return RECIPES[base].replaced({name: _number(value) for name, value in held.items()})
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
