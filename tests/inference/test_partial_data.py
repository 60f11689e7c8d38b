"""Evaluation, int8 and benchmarks on data that lacks classes or splits of the model, and the interval of a change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import Command, check_refused
from convatlas.data.dataset import Images
from convatlas.errors import DataError, ModelFileError
from convatlas.inference.accuracy_change import AccuracyChange, AccuracyCheck
from convatlas.inference.export import export
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.tasks.classification.single_label import ClassificationResult
from convatlas.tasks.known import Classification, MultilabelClassification
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Calibration
from convatlas.train.run import Run


@pytest.fixture(scope="module")
def model(model_file: Path) -> Model:
    return load(model_file)


@pytest.fixture(scope="module")
def pixels(trained: Run) -> tuple[np.ndarray, np.ndarray]:
    """60 digits and their labels."""
    images = trained.dataset.train
    labels = images.targets.tensor("label")
    few = torch.cat([(labels == number).nonzero()[:6, 0] for number in range(10)])
    return torch.as_tensor(images.pixels)[few, 0].numpy(), labels[few].numpy()


def write_npz(path: Path, pixels: tuple[np.ndarray, np.ndarray], classes: list[int], **more: Any) -> Path:
    """Write the digits of some classes, named."""
    x, y = pixels
    kept = np.isin(y, classes)
    np.savez(path, x=x[kept], y=np.array([str(digit) for digit in y[kept]]), **more)
    return path


# --- some of the classes


def test_data_with_some_of_the_classes_is_evaluated(
    model: Model, pixels: tuple[np.ndarray, np.ndarray], tmp_path: Path, convatlas: Command, model_file: Path
) -> None:
    some = write_npz(tmp_path / "some.npz", pixels, [1, 3, 7])
    split, result, *_ = model.evaluate(some)
    assert isinstance(result, ClassificationResult)
    whole = model.evaluate(write_npz(tmp_path / "all.npz", pixels, list(range(10)))).result
    assert isinstance(whole, ClassificationResult)
    assert (split, result.n, result.note, whole.note) == ("all", 18, "3 of 10 classes present", "")
    assert torch.equal(result.confusion[[1, 3, 7]], whole.confusion[[1, 3, 7]])
    recalls = [result.confusion[i, i] / 6 for i in (1, 3, 7)]
    assert result.summary()["balanced_accuracy"] == pytest.approx(float(sum(recalls)) / 3)
    assert list(result.table().to_plain()) == ["1", "3", "7"]
    table = result.table().to_plain()
    assert result.summary()["macro_f1"] == pytest.approx(sum(row["f1"] for row in table.values()) / 3)
    outcome = convatlas("evaluate", model_file, some)
    assert outcome.out.count("3 of 10 classes present") == 1
    plain = json.loads(convatlas("evaluate", model_file, some, "--json").out)
    assert (plain["n"], plain["note"]) == (18, "3 of 10 classes present")


@pytest.mark.parametrize("count", [3, 1000])
def test_unknown_classes_are_named_in_a_short_line(
    pixels: tuple[np.ndarray, np.ndarray], tmp_path: Path, convatlas: Command, model_file: Path, count: int
) -> None:
    names = np.array([f"class {number:04}" for number in range(count)])
    x = np.repeat(pixels[0][:1], 2 * count, axis=0)
    np.savez(tmp_path / "other.npz", x=x, y=np.tile(names, 2))
    outcome = convatlas("evaluate", model_file, tmp_path / "other.npz")
    check_refused(outcome, "has classes that are not in the model: class 0000, class 0001")
    assert len(outcome.err) < 600


def test_a_class_whose_images_are_all_unreadable_does_not_end_an_evaluation(own_images: Path, colored: Run) -> None:
    for file in (own_images / "val/bee").iterdir():
        file.write_bytes(b"damaged")
    (own_images / "val/bee/notes.txt").write_text("x")
    split, result, unreadable, remarks, *_ = load(colored.model_file).evaluate(own_images, max_unreadable=0.5)
    assert remarks == ("1 file is not used: 1 .txt (bee/notes.txt)",)
    assert (split, result.n, result.note, len(unreadable)) == ("val", 24, "2 of 3 classes present", 12)


@pytest.mark.parametrize("form", ["one folder", "an empty folder beside it", "a table"])
def test_data_of_one_class_is_evaluated(own_images: Path, colored: Run, form: str) -> None:
    folder = own_images / "val"
    for name in ("bee", "cat"):
        shutil.rmtree(folder / name)
    data = folder
    if form == "an empty folder beside it":
        (folder / "bee").mkdir()
    elif form == "a table":
        data = folder / "list.csv"
        data.write_text("\n".join(["file,label", *(f"ant/{file.name},ant" for file in (folder / "ant").iterdir())]))
    split, result, *_ = load(colored.model_file).evaluate(data)
    assert (split, result.n, result.note) == ("all", 12, "1 of 3 classes present")
    shutil.rmtree(folder / "ant")
    (folder / "ant").mkdir()
    with pytest.raises(DataError):
        load(colored.model_file).evaluate(data)


def test_training_still_needs_every_class(pixels: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    task = Classification(("a", "b", "c"))
    targets = Targets(label=torch.tensor([0, 2]))
    task.check_split(targets, "train", "here", all_classes=False)
    with pytest.raises(DataError, match="here: the train split lacks b"):
        task.check_split(targets, "train", "here")


# --- int8


def test_int8_is_calibrated_and_measured_on_data_without_splits_and_with_some_classes(
    model: Model, pixels: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    data = write_npz(tmp_path / "some.npz", pixels, [0, 4, 9])
    result = export(model, "onnx", tmp_path / "x.onnx", int8=data)
    assert result.accuracy is not None
    assert (result.accuracy.num_images, result.accuracy.note) == (18, "3 of 10 classes present")
    exact, rough = (each.evaluate(data).result for each in (model, load(result.path)))
    assert (result.accuracy.float32, result.accuracy.int8) == pytest.approx((exact.score, rough.score))


def compare(n: int, lost: int, gained: int = 0) -> AccuracyChange:
    """Compare the predictions of two networks for n images, of which the second one loses and gains some."""
    labels = torch.zeros(n, dtype=torch.int64)
    right, wrong = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    before, after = right.repeat(n, 1), right.repeat(n, 1)
    before[lost : lost + gained] = wrong
    after[:lost] = wrong
    images = Images(torch.zeros(n, 1, 1, 1), Targets(label=labels), [str(i) for i in range(n)])
    check = AccuracyCheck(images, Classification(("a", "b")), lambda pixels: pixels, Calibration())
    return check.compare(before, after)


@pytest.mark.parametrize(
    ("n", "lost", "gained", "is_refused"),
    [(n, 1, 0, False) for n in (1, 2, 3, 10, 50, 150, 199, 200)]
    + [
        (150, 0, 0, False),
        (150, 3, 2, False),
        (150, 4, 0, False),
        (2, 2, 0, False),
        (60, 6, 0, True),
        (150, 15, 0, True),
        (1000, 30, 0, True),  # 3 percentage points
        (1000, 60, 30, True),
        (1000, 5, 0, False),
        (4000, 60, 10, True),
        (4000, 60, 50, False),
    ],
)
def test_a_loss_counts_if_there_is_evidence_for_it(n: int, lost: int, gained: int, is_refused: bool) -> None:
    change = compare(n, lost, gained)
    assert change.is_loss_above(0.005) == is_refused
    assert change.loss == pytest.approx((lost - gained) / n)
    assert change.low <= change.loss <= change.high
    assert change.num_changed == lost + gained
    assert json.dumps(change.to_plain(), allow_nan=False)


def test_the_interval_of_a_change_is_that_of_paired_samples() -> None:
    """The jackknife agrees with the standard error of the mean of the paired differences."""
    change = compare(2000, 80, 40)
    error = ((120 - 40**2 / 2000) / 2000**2) ** 0.5
    assert change.high - change.loss == pytest.approx(1.729 * error, rel=0.6)
    text = change.text()
    assert text.startswith("98.00% in float32, 96.00% in int8, a change of -2.00 pp (90 % interval -")
    assert "), 120 of 2,000 predictions changed" in text


def test_a_metric_without_a_value_for_some_images_has_a_wide_interval() -> None:
    """The mean average precision is not defined for images without labels."""
    images = Images(torch.zeros(2, 1, 1, 1), Targets(label=torch.tensor([[1.0, 0.0], [0.0, 0.0]])), ["a", "b"])
    task = MultilabelClassification(("a", "b"))
    check = AccuracyCheck(images, task, lambda pixels: pixels, Calibration())
    change = check.compare(torch.zeros(2, 2), torch.zeros(2, 2))
    assert (change.low, change.high) == (-1, 1)
    assert "a change of +0.00 pp (90 % interval -100.00 to +100.00)" in change.text()


def test_outputs_that_are_not_finite_are_not_compared(model: Model) -> None:
    images = Images(torch.zeros(3, 1, 1, 1), Targets(label=torch.zeros(3, dtype=torch.int64)), ["a", "b", "c"])
    check = AccuracyCheck(images, model.header.task, lambda pixels: pixels, Calibration())
    with pytest.raises(ModelFileError, match="must be finite"):
        check.outputs(lambda pixels: torch.full((len(pixels), 10), torch.nan))
