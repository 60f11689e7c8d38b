"""Metrics equal their definitions, those of scikit-learn, and what a fit of the temperature must reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as theirs
from torch import Tensor

from convatlas.tasks.classification import metrics
from convatlas.tasks.classification.evaluate import judged
from convatlas.tasks.classification.losses import CRITERIA
from convatlas.tasks.classification.results import Result


def drawn(seed: int, *, count: int = 300, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    outputs = torch.randn(count, classes, generator=generator)
    return outputs + 1.5 * torch.nn.functional.one_hot(labels, classes), labels


@given(st.integers(0, 1000))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    outputs, labels = drawn(seed)
    result = judged(outputs, labels, CRITERIA["cross_entropy"])
    told, predicted = result.summary(), result.predicted
    assert told["accuracy"] == pytest.approx(theirs.accuracy_score(labels, predicted))
    assert told["macro_f1"] == pytest.approx(theirs.f1_score(labels, predicted, average="macro"))
    assert told["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(labels, predicted))
    assert told["top5"] == pytest.approx(theirs.top_k_accuracy_score(labels, result.probabilities, k=5))
    assert told["accuracy_low"] <= told["accuracy"] <= told["accuracy_high"]


def test_calibration_error_is_its_definition() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.91, 0.09], [0.2, 0.8], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 1, 0])
    # bins of a 15th: 0.9 and 0.91 are in one
    expected = 2 / 4 * abs(0.905 - 0.5) + 1 / 4 * abs(0.8 - 1) + 1 / 4 * abs(0.6 - 1)
    answers = Result(probabilities, labels, 0.0).answers
    assert metrics.calibration_error(*answers) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 5.0])
def test_the_temperature_undoes_a_scale_of_the_logits(scale: float) -> None:
    outputs, labels = drawn(0, count=4000)
    fitted, plain = metrics.temperature(outputs * scale, labels), metrics.temperature(outputs, labels)
    assert fitted == pytest.approx(plain * scale, rel=1e-3)
    raw, mended = (
        judged(outputs * scale, labels, CRITERIA["cross_entropy"], temperature=t).summary() for t in (1.0, fitted)
    )
    assert mended["ece"] <= raw["ece"] + 0.005
    assert mended["ece"] < 0.02
    assert mended["accuracy"] == raw["accuracy"]


def test_a_network_that_is_always_right_gets_the_lowest_temperature() -> None:
    outputs = torch.eye(4) * 10
    assert metrics.temperature(outputs, torch.arange(4)) == pytest.approx(0.25, rel=0.2)


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_interval_holds_the_share_and_is_as_wide_as_the_normal_one(count: int, share: float) -> None:
    right = round(count * share)
    low, high = metrics.interval(right, count)
    assert 0 <= low <= right / count <= high <= 1
    p = right / count
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / count), abs=0.15 / np.sqrt(count) + 1.5 / count)


def test_classes_without_images_do_not_spoil_the_means() -> None:
    result = judged(torch.eye(4)[:2] * 9, torch.tensor([0, 1]), CRITERIA["cross_entropy"])
    assert result.summary()["macro_f1"] == result.summary()["balanced_accuracy"] == 1.0
