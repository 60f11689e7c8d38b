"""Learning-rate schedules: warm-up, constant, cosine, one-cycle, and warm-up, stable, decay."""

from __future__ import annotations

import math

from convatlas.train.recipe import Recipe

WSD_DECAY = 0.6
"""Share of a training with the schedule "wsd" in which the learning rate falls."""


def lr_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of `step`, counted from 0 over the whole training."""
    total, done = recipe.epochs * steps_per_epoch, step + 1
    warmup = recipe.warmup * steps_per_epoch
    if recipe.schedule == "onecycle":
        warmup = max(warmup, 0.25 * total)
    if done < warmup:
        return recipe.lr * done / warmup
    begin = max(warmup, (1 - WSD_DECAY) * total) if recipe.schedule == "wsd" else warmup
    if recipe.schedule == "constant" or done < begin:
        return recipe.lr
    # from the highest rate to nearly zero at the last step, which still moves a little
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (done - begin) / (total - begin + 1)))
