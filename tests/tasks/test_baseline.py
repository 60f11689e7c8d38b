"""Baselines: what a model must be better than, and the sentence about one that is not."""

from __future__ import annotations

import math

import pytest
import torch

from convatlas.tasks.known import Classification, MultilabelClassification
from convatlas.tasks.result import Baseline
from convatlas.tasks.targets import Targets


def targets(*labels: int) -> Targets:
    return Targets(label=torch.tensor(labels))


def test_a_constant_prediction_names_the_largest_class() -> None:
    task = Classification(("ant", "bee"))
    baseline = task.baseline(targets(0, 0, 0, 1))
    bound = 0.75 + 2 * math.sqrt(0.75 * 0.25 / 4)
    assert baseline == Baseline("always predicting ant, the largest class", 0.75, pytest.approx(bound))
    balanced = task.baseline(targets(0, 1))
    assert balanced is not None
    assert balanced.text == "always predicting one class"
    assert task.baseline(targets(1, 1)) is None  # every prediction of this class is correct


def test_a_random_order_has_the_share_of_the_label() -> None:
    task = MultilabelClassification(("a", "b", "c", "d"))
    baseline = task.baseline(Targets(label=torch.eye(4)))
    assert baseline is not None
    assert baseline.score == 0.25
    assert baseline.upper_bound == pytest.approx(0.25 + 2 * math.sqrt(0.25 * 0.75 / 4))
    assert task.baseline(Targets(label=torch.ones(4, 4))) is None
    assert task.baseline(Targets(label=torch.zeros(4, 4))) is None


@pytest.mark.parametrize(
    ("correct", "verdict"),
    [
        (19, "no better than always predicting ant, the largest class (50.00%)"),
        (20, "no better than always predicting ant, the largest class (50.00%)"),
        (25, "not clearly better than always predicting ant, the largest class (50.00%): on 40 images, up to 65.8% can "
             "be chance"),
        (27, ""),
    ],
)  # fmt: skip
def test_a_result_is_compared_with_the_baseline(correct: int, verdict: str) -> None:
    task = Classification(("ant", "bee", "cat"))
    labels = targets(*[0] * 20, *[1] * 19, 2)
    predicted = labels.tensor("label").clone()
    predicted[: 40 - correct] = (predicted[: 40 - correct] + 1) % 3
    result = task.evaluate(torch.nn.functional.one_hot(predicted, 3).float(), labels)
    assert result.accuracy == correct / 40
    assert result.verdict(task.baseline(labels)) == verdict
    assert result.verdict(None) == ""
