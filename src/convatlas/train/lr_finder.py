"""Learning-rate finder: a short training with an exponentially rising learning rate (Smith 2017)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.data.loader import BatchLoader
from convatlas.errors import RunError
from convatlas.system.progress import Progress
from convatlas.tasks.targets import Batch
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.optim import build_optimizer, set_lr
from convatlas.train.recipe import Recipe
from convatlas.train.step import StepRunner, seed_step

NUM_STEPS = 100
MIN_LR, MAX_LR = 1e-6, 10.0
"""The learning rate rises from the first to the second in `NUM_STEPS` steps."""

MAX_LOSS_RATIO = 4.0
"""The training stops when the loss exceeds its minimum by this factor."""

SMOOTHING = 0.9
"""Decay of the exponential moving average of the loss, per step."""

SLOPE_STEPS = 4
"""Number of steps on each side over which the slope of the loss is taken."""


@dataclass(frozen=True)
class LRFinderResult:
    """The curve of a learning-rate finder.

    lrs: learning rates in rising order. losses: the smoothed loss at each. suggestion: the learning rate to use.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float

    def __str__(self) -> str:
        return f"learning rate {self.suggestion:.2g}: the steepest descent of {len(self.lrs)} steps"


def find_lr(
    network: Network, loader: BatchLoader, recipe: Recipe, *, seed: int, plan: ExecutionPlan | None = None,
    class_weights: Tensor | None = None, progress: Progress | None = None,
) -> LRFinderResult:  # fmt: skip
    """Train a copy of a network with a rising learning rate, and suggest the one at which the loss falls fastest.

    The slope is taken against the logarithm of the learning rate, before the minimum of the loss.
    seed: of dropout and stochastic depth. class_weights: (classes,), see `Task.class_weights`.
    Raises RunError if the loss does not fall.
    """
    network = copy.deepcopy(network)
    runner = StepRunner(network, loader.task, recipe, plan or ExecutionPlan(), class_weights=class_weights)
    runner.freeze_for(recipe.head_epochs)
    optimizer = build_optimizer(recipe, network)
    lrs: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for number, batch in enumerate(_batches(loader)):
        lr = MIN_LR * (MAX_LR / MIN_LR) ** (number / (NUM_STEPS - 1))
        set_lr(optimizer, lr)
        seed_step(seed, number, batch.device)
        _, loss = runner.backward_with_oom_retry(batch, [buffer.clone() for buffer in network.buffers()])
        value = loss.item()
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smoothed = mean / (1 - SMOOTHING ** (number + 1))  # the mean starts at 0
        if not math.isfinite(value) or (losses and smoothed > MAX_LOSS_RATIO * min(losses)):
            break
        lrs.append(lr)
        losses.append(smoothed)
        nn.utils.clip_grad_norm_(network.parameters(), recipe.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        if progress:
            progress("learning-rate finder", number + 1, NUM_STEPS)
    return LRFinderResult(tuple(lrs), tuple(losses), suggest_lr(lrs, losses))


def _batches(loader: BatchLoader) -> Iterator[Batch]:
    for step in range(NUM_STEPS):
        yield next(loader.epoch(step // loader.steps, start=step % loader.steps))


def suggest_lr(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Return the learning rate of the steepest descent before the minimum; raises RunError if the loss never falls."""
    lowest = min(range(len(losses)), key=losses.__getitem__, default=0)
    slopes = {
        i: losses[i + SLOPE_STEPS] - losses[i - SLOPE_STEPS] for i in range(SLOPE_STEPS, lowest - SLOPE_STEPS + 1)
    }
    if not slopes or min(slopes.values()) >= 0:
        raise RunError("lr: the loss does not fall at any learning rate; check the data, or set lr to a number")
    return lrs[min(slopes, key=slopes.__getitem__)]
