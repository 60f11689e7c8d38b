"""How a run is carried out."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec, from_plain
from convatlas.data.splits import VAL_SHARE, Fold
from convatlas.errors import RunError
from convatlas.models.catalog import SPEC_TYPES, Stem
from convatlas.train.loggers import LOGGERS
from convatlas.train.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """How a run is carried out, apart from data, network, recipe and seed.

    size: resolution in pixels instead of the network's own.
    stem: "small" for the first layers for images of up to 64 pixels (at 32 px, where no size is given).
    channels: 1 reads images as gray, 3 as RGB; as the data has it where left out.
    device: "cpu", "cuda", "mps" or "auto".
    threads: CPU threads; torch's own number where left out. The order of sums, and so the last bits, depend on it.
    layout, precision, compiled: how steps are carried out (see `train.compute`); "auto" measures what is fastest here.
    kernels: norms and activations by kernels of our own on CPUs with a C compiler; the last bits depend on it.
    keep_heap: let the C library keep its memory between the steps, which is faster and takes a little more of it.
    val_share: share of the training images set aside to choose the best epoch, where the data has no val split;
        with 0 all are trained on and the last epoch is taken.
    fold: (number, count): the images of this one of so many folds are the val split instead.
    max_unreadable: share of unreadable images that is left out and listed before the run refuses to start.
    checkpoint_seconds, checkpoint_steps: a checkpoint is written when either has passed (0 steps: by time only).
    log: where else numbers go: "tensorboard", "wandb", "mlflow".
    download: allow to fetch a data set given by name.
    license: what is sealed into the model file.
    """

    size: int | None = None
    stem: Stem = "own"
    channels: int | None = None
    device: str = "auto"
    threads: int | None = None
    layout: str = "auto"
    precision: str = "auto"
    compiled: bool = False
    kernels: bool = True
    keep_heap: bool = True
    val_share: float = VAL_SHARE
    fold: Fold | None = None
    max_unreadable: float = 0.01
    checkpoint_seconds: float = 30.0
    checkpoint_steps: int = 0
    log: tuple[str, ...] = ()
    download: bool = False
    license: str = ""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise RunError(f"threads: a whole number from 1 on, not {self.threads}")
        if not 0 <= self.checkpoint_seconds < math.inf or self.checkpoint_steps < 0:
            raise RunError("checkpoint_seconds and checkpoint_steps are numbers from 0 on")
        if not (0 <= self.val_share < 1 and 0 <= self.max_unreadable <= 1):
            raise RunError("val_share and max_unreadable are shares between 0 and 1")
        for name in self.log:
            if name not in LOGGERS:
                raise RunError(f"log: {name!r} is not one of {', '.join(LOGGERS)}")


@dataclass(frozen=True)
class Config:
    """Everything that determines a run, as written to run.json.

    weights: what the training began from, as it was named; empty for fresh weights.
    """

    data: str
    model: str
    weights: str
    spec: Spec
    preprocessing: Preprocessing
    recipe: Recipe
    seed: int
    settings: Settings
    classes: tuple[str, ...]
    fingerprint: str
    versions: dict[str, str]

    def to_plain(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        records = {name: plain[name].to_plain() for name in ("spec", "preprocessing", "recipe")}
        return plain | records | {"settings": dataclasses.asdict(self.settings), "classes": list(self.classes)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Config:
        return cls(
            **plain
            | {
                "spec": from_plain(plain["spec"], SPEC_TYPES),
                "preprocessing": Preprocessing.from_plain(plain["preprocessing"]),
                "recipe": Recipe().replaced(plain["recipe"]),
                "settings": _settings(plain["settings"]),
                "classes": tuple(plain["classes"]),
            }
        )


def _settings(plain: dict[str, Any]) -> Settings:
    fold = plain["fold"]
    return Settings(**plain | {"fold": None if fold is None else tuple(fold), "log": tuple(plain["log"])})
