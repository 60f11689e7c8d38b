"""The first layer that goes wrong is named, with its reason; what works is not blamed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from convatlas.explanation.causes import find_causes, find_extremes
from convatlas.explanation.rules import RULES, TrainingFacts
from convatlas.explanation.statistics import LayerStatistics, MeasuredStep

FACTS = TrainingFacts(max_lr=0.1, classes=10)
PATHS = ("stem", "stages.0", "stages.1", "head")


def step(number: int = 0, **changes: Any) -> MeasuredStep:
    """Return a step in which nothing is wrong, but for changes: name of a statistic -> values of the four layers."""
    layers = [
        LayerStatistics(path, "Conv2d", activation_mean=0.0, activation_std=1.0, dead_share=0.1, gradient_norm=0.1,
                        weight_norm=1.0, update_ratio=1e-3, effective_rank=9.0 if path == "head" else None,
                        max_rank=32 if path == "head" else None)
        for path in PATHS
    ]  # fmt: skip
    for name, values in changes.items():
        layers = [replace(layer, **{name: value}) for layer, value in zip(layers, values, strict=True)]
    return MeasuredStep(1 + number // 10, number, 0.1, tuple(layers))


def test_nothing_is_wrong() -> None:
    steps = [step(0), step(5), step(15)]
    assert find_causes(steps, FACTS) == ()
    assert len(find_extremes(steps, FACTS)) == len(RULES)
    assert find_causes([], FACTS) == ()
    assert find_extremes([], FACTS) == ()


NONE = (None,) * 4
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "updates too large": ("stages.0", {"update_ratio": (0.01, 1.0, 2.0, 0.5)}),
    "dead units": ("stages.0", {"dead_share": (0.1, 1.0, 0.95, 0.2)}),
    "gradients vanish": ("stages.0", {"gradient_norm": (1e-9, 1e-8, 1e-3, 0.1)}),
    "gradients explode": ("stages.0", {"gradient_norm": (1e9, 1e8, 10.0, 0.1)}),
    "rank collapse": ("head", {"effective_rank": (None, None, None, 1.01)}),
    "activations explode": ("stages.1", {"activation_std": (1.0, 9.0, 1e5, 1e7)}),
    "activations vanish": ("stages.0", {"activation_std": (1.0, 1e-5, 1e-7, 1e-9)}),
    "updates too small": ("stem", {"update_ratio": (1e-8, 1e-7, 2e-7, 1e-6)}),
    "loss or gradients not finite": ("stages.1", {
        "finite": (True, True, False, False), "activation_mean": (0.0, 0.0, None, None),
    }),
}  # fmt: skip


@pytest.mark.parametrize("problem", WRONG)
def test_each_problem_is_named_with_its_first_layer(problem: str) -> None:
    layer, changes = WRONG[problem]
    (cause,) = find_causes([step(0), step(5, **changes), step(15, **changes)], FACTS)
    assert (cause.problem, cause.layer, cause.step) == (problem, layer, 5)
    assert cause.remedies
    assert layer in cause.text()
    assert cause.to_plain()["remedies"] == list(cause.remedies)
    assert {rule.problem for rule in RULES} == set(WRONG)


@pytest.mark.parametrize("problem", WRONG)
def test_what_passes_is_no_cause_but_for_damage(problem: str) -> None:
    causes = find_causes([step(0), step(5, **WRONG[problem][1]), step(15)], FACTS)
    assert bool(causes) == (problem in ("updates too large", "loss or gradients not finite"))


def test_causes_come_before_their_effects() -> None:
    early, late = {**WRONG["updates too large"][1]}, {**WRONG["dead units"][1], **WRONG["gradients vanish"][1]}
    causes = find_causes([step(0), step(5, **early), step(15, **late)], FACTS)
    assert [cause.problem for cause in causes] == ["updates too large", "dead units", "gradients vanish"]


def test_gradients_of_an_infinite_loss_are_named_from_the_output_back() -> None:
    (cause,) = find_causes([step(0, finite=(False,) * 4, gradient_norm=NONE, update_ratio=NONE)], FACTS)
    assert cause.layer == "head"


def test_frozen_layers_and_low_rates_are_not_blamed() -> None:
    frozen = step(0, gradient_norm=(None, None, 0.1, 0.1), update_ratio=(None, None, 1e-3, 1e-3))
    assert find_causes([frozen], FACTS) == ()
    late = replace(step(5, update_ratio=(1e-7,) * 4), lr=1e-5)  # 0.001 at the highest rate
    assert find_causes([late], FACTS) == ()


def test_two_classes_and_few_images_have_a_low_rank() -> None:
    changes = {"effective_rank": (None, None, None, 1.2)}
    assert find_causes([step(0, **changes)], TrainingFacts(0.1, classes=2)) == ()
    assert find_causes([step(0, **changes, max_rank=(None, None, None, 4))], FACTS) == ()
