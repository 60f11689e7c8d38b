"""Checkpoints: the whole state of a training between two steps, in one file that loads without running code."""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from convatlas.core.record import check_version
from convatlas.errors import RunError, brief
from convatlas.system.files import atomic
from convatlas.train.optim import EMA

VERSION = 1
"""The format version of checkpoints that this code writes, and the newest that it reads."""


@dataclass
class State:
    """What changes while training, besides weights and optimizer.

    step: the next step. loss_sum, metric_sum, images: sums over the epoch so far, without the `skipped` steps.
    consecutive_skips: number of non-finite steps up to the last one.
    history: one row for each epoch. best_epoch, best_score, best_loss: of the val split, so far.
    seconds: time spent in training steps. finished: whether the final evaluation is done.
    """

    step: int = 0
    loss_sum: float = 0.0
    metric_sum: float = 0.0
    images: int = 0
    skipped: int = 0
    consecutive_skips: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -math.inf
    best_loss: float = math.inf
    seconds: float = 0.0
    finished: bool = False

    def start_epoch(self) -> None:
        """Set the sums over the epoch to zero."""
        self.loss_sum, self.metric_sum, self.images, self.skipped = 0.0, 0.0, 0, 0


def save_checkpoint(
    path: Path, network: nn.Module, optimizer: optim.Optimizer, state: State, ema: EMA | None = None
) -> None:
    """Write everything needed to resume at `state.step`, atomically."""
    whole = {
        "version": VERSION, "network": network.state_dict(), "optimizer": optimizer.state_dict(),
        "state": asdict(state),
    }  # fmt: skip
    if ema:
        whole["ema"] = {"network": ema.network.state_dict(), "steps": ema.steps}
    buffer = io.BytesIO()  # torch.save turns a full disk into an error of its own
    torch.save(whole, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path, network: nn.Module, optimizer: optim.Optimizer, ema: EMA | None = None) -> State:
    """Load weights and optimizer state into the arguments, and return the training state.

    Raises RunError if the file is damaged, of a newer version, or of another network or recipe.
    """
    try:
        whole: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise RunError(f"{path}: the checkpoint is damaged ({brief(error)})") from error
    if not isinstance(whole, dict):
        raise RunError(f"{path}: not a checkpoint")
    check_version(whole.get("version"), VERSION, str(path), RunError)
    known = {each.name for each in fields(State)}
    parts = {"network", "optimizer", "state"} | ({"ema"} if ema else set())
    if not parts <= whole.keys() or set(whole["state"]) != known:
        raise RunError(f"{path}: the checkpoint is of another recipe or incomplete; its parts: {', '.join(whole)}")
    try:
        network.load_state_dict(whole["network"])
        optimizer.load_state_dict(whole["optimizer"])
        if ema:
            ema.network.load_state_dict(whole["ema"]["network"])
            ema.steps = whole["ema"]["steps"]
    except (RuntimeError, ValueError) as error:  # what torch raises for tensors that do not fit
        raise RunError(f"{path}: the checkpoint does not fit the run ({brief(error)})") from error
    return State(**whole["state"])
