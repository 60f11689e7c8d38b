"""Metrics equal their definitions and those of scikit-learn; the fitted temperature calibrates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as theirs
from torch import Tensor

from convatlas.tasks.classification import metrics
from convatlas.tasks.classification.single_label import ClassificationResult
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration


def random_outputs(seed: int, *, count: int = 300, classes: int = 7) -> tuple[Tensor, Tensor]:
    """Return outputs (count, classes) and labels (count,) that are correlated."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    outputs = torch.randn(count, classes, generator=generator)
    return outputs + 1.5 * torch.nn.functional.one_hot(labels, classes), labels


def evaluate(outputs: Tensor, labels: Tensor, *, temperature: float = 1.0) -> ClassificationResult:
    task = Classification(tuple(map(str, range(outputs.shape[1]))))
    return task.evaluate(outputs, Targets(label=labels), Calibration(temperature))


@given(st.integers(0, 1000))
def test_summary_equals_scikit_learn(seed: int) -> None:
    outputs, labels = random_outputs(seed)
    result = evaluate(outputs, labels)
    summary, predicted = result.summary(), result.predicted
    assert summary["accuracy"] == pytest.approx(theirs.accuracy_score(labels, predicted))
    assert summary["macro_f1"] == pytest.approx(theirs.f1_score(labels, predicted, average="macro"))
    assert summary["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(labels, predicted))
    assert summary["top5"] == pytest.approx(theirs.top_k_accuracy_score(labels, result.probabilities, k=5))
    assert summary["accuracy_low"] <= summary["accuracy"] <= summary["accuracy_high"]


def test_expected_calibration_error_equals_its_definition() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.91, 0.09], [0.2, 0.8], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 1, 0])
    # bins are 1/15 wide: 0.9 and 0.91 are in the same one
    expected = 2 / 4 * abs(0.905 - 0.5) + 1 / 4 * abs(0.8 - 1) + 1 / 4 * abs(0.6 - 1)
    result = ClassificationResult(probabilities, labels, 0.0, ("a", "b"))
    error = metrics.expected_calibration_error(result.confidence, ~result.wrong)
    assert error == result.summary()["ece"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 5.0])
def test_fitted_temperature_is_proportional_to_the_scale_of_the_logits(scale: float) -> None:
    outputs, labels = random_outputs(0, count=4000)
    fitted, plain = metrics.fit_temperature(outputs * scale, labels), metrics.fit_temperature(outputs, labels)
    assert fitted == pytest.approx(plain * scale, rel=1e-3)
    raw, calibrated = (evaluate(outputs * scale, labels, temperature=t).summary() for t in (1.0, fitted))
    assert calibrated["ece"] <= raw["ece"] + 0.005
    assert calibrated["ece"] < 0.02
    assert calibrated["accuracy"] == raw["accuracy"]


def test_fitted_temperature_has_a_lower_bound_if_all_predictions_are_correct() -> None:
    outputs = torch.eye(4) * 10
    assert metrics.fit_temperature(outputs, torch.arange(4)) == pytest.approx(0.25, rel=0.2)


@given(st.integers(1, 500), st.floats(0, 1))
def test_accuracy_interval_contains_the_accuracy_and_has_the_bounds_of_the_score_test(count: int, share: float) -> None:
    correct = round(count * share)
    low, high = metrics.accuracy_interval(correct, count)
    p = correct / count
    assert 0 <= low <= p + 1e-12
    assert p - 1e-12 <= high <= 1
    assert high - low > 0
    for bound in (low, high):
        assert (p - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / count, abs=1e-12)


def test_classes_without_images_are_not_part_of_the_means() -> None:
    result = evaluate(torch.eye(4)[:2] * 9, torch.tensor([0, 1]))
    assert result.summary()["macro_f1"] == result.summary()["balanced_accuracy"] == 1.0
