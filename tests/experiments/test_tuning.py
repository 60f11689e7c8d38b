"""Rates of arms: each has the same number of trials, and the best rate is used with other seeds."""

from __future__ import annotations

import torch

from convatlas.experiments.materials import Images
from convatlas.experiments.results import Results, Row
from convatlas.experiments.tuning import TUNING_METRIC, TUNING_SEED, split_for, with_tuned_rates

ARMS = {"a": {"width": 1}, "b": {"width": 2}}


def test_each_arm_is_run_with_its_best_rate() -> None:
    first = list(with_tuned_rates(ARMS, (0.1, 0.2), 2, Results()))
    assert [trial.arm for trial in first] == ["a, lr 0.1", "a, lr 0.2", "b, lr 0.1", "b, lr 0.2"]
    assert {trial.seed for trial in first} == {TUNING_SEED}
    accuracies = (0.5, 0.6, 0.8, 0.7)
    rows = (
        Row(trial.arm, trial.seed, trial.settings, {TUNING_METRIC: accuracy})
        for trial, accuracy in zip(first, accuracies, strict=True)
    )
    second = list(with_tuned_rates(ARMS, (0.1, 0.2), 2, Results(tuple(rows))))
    assert second[:4] == first
    assert [(trial.arm, trial.seed, trial.settings["lr"]) for trial in second[4:]] == [
        ("a", 0, 0.2), ("a", 1, 0.2), ("b", 0, 0.1), ("b", 1, 0.1),
    ]  # fmt: skip
    assert all(not trial.settings["tuning"] and "width" in trial.settings for trial in second[4:])


def test_a_rate_is_chosen_on_images_that_are_not_used_otherwise() -> None:
    train, test = (Images(torch.arange(n).view(n, 1, 1, 1), torch.zeros(n), ("x",)) for n in (10, 3))
    measured_rate = Results((Row("a, lr 0.1", TUNING_SEED, {}, {TUNING_METRIC: 1.0}),))
    tuning, final = with_tuned_rates({"a": {}}, (0.1,), 1, measured_rate)
    for trial, measured in ((tuning, [0, 5]), (final, [0, 1, 2])):
        own, other = split_for(trial, train, test)
        assert own.pixels.flatten().tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
        assert other.pixels.flatten().tolist() == measured
