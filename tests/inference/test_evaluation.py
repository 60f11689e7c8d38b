"""Evaluations: every image in a table, a page, short texts, and data without labels."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from commands import Command, check_refused
from convatlas.inference.evaluation import EvaluatedImage
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.tasks.classification.multilabel import MultilabelResult
from convatlas.train.run import Run


@pytest.fixture(scope="module")
def model(colored: Run) -> Model:
    return load(colored.folder)


def test_every_image_is_listed_with_its_prediction(model: Model, own_images: Path) -> None:
    (own_images / "val" / "ant" / "text.png").write_text("no image")
    evaluation = model.evaluate(own_images, split="val", max_unreadable=0.1)
    rows = evaluation.images
    assert len(rows) == 36 + 1
    assert [row.source for row in rows[:36]] == sorted(row.source for row in rows[:36])
    for row, prediction in zip(rows[:36], model.predict([row.source for row in rows[:36]]), strict=True):
        plain, expected = row.prediction.to_plain(), prediction.with_top(1).to_plain()
        assert plain.pop("probability") == pytest.approx(expected.pop("probability"), abs=1e-5)
        assert list(plain.pop("probabilities")) == list(expected.pop("probabilities"))
        assert plain == expected
        assert row.correct == (row.target == prediction.text)
        assert row.target == Path(row.source).parent.name
    assert sum(row.correct is False for row in rows) == evaluation.result.num_errors  # type: ignore[attr-defined]
    assert rows[36].prediction.error.endswith("text.png: not an image")
    assert (rows[36].target, rows[36].correct) == (None, None)


def test_the_command_writes_a_table_and_a_page(
    colored: Run, own_images: Path, tmp_path: Path, convatlas: Command
) -> None:
    shutil.rmtree(own_images / "train")
    (own_images / "val").rename(own_images / "test images")
    shutil.rmtree(own_images / "test images" / "cat")
    (own_images / "test images" / "cat").mkdir()
    files = ["--csv", tmp_path / "images.csv", "--report", tmp_path / "page.html"]
    outcome = convatlas("evaluate", colored.folder, own_images / "test images", *files)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[0].split() == ["class", "images", "correct", "precision", "recall", "F1"]
    assert "2 of 3 classes present" in outcome.out
    rows = list(csv.DictReader((tmp_path / "images.csv").read_text().splitlines()))
    assert list(rows[0]) == ["source", "target", "label", "labels", "probability", "error", "correct"]
    assert {row["target"] for row in rows} == {"ant", "bee"}
    assert all((row["target"] == row["label"] == row["labels"]) == (row["correct"] == "1") for row in rows)
    assert {row["correct"] for row in rows} <= {"0", "1"}
    page = (tmp_path / "page.html").read_text()
    assert "<title>lenet5_modern on test images</title>" in page
    assert "Metrics by class" in page


def test_one_class_is_enough_and_images_without_labels_name_predict(
    colored: Run, images: Path, tmp_path: Path, convatlas: Command
) -> None:
    shutil.copytree(images / "val" / "bee", tmp_path / "one" / "bee")
    assert "1 of 3 classes present" in convatlas("evaluate", colored.folder, tmp_path / "one").out
    check_refused(convatlas("evaluate", colored.folder, tmp_path / "one" / "bee"), "use `convatlas predict`")


def test_evaluations_have_short_texts(model: Model, images: Path) -> None:
    evaluation = model.evaluate(images)
    assert repr(evaluation).startswith("val: accuracy ")
    assert len(repr(evaluation)) < 2100
    assert evaluation._repr_html_().startswith("<p>val: accuracy ")


def test_several_labels_are_separated() -> None:
    probabilities = torch.tensor([[0.6, 0.9, 0.1], [0.2, 0.1, 0.3]])
    labels = torch.tensor([[1.0, 1, 0], [0, 0, 1]])
    result = MultilabelResult(probabilities, labels, 0.0, ("a", "b", "c"), torch.tensor([0.5, 0.5, 0.5]))
    rows = [EvaluatedImage(*row).to_row() for row in result.image_rows(["x", "y"])]
    assert rows[0].pop("probability") == pytest.approx(0.9)
    assert rows[0] == {"source": "x", "target": "a|b", "label": "b", "labels": "b|a", "error": None, "correct": 1}
    assert rows[1].pop("probability") == pytest.approx(0.3)
    assert rows[1] == {"source": "y", "target": "c", "label": None, "labels": "", "error": None, "correct": 0}
