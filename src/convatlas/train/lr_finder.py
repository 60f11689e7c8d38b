"""Which learning rate? A short training in which it grows until the loss does (Smith 2017)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.data.loader import Batch, BatchLoader
from convatlas.errors import RunError
from convatlas.system.progress import Progress
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.loop import StepRunner, seed_step
from convatlas.train.recipe import Recipe

STEPS, LOWEST, HIGHEST = 100, 1e-6, 10.0
"""So many steps lead from the lowest to the highest learning rate that is tried."""

BURST = 4.0
"""The search ends when the loss is so many times the lowest one."""

SMOOTH = 0.9
"""Share of the losses before in the running mean of the losses."""


@dataclass(frozen=True)
class LRFinderResult:
    """Learning rates that were tried, in rising order, the running mean of the loss at each, and the one to take."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    chosen: float


def find_lr(
    network: Network, loader: BatchLoader, recipe: Recipe, *, seed: int, execution: ExecutionPlan | None = None,
    class_weights: Tensor | None = None, progress: Progress | None = None,
) -> LRFinderResult:  # fmt: skip
    """Train a copy of a network for up to 100 steps with a rising learning rate; the network stays as it is.

    The one to take is where the loss falls most steeply, against the logarithm of the rate, before it is lowest.
    Raises RunError if the loss never falls.
    """
    copied = copy.deepcopy(network)
    copied.freeze(None)
    runner, optimizer = (
        StepRunner(copied, recipe, execution or ExecutionPlan(), class_weights),
        recipe.build_optimizer(copied),
    )
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for number, batch in enumerate(_batches(loader)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        seed_step(seed, number, batch.inputs.device)
        _, loss = runner.backward_with_oom_retry(batch, [buffer.clone() for buffer in copied.buffers()])
        value = loss.item()
        mean = SMOOTH * mean + (1 - SMOOTH) * value
        smooth = mean / (1 - SMOOTH ** (number + 1))
        if not math.isfinite(value) or (losses and smooth > BURST * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
        nn.utils.clip_grad_norm_(copied.parameters(), recipe.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        if progress:
            progress("finding the learning rate", number + 1, STEPS)
    return LRFinderResult(tuple(rates), tuple(losses), _steepest(rates, losses))


def _batches(loader: BatchLoader) -> Iterator[Batch]:
    for step in range(STEPS):
        yield next(loader.epoch(step // loader.steps, start=step % loader.steps))


def _steepest(rates: list[float], losses: list[float]) -> float:
    lowest = min(range(len(losses)), key=losses.__getitem__, default=0)
    reach = 4  # so many steps on both sides, over which a slope is taken
    slopes = {i: losses[i + reach] - losses[i - reach] for i in range(reach, lowest - reach + 1)}
    if not slopes or min(slopes.values()) >= 0:
        raise RunError("lr: the loss does not fall with any learning rate; look at the data, or choose one by hand")
    return rates[min(slopes, key=slopes.__getitem__)]
