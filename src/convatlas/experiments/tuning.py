"""Learning rates of the arms of an experiment: each arm has the same number of trials to find its own rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from convatlas.experiments.experiment import Trial
from convatlas.experiments.materials import Images
from convatlas.experiments.results import Results

TUNING_SEED = 100
"""The seed of the trials that choose a rate; no other trial has it."""

TUNING_METRIC = "tuning_accuracy"
"""The metric of these trials: the accuracy on images that are neither trained on nor in the test split."""

HELD_OUT = 5
"""One image in so many of the train split chooses the rates."""


def with_tuned_rates(
    arms: Mapping[str, Mapping[str, Any]], rates: Sequence[float], seeds: int, results: Results
) -> Iterator[Trial]:
    """Yield trials: first each rate of each arm, then, when they are measured, the best rate of each arm by seed.

    arms: name -> settings. The settings of a trial also have "lr", and "tuning", which is True for the first ones.
    """
    of_arm = {
        arm: [Trial(f"{arm}, lr {rate:g}", TUNING_SEED, {**settings, "lr": rate, "tuning": True}) for rate in rates]
        for arm, settings in arms.items()
    }
    for trials in of_arm.values():
        yield from trials
    if all(len(results.of(trial.arm)) for trials in of_arm.values() for trial in trials):
        for arm, trials in of_arm.items():
            best = max(trials, key=lambda trial: results.mean(trial.arm, TUNING_METRIC))
            for seed in range(seeds):
                yield Trial(arm, seed, {**best.settings, "tuning": False})


def split_for(trial: Trial, train: Images, test: Images) -> tuple[Images, Images]:
    """Return the images to train on and those to measure: the test images, or for a tuning trial those held out."""
    held_out = torch.arange(len(train)) % HELD_OUT == 0
    return train.take((~held_out).nonzero().flatten()), (
        train.take(held_out.nonzero().flatten()) if trial.settings["tuning"] else test
    )
