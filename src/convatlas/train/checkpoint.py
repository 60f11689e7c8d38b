"""Checkpoints: the whole state of a training between two steps, in one file that loads without running code."""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from convatlas.errors import RunError, brief
from convatlas.system.files import atomic
from convatlas.train.loop import EMA


@dataclass
class State:
    """What changes while training, besides weights and optimizer.

    step: the next step to take. loss_sum, correct, seen: sums over the epoch so far, without the `skipped` steps.
    failing: so many steps, up to the last one, were not finite.
    history: one row per epoch.
    best_epoch, best_score, best_loss: of the val split, so far. seconds: time spent training.
    """

    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    skipped: int = 0
    failing: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -1.0
    best_loss: float = math.inf
    seconds: float = 0.0
    finished: bool = False


def save_checkpoint(
    path: Path, network: nn.Module, optimizer: optim.Optimizer, state: State, average: EMA | None = None
) -> None:
    """Write everything needed to go on from `state.step`, atomically."""
    whole = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "state": asdict(state)}
    if average:
        whole["average"] = {"network": average.network.state_dict(), "steps": average.steps}
    buffer = io.BytesIO()  # torch.save turns a full disk into an error of its own
    torch.save(whole, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path, network: nn.Module, optimizer: optim.Optimizer, average: EMA | None = None) -> State:
    """Put the saved weights and optimizer state back and return the rest; raises RunError if the file is damaged."""
    try:
        whole: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        network.load_state_dict(whole["network"])
        optimizer.load_state_dict(whole["optimizer"])
        if average:
            average.network.load_state_dict(whole["average"]["network"])
            average.steps = whole["average"]["steps"]
        return State(**whole["state"])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(f"{path}: the checkpoint is damaged ({brief(error)})") from error
