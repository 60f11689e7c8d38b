"""Scores: which number is explained, its value and its confidence for every kind of classification."""

from __future__ import annotations

import pytest
import torch

from convatlas.errors import DataError
from convatlas.tasks.known import Classification, MultilabelClassification, VideoClassification
from convatlas.tasks.score import Score
from convatlas.tasks.task import Calibration, Task

CLASSES = ("ant", "bee", "cat")
ROW = torch.tensor([0.1, 0.7, 0.2])
OUTPUTS = torch.tensor([[1.0, 3.0, 2.0], [0.5, 0.1, 0.2]])


@pytest.fixture
def task() -> Task:
    return Classification(CLASSES)


def test_the_most_probable_class_is_explained_by_default(task: Task) -> None:
    assert task.score(ROW) == Score("bee", 1)
    assert task.score(ROW, "cat") == Score("cat", 2)
    assert task.score(ROW, against="ant") == Score("bee", 1, "ant", 0)
    assert task.score(ROW, "ant", "cat") == Score("ant", 0, "cat", 2)


def test_text_of_a_score(task: Task) -> None:
    assert task.score(ROW).text == "bee"
    assert task.score(ROW, against="ant").text == "bee and not ant"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "bees"}, r"explain: class must be .*ant, bee, cat.*got 'bees' \(did you mean bee\?\)"),
        ({"against": "cats"}, r"explain: against must be .*got 'cats' \(did you mean cat\?\)"),
        ({"label": "cat", "against": "cat"}, "against must differ from the explained class, got 'cat'"),
        ({"against": "bee"}, "got 'bee', the predicted class; name another class with it"),
        ({"object": 1}, "object must be 0 .*got 1"),
    ],
)
def test_what_cannot_be_explained_is_refused(task: Task, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task.score(ROW, **arguments)  # type: ignore[arg-type]


def test_logit_is_an_output_or_the_difference_of_two(task: Task) -> None:
    assert task.logit(OUTPUTS, Score("bee", 1)).tolist() == OUTPUTS[:, 1].tolist()
    difference = task.logit(OUTPUTS, Score("bee", 1, "ant", 0))
    torch.testing.assert_close(difference, OUTPUTS[:, 1] - OUTPUTS[:, 0])


def test_confidence_is_the_calibrated_probability(task: Task) -> None:
    confidence = task.confidence(OUTPUTS, Score("bee", 1), Calibration(temperature=2.0))
    torch.testing.assert_close(confidence, (OUTPUTS / 2).softmax(1)[:, 1])


def test_confidence_of_a_difference_is_the_share_of_both_probabilities(task: Task) -> None:
    confidence = task.confidence(OUTPUTS, Score("bee", 1, "ant", 0), Calibration())
    torch.testing.assert_close(confidence, (OUTPUTS[:, 1] - OUTPUTS[:, 0]).sigmoid())
    never = torch.tensor([[-200.0, -200.0, 0.0]])
    assert task.confidence(never, Score("bee", 1, "ant", 0), Calibration()).isfinite().all()


def test_the_share_of_two_probabilities_of_zero_is_zero() -> None:
    assert Score("bee", 1, "ant", 0).probability(torch.tensor([[0.0, 0.0, 1.0], [0.1, 0.3, 0.6]])).tolist() == (
        pytest.approx([0, 0.75])
    )


def test_confidence_of_multi_label_classification_is_a_sigmoid() -> None:
    task = MultilabelClassification(CLASSES)
    confidence = task.confidence(OUTPUTS, Score("bee", 1), Calibration())
    torch.testing.assert_close(confidence, OUTPUTS[:, 1].sigmoid())


def test_confidence_of_capsules_is_a_share_of_lengths() -> None:
    task = Classification(CLASSES, loss="margin")
    lengths = torch.tensor([[0.1, 0.8, 0.1]])
    torch.testing.assert_close(task.confidence(lengths, Score("bee", 1), Calibration()), torch.tensor([0.8]))
    assert task.logit(lengths, Score("bee", 1)).item() == pytest.approx(0.8)


def test_clips_are_scored_as_images_are() -> None:
    task = VideoClassification(CLASSES)
    assert task.score(task.decode(OUTPUTS, Calibration())[0]) == Score("bee", 1)
