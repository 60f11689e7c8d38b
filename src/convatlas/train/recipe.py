"""Recipes: how a network is trained, as frozen values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn, optim

from convatlas.data.batches import Augment
from convatlas.errors import SpecError, nearest
from convatlas.tasks.classification import CRITERIA

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["constant", "cosine", "onecycle"]


@dataclass(frozen=True)
class Recipe:
    """All decisions of a training, apart from data, network and seed.

    epochs: passes over the training pictures.
    batch: pictures per step.
    lr: highest learning rate. It grows from zero over `warmup` epochs ("onecycle": over a quarter of the training if
        that is longer), then stays ("constant") or falls along half a cosine ("cosine", "onecycle").
    momentum: Nesterov momentum of SGD, or the first beta of AdamW.
    weight_decay: on weights only, never on biases, gains and norms.
    smoothing: share of the target that is spread over all classes (cross entropy only).
    shuffle: a new order each epoch; without it the order of the data.
    """

    epochs: int = 20
    batch: int = 64
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "onecycle"
    warmup: float = 0.0
    loss: str = "cross_entropy"
    smoothing: float = 0.0
    shuffle: bool = True
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise SpecError(f"recipe.{name}: a whole number from 1 on, not {getattr(self, name)}")
        for name, low, high in (
            ("lr", 0, math.inf), ("momentum", 0, 0.9999), ("weight_decay", 0, math.inf), ("warmup", 0, self.epochs),
            ("smoothing", 0, 1),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high or math.isinf(getattr(self, name)):
                raise SpecError(f"recipe.{name}: {getattr(self, name)} is not between {low} and {high}")
        for name, known in (
            ("optimizer", get_args(Optimizer)),
            ("schedule", get_args(Schedule)),
            ("loss", tuple(CRITERIA)),
        ):
            if getattr(self, name) not in known:
                raise SpecError(f"recipe.{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.smoothing and self.loss != "cross_entropy":
            raise SpecError(f"recipe.smoothing: only cross_entropy can be smoothed, not {self.loss}")

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

    def build_optimizer(self, network: nn.Module) -> optim.Optimizer:
        """Return the optimiser, with weight decay only on weights of two or more dimensions."""
        weights: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in network.named_parameters():
            is_weight = parameter.ndim >= 2 and not name.endswith("bias")
            (weights if is_weight else others).append(parameter)
        pairs = ((weights, self.weight_decay), (others, 0.0))
        groups: list[dict[str, Any]] = [{"params": chosen, "weight_decay": decay} for chosen, decay in pairs if chosen]
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in (*weights, *others))
        if self.optimizer == "sgd":
            nesterov = self.momentum > 0
            return optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=nesterov, fused=fused)
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
            fits: tuple[type, ...] = {"int": (int,), "float": (int, float), "bool": (bool,)}.get(str(kind), (str,))
            if type(value) not in fits:
                raise SpecError(f"recipe.{name}: expected {kind}, got {value!r}")
        augment = dataclasses.replace(self.augment, **{n: v for n, v in changes.items() if n in extra})
        return dataclasses.replace(self, **{n: v for n, v in changes.items() if n in own}, augment=augment)

    def to_plain(self) -> dict[str, Any]:
        """Return all fields as plain data, those of augment beside the others; `replaced` reads it back."""
        plain = dataclasses.asdict(self)
        augment: dict[str, Any] = plain.pop("augment")
        return plain | augment


RECIPES: dict[str, Recipe] = {
    # small pictures, small networks: shifts of up to 2 px stand for distortions
    "default": Recipe(augment=Augment(shift=2)),
    # LeCun et al. 1989: one picture at a time in a fixed order, squared error, 23 passes. Their diagonal quasi-Newton
    # step is replaced by plain SGD.
    "lecun1989": Recipe(
        epochs=23, batch=1, lr=0.01, momentum=0.0, weight_decay=0.0, schedule="constant", loss="squared_error",
        shuffle=False,
    ),
    # LeCun et al. 1998: the discriminative MAP loss, 20 passes, distorted pictures. Their stochastic
    # Levenberg-Marquardt, a step size for each weight, is replaced by AdamW; their distortions by shifts.
    "lecun1998": Recipe(optimizer="adamw", lr=0.002, weight_decay=0.0, loss="map", augment=Augment(shift=1)),
    # Sabour et al. 2017: Adam, margin loss, shifts of up to 2 px. One cycle stands for their slow decay, which needs
    # hundreds of passes.
    "sabour2017": Recipe(
        epochs=5, batch=128, optimizer="adamw", lr=0.003, weight_decay=0.0, loss="margin", augment=Augment(shift=2),
    ),
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """Return a recipe by name; raises SpecError that suggests the nearest."""
    if name not in RECIPES:
        raise SpecError(f"unknown recipe {name!r}{nearest(name, RECIPES)}; known: {', '.join(RECIPES)}")
    return RECIPES[name]
