"""Multi-label classification: losses, metrics, splits, and everything from a table to predictions."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor
from typer.testing import CliRunner

import convatlas as ca
from convatlas.cli.app import app
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.check import check
from convatlas.data.open import open_data
from convatlas.data.splits import split_off
from convatlas.errors import ConvatlasError, DataError, ModelFileError, SpecError
from convatlas.tasks.classification import metrics
from convatlas.tasks.classification.losses import asymmetric, binary_cross_entropy
from convatlas.tasks.classification.multilabel import MultilabelResult
from convatlas.tasks.known import Classification, MultilabelClassification
from convatlas.tasks.task import Calibration, Task
from convatlas.train.recipe import Recipe
from convatlas.train.run import Run
from convatlas.train.settings import DataOptions, RunOptions
from convatlas.train.step import Step
from convatlas.weights.modelfile import read_model_file, write_model_file

NAMES = ("red", "Green", "blue")


def random_scores(seed: int, count: int = 40, classes: int = 3, ties: bool = False) -> tuple[Tensor, Tensor]:
    """Return probabilities and labels (count, classes) that are correlated."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, classes, generator=generator) < 0.3).float()
    labels[0] = 1
    scores = (torch.randn(count, classes, generator=generator) + 1.5 * labels).sigmoid()
    return (scores * 5).round() / 5 if ties else scores, labels


def result_of(scores: Tensor, labels: Tensor, loss: float = 0.0) -> MultilabelResult:
    return MultilabelResult(scores, labels, loss, NAMES, torch.full((3,), 0.5))


# --- losses


def test_binary_cross_entropy_equals_its_definition() -> None:
    outputs, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    p = outputs.sigmoid()
    expected = torch.stack([-p[0, 0].log(), -(1 - p[0, 1]).log()])
    assert torch.allclose(binary_cross_entropy(outputs, labels, 0.0)[0], expected)
    smooth = 0.9 * -p[0, 0].log() + 0.1 * -(1 - p[0, 0]).log()
    assert binary_cross_entropy(outputs, labels, 0.2)[0, 0] == pytest.approx(float(smooth))


@pytest.mark.parametrize("x", [-60.0, -3.0, 0.0, 2.0, 60.0])
def test_asymmetric_loss_equals_its_definition(x: float) -> None:
    outputs = torch.tensor([[x, x]], dtype=torch.float64, requires_grad=True)
    there, absent = asymmetric(outputs, torch.tensor([[1.0, 0.0]]), 0.0)[0]
    p = torch.tensor(x, dtype=torch.float64).sigmoid()
    shifted = (p - 0.05).clamp(min=0)
    assert float(there) == pytest.approx(float(-torch.nn.functional.logsigmoid(torch.tensor(x, dtype=torch.float64))))
    assert float(absent) == pytest.approx(float(-(shifted**4) * (1 - shifted).log()))
    (there + absent).backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_a_task_takes_its_own_losses_only() -> None:
    single, several = Classification(NAMES), MultilabelClassification(NAMES)
    assert single.loss_name == "cross_entropy"
    assert several.loss_name == "binary_cross_entropy"
    assert several.with_loss("asymmetric").loss_name == "asymmetric"
    assert single.with_loss("focal").loss_name == "focal"
    assert several.with_loss("auto") == several
    refused: tuple[tuple[Task, str], ...] = (
        (several, "focal"), (several, "margin"), (several, "cross_entropy"), (single, "asymmetric"),
        (single, "binary_cross_entropy"),
    )  # fmt: skip
    for task, loss in refused:
        with pytest.raises(SpecError, match=rf"recipe: loss must be one of .* for {task.name}, got '{loss}'"):
            task.with_loss(loss)


# --- metrics


