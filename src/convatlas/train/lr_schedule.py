"""Learning-rate schedules: warm-up, constant, cosine and one-cycle."""

from __future__ import annotations

import math

from convatlas.train.recipe import Recipe


def lr_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of `step`, counted from 0 over the whole training."""
    total, done = recipe.epochs * steps_per_epoch, step + 1
    warmup = recipe.warmup * steps_per_epoch
    if recipe.schedule == "onecycle":
        warmup = max(warmup, 0.25 * total)
    if done < warmup:
        return recipe.lr * done / warmup
    if recipe.schedule == "constant":
        return recipe.lr
    # from the highest rate to nearly zero at the last step, which still moves a little
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup + 1)))
