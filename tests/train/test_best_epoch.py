"""The best epoch: by the score, and on few val images by the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from convatlas.tasks.classification.single_label import ClassificationResult
from convatlas.train.state import MIN_RANKED_IMAGES, State


def result(images: int, correct: int, loss: float) -> ClassificationResult:
    labels = torch.zeros(images, dtype=torch.int64)
    predicted = torch.ones(images, dtype=torch.int64)
    predicted[:correct] = 0
    return ClassificationResult(torch.eye(2)[predicted], labels, loss, ("a", "b"))


@pytest.mark.parametrize(
    ("images", "correct", "loss", "is_best"),
    [
        (MIN_RANKED_IMAGES, 61, 2.0, True),
        (MIN_RANKED_IMAGES, 60, 0.9, True),
        (MIN_RANKED_IMAGES, 60, 1.0, False),
        (MIN_RANKED_IMAGES, 59, 0.1, False),
        (8, 3, 0.9, True),
        (8, 8, 1.1, False),
    ],
)
def test_few_images_are_ranked_by_loss(images: int, correct: int, loss: float, is_best: bool) -> None:
    state = State()
    assert state.is_best(result(images, correct, loss))
    state.best_score, state.best_loss = 0.6, 1.0
    assert state.is_best(result(images, correct, loss)) == is_best


@pytest.mark.parametrize(("correct", "is_best"), [(5, False), (6, False), (7, True)])
def test_without_a_loss_the_score_decides(correct: int, is_best: bool) -> None:
    state = State()
    without: Any = result(10, correct, 0.0)
    object.__setattr__(without, "loss", None)
    assert state.is_best(without)
    state.best_score = 0.6
    assert state.is_best(without) == is_best


def test_while_the_score_is_zero_later_epochs_are_better() -> None:
    state = State(best_score=0.0)
    without: Any = result(10, 0, 0.0)
    object.__setattr__(without, "loss", None)
    assert state.is_best(without)
    state.best_score = 0.1
    assert not state.is_best(without)