@given(st.integers(0, 10**6), st.booleans())
def test_average_precision_equals_scikit_learn(seed: int, ties: bool) -> None:
    scores, labels = random_scores(seed, ties=ties)
    expected = [average_precision_score(labels[:, i], scores[:, i]) for i in range(3)]
    assert metrics.average_precisions(scores, labels).tolist() == pytest.approx(expected, abs=1e-9)


def test_a_class_without_images_has_no_average_precision() -> None:
    scores, labels = random_scores(0)
    labels[:, 1] = 0
    result = result_of(scores, labels)
    assert result.average_precisions.isnan().tolist() == [False, True, False]
    assert result.score == pytest.approx(float(result.average_precisions[[0, 2]].mean()))
    assert all(value == value for value in result.summary().values())


def test_map_interval_is_that_of_resampled_images() -> None:
    scores, labels = random_scores(3, count=60)
    random, means = np.random.default_rng(0), []
    for row in random.multinomial(60, np.full(60, 1 / 60), 200):
        chosen = np.repeat(np.arange(60), row)
        means.append(np.mean([average_precision_score(labels[chosen, i], scores[chosen, i]) for i in range(3)]))
    assert metrics.map_interval(scores, labels) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=1e-9)


@given(st.integers(0, 10**6), st.booleans())
def test_no_threshold_has_a_better_f1(seed: int, ties: bool) -> None:
    scores, labels = random_scores(seed, ties=ties)
    for i, threshold in enumerate(metrics.fit_thresholds(scores, labels)):
        reached = f1_score(labels[:, i], scores[:, i] >= threshold)
        predicted = scores[:, i] >= scores[:, i, None]  # (thresholds, images)
        f1 = 2 * (predicted & labels[:, i].bool()).sum(1) / (predicted.sum(1) + labels[:, i].sum())
        assert reached == pytest.approx(float(f1.max()))


def test_summary_equals_scikit_learn() -> None:
    scores, labels = random_scores(5)
    summary = result_of(scores, labels, 0.25).summary()
    predicted = scores >= 0.5
    assert summary["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert summary["micro_f1"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert summary["accuracy"] == pytest.approx(float((predicted == labels.bool()).all(1).float().mean()))
    assert summary["mAP_low"] < summary["mAP"] < summary["mAP_high"]
    assert summary["loss"] == 0.25


# --- data


def test_a_split_has_every_class_on_both_sides_in_proportion() -> None:
    _, labels = random_scores(7, count=400, classes=6)
    labels[:, 5] = 0
    labels[10:14, 5] = 1
    rest, part = split_off(labels, 0.25, seed=1, where="x")
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(400))
    assert 80 < len(part) < 120
    shares = labels[part].sum(0) / labels.sum(0)
    assert ((shares > 0.15) & (shares < 0.4)).all()
    assert torch.equal(part, split_off(labels, 0.25, seed=1, where="x")[1])
    assert not torch.equal(part, split_off(labels, 0.25, seed=2, where="x")[1])
    labels[11:14, 5] = 0
    with pytest.raises(DataError, match="x: every class needs at least 2"):
        split_off(labels, 0.25, seed=1, where="x")


def images(folder: Path, count: int = 60) -> list[dict[str, str]]:
    """Write images whose channels are bright or dark, and return table rows with the bright ones as labels."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        bright = [bool(i >> bit & 1) for bit in range(3)]
        values = np.where(bright, 200, 60) + random.normal(0, 15, (16, 16, 3))
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append({"file": f"{i}.png"} | {name: str(int(b)) for name, b in zip(NAMES, bright, strict=True)})
    return rows


def table(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def listed(rows: list[dict[str, str]], separator: str = "|") -> list[dict[str, str]]:
    """Return the rows with their labels in one cell."""
    return [{"file": row["file"], "labels": separator.join(n for n in NAMES if row[n] == "1")} for row in rows]


@pytest.mark.parametrize("separator", ["|", " | "])
def test_labels_are_columns_or_listed_in_one_cell(tmp_path: Path, separator: str) -> None:
    rows = images(tmp_path)
    columns = open_data(table(tmp_path / "a.csv", rows))
    cells = open_data(table(tmp_path / "b.csv", listed(rows, separator)))
    assert columns.task == MultilabelClassification(NAMES)
    assert cells.task == MultilabelClassification(tuple(sorted(NAMES)))
    first, second = columns.splits["train"], cells.splits["train"]
    assert first.names == second.names
    label = first.targets.tensor("label")
    assert torch.equal(label[:, [1, 2, 0]], second.targets.tensor("label"))
    assert label.sum(0).tolist() == [30, 30, 28]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"red": "maybe"}, "line 5: red must be 0 or 1, got 'maybe'"), ({"file": "no.png"}, "no.png does not exist"),
     ({"file": ""}, "no file"), ({"split": "perhaps"}, "split must be train, val or test, got 'perhaps'")],
)  # fmt: skip
def test_wrong_rows_are_errors(tmp_path: Path, change: dict[str, str], message: str) -> None:
    rows = [row | {"split": "train"} for row in images(tmp_path, 8)]
    rows[3] |= change
    with pytest.raises(DataError, match=message):
        open_data(table(tmp_path / "a.csv", rows))


def test_a_label_without_training_images_is_an_error(tmp_path: Path) -> None:
    rows = [row | {"red": "0"} for row in images(tmp_path, 8)]
    with pytest.raises(DataError, match="no training image has the label red"):
        open_data(table(tmp_path / "a.csv", rows))
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 5, 5), np.uint8), y=np.array([[1, 0]] * 4))
    with pytest.raises(DataError, match="no training image has the label 1"):
        open_data(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 5, 5), np.uint8), y=np.array([[1, 2]] * 4))
    with pytest.raises(DataError, match="labels must be 0 or 1"):
        open_data(tmp_path / "x.npz")


def test_val_may_lack_a_rare_label_also_with_an_unreadable_image(tmp_path: Path) -> None:
    rows = [row | {"split": "val" if i >= 40 else "train"} for i, row in enumerate(images(tmp_path))]
    rows = [row | {"red": "0" if row["split"] == "val" else row["red"]} for row in rows]
    (tmp_path / "50.png").write_bytes(b"no image")
    data = open_data(table(tmp_path / "a.csv", rows)).load(Preprocessing(8, 8).for_channels(3), max_unreadable=0.1)
    assert len(data.unreadable) == 1
    assert data.val is not None
    assert not data.val.targets.tensor("label")[:, 0].any()


def test_data_check_counts_every_label(tmp_path: Path) -> None:
    rows = images(tmp_path)
    (tmp_path / "copy.png").write_bytes((tmp_path / "3.png").read_bytes())
    rows.append(rows[4] | {"file": "copy.png"})
    checked = check(open_data(table(tmp_path / "a.csv", rows)))
    assert checked.counts["train"] == [30, 30, 29]
    ((one, other),) = checked.label_conflicts
    assert {checked.class_names(one), checked.class_names(other)} == {"red + Green", "blue"}


# --- from a table to predictions

QUICK = Recipe(epochs=20, batch=8, lr=0.05, label_smoothing=0.05)


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colors")
    table(folder / "colors.csv", images(folder, 80))
    return folder / "colors.csv"


@pytest.fixture(scope="module")
def run(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("multilabel") / "run"
    return ca.fit(colors, "lenet5_modern", recipe=QUICK, out=out, data_options=DataOptions(resolution=20))


def test_a_network_learns_to_predict_several_labels(run: Run, colors: Path) -> None:
    result = run.results["val"]
    assert isinstance(result, MultilabelResult)
    assert result.score == pytest.approx(1)
    assert result.num_errors == 0
    assert run.task.loss_name == "binary_cross_entropy"
    model = ca.load(run.model_file)
    assert model.header.task == MultilabelClassification(NAMES)
    predictions: list[Any] = model.predict([colors.parent / f"{i}.png" for i in (0, 1, 5, 7)])
    assert [set(prediction.labels) for prediction in predictions] == [set(), {"red"}, {"red", "blue"}, set(NAMES)]
    assert predictions[0].text == "unknown"
    assert sum(predictions[3].probabilities.values()) > 2
    split, measured, *_ = model.evaluate(colors)
    assert isinstance(measured, MultilabelResult)
    assert (split, measured.num_errors) == ("val", 0)
    assert measured.score == pytest.approx(1)
    assert torch.allclose(measured.probabilities, result.probabilities, atol=1e-6)


def test_classes_are_matched_by_name(run: Run, colors: Path) -> None:
    with colors.open() as file:
        rows = [{name: row[name] for name in ("blue", "file", "red", "Green")} for row in csv.DictReader(file)]
    other = table(colors.parent / "other.csv", rows)
    assert open_data(other).classes == ("blue", "red", "Green")
    assert ca.evaluate(run.model_file, other, split="all").result.score > 0.99


def test_data_with_some_of_the_classes_is_evaluated(run: Run, colors: Path) -> None:
    with colors.open() as file:
        rows = [row for row in csv.DictReader(file) if row["blue"] == "0"]
    for name, kept in (("zeros.csv", ("file", "red", "Green", "blue")), ("columns.csv", ("file", "Green", "red"))):
        part = table(colors.parent / name, [{key: row[key] for key in kept} for row in rows])
        result = ca.evaluate(run.model_file, part, split="all").result
        assert isinstance(result, MultilabelResult)
        assert (result.n, result.note) == (len(rows), "2 of 3 classes present")
        assert result.score > 0.99
        assert result.text().endswith("; 2 of 3 classes present")
        assert np.isfinite(result.summary()["macro_f1"])
        assert result.table().to_plain()["blue"]["average_precision"] is None


def test_single_label_data_and_losses_are_refused(run: Run, colors: Path, tmp_path: Path) -> None:
    with colors.open() as file:
        rows = [{"file": row["file"], "label": NAMES[i % 3]} for i, row in enumerate(csv.DictReader(file))]
    single = table(colors.parent / "single.csv", rows)
    message = "the data is for classification, the model was trained for multi-label classification"
    with pytest.raises(DataError, match=message):
        ca.evaluate(run.model_file, single)
    with pytest.raises(ConvatlasError, match=r"recipe: loss must be one of .*, got 'focal'"):
        ca.fit(colors, "lenet5_modern", recipe=Recipe(loss="focal"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_report_shows_every_class(run: Run) -> None:
    page = run.report_file.read_text(encoding="utf-8")
    for part in ("mean average precision", "false positives", "Green", "micro F1"):
        assert part in page
    with (run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["val_mAP"]) == pytest.approx(1)


def test_the_command_line_shows_every_class(run: Run, colors: Path) -> None:
    model_file, folder = str(run.model_file), colors.parent
    done = CliRunner().invoke(app, ["evaluate", model_file, str(colors)])
    assert "mean average precision 100.00%" in done.output
    plain = json.loads(CliRunner().invoke(app, ["evaluate", model_file, str(colors), "--json"]).output)
    assert plain["mAP"] == pytest.approx(1)
    assert plain["classes"]["red"]["average_precision"] == pytest.approx(1)
    done = CliRunner().invoke(app, ["predict", model_file, str(folder / "5.png"), "--json"])
    assert set(json.loads(done.output)["labels"]) == {"red", "blue"}
    rows = CliRunner().invoke(app, ["predict", model_file, *(str(folder / f"{i}.png") for i in (5, 0)), "--csv"])
    assert [set(row["labels"].split("|")) for row in csv.DictReader(rows.output.splitlines())] == [
        {"red", "blue"},
        {""},
    ]
    done = CliRunner().invoke(app, ["predict", model_file, str(folder / "0.png")])
    assert done.output.splitlines()[0].split()[:2] == ["image", "prediction"]
    assert done.output.splitlines()[-1].split()[1] == "unknown"


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "asymmetric"])
def test_an_interrupted_run_is_resumed_to_the_last_bit(colors: Path, tmp_path: Path, loss: str) -> None:
    recipe = Recipe(
        epochs=3,
        batch=16,
        loss=loss,
        class_weight_power=0.5,
        ema_decay=0.9,
        micro_batch=5,
        label_smoothing=0.1 * (loss != "asymmetric"),
    ).replaced({"mixup": 0.4, "cutmix": 1.0, "flip": True})
    how: dict[str, Any] = {
        "recipe": recipe, "data_options": DataOptions(resolution=20), "options": RunOptions(checkpoint_steps=1),
    }  # fmt: skip
    whole = ca.fit(colors, "lenet5_modern", out=tmp_path / "whole", **how)

    def interrupt(event: object) -> None:
        if isinstance(event, Step) and event.number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ca.fit(colors, "lenet5_modern", out=tmp_path / "part", on_event=interrupt, **how)
    part = ca.resume(tmp_path / "part")
    first, second = whole.network.state_dict(), part.network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert part.calibration == whole.calibration
    assert len(whole.calibration.thresholds) == 3


def test_thresholds_are_in_the_model_file_and_validated(run: Run, tmp_path: Path) -> None:
    network, header = read_model_file(run.model_file)
    assert header.calibration == run.calibration
    assert len(header.calibration.thresholds) == 3
    with pytest.raises(ModelFileError, match="thresholds must be one for each of 3, got 2"):
        dataclasses.replace(header, calibration=Calibration(thresholds=(0.5, 0.5)))
    with pytest.raises(SpecError, match=r"thresholds\[2\] must be a number in \[0, 1\], got 1\.5"):
        Calibration(thresholds=(0.5, 0.5, 1.5))
    for thresholds, message in (
        ((0.5, 0.5), "Header: thresholds must be one for each of 3, got 2"),
        ((0.5, 0.5, 1.5), r"header\.calibration: thresholds\[2\] must be a number in \[0, 1\], got 1\.5"),
    ):
        calibration = object.__new__(Calibration)  # without validation: a file may contain anything
        vars(calibration).update(temperature=1.0, thresholds=thresholds)
        forged = dataclasses.replace(header)
        object.__setattr__(forged, "calibration", calibration)
        write_model_file(tmp_path / "x.safetensors", network, forged)
        with pytest.raises(ModelFileError, match=rf"x\.safetensors: {message}"):
            read_model_file(tmp_path / "x.safetensors")


def test_arrays_may_have_several_labels(tmp_path: Path) -> None:
    labels = np.array([[i & 1, i >> 1 & 1] for i in range(24)])
    np.savez(tmp_path / "x.npz", x=np.zeros((24, 6, 6, 3), np.uint8), y=labels, classes=np.array(["a", "b"]))
    data = open_data(tmp_path / "x.npz").load(Preprocessing(6, 6, mean=(0.5,) * 3, std=(0.5,) * 3), val_share=0.25)
    assert data.task == MultilabelClassification(("a", "b"))
    assert data.train.targets.tensor("label").shape == (18, 2)
    assert data.fingerprint() != data.without_val().fingerprint()


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_any_label_is_refused_before_training(tmp_path: Path, split: str) -> None:
    x, y = np.zeros((12, 8, 8), np.uint8), np.eye(3, dtype=np.uint8)[np.arange(12) % 3]
    np.savez(tmp_path / "x.npz", x=x, y=y, **{f"x_{split}": x, f"y_{split}": 0 * y})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"no image of the {split} split has a label; nothing can be measured"):
        ca.fit(tmp_path / "x.npz", "lenet5_modern", out=tmp_path / "run")
