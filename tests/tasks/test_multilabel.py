"""Images of any number of classes: losses, metrics, splits, and the way from a table to answers."""

from __future__ import annotations

import csv
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
from convatlas.data.open import find
from convatlas.data.splits import split_off
from convatlas.errors import ConvatlasError, DataError, ModelFileError, SpecError
from convatlas.tasks.classification import metrics
from convatlas.tasks.classification.losses import asymmetric, binary_cross_entropy, loss_for
from convatlas.tasks.classification.results import Tags
from convatlas.train.recipe import Recipe
from convatlas.train.settings import Settings

NAMES = ("red", "Green", "blue")


def drawn(seed: int, count: int = 40, classes: int = 3, ties: bool = False) -> tuple[Tensor, Tensor]:
    """Return probabilities and labels that have something to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, classes, generator=generator) < 0.3).float()
    labels[0] = 1
    scores = (torch.randn(count, classes, generator=generator) + 1.5 * labels).sigmoid()
    return (scores * 5).round() / 5 if ties else scores, labels


# --- losses


def test_binary_cross_entropy_is_its_definition() -> None:
    outputs, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    p = outputs.sigmoid()
    expected = torch.stack([-p[0, 0].log(), -(1 - p[0, 1]).log()])
    assert torch.allclose(binary_cross_entropy(outputs, labels, 0.0)[0], expected)
    smooth = 0.9 * -p[0, 0].log() + 0.1 * -(1 - p[0, 0]).log()
    assert binary_cross_entropy(outputs, labels, 0.2)[0, 0] == pytest.approx(float(smooth))


@pytest.mark.parametrize("x", [-60.0, -3.0, 0.0, 2.0, 60.0])
def test_the_asymmetric_loss_is_its_definition(x: float) -> None:
    outputs = torch.tensor([[x, x]], dtype=torch.float64, requires_grad=True)
    there, absent = asymmetric(outputs, torch.tensor([[1.0, 0.0]]), 0.0)[0]
    p = torch.tensor(x, dtype=torch.float64).sigmoid()
    shifted = (p - 0.05).clamp(min=0)
    assert float(there) == pytest.approx(float(-torch.nn.functional.logsigmoid(torch.tensor(x, dtype=torch.float64))))
    assert float(absent) == pytest.approx(float(-(shifted**4) * (1 - shifted).log()))
    (there + absent).backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_the_loss_goes_with_the_data() -> None:
    assert loss_for("cross_entropy", several=True) == "binary_cross_entropy"
    assert loss_for("asymmetric", several=True) == "asymmetric"
    assert loss_for("focal", several=False) == "focal"
    for loss, several in (("focal", True), ("margin", True), ("asymmetric", False), ("binary_cross_entropy", False)):
        with pytest.raises(SpecError, match=rf"recipe\.loss: {loss}"):
            loss_for(loss, several=several)


# --- metrics


@given(st.integers(0, 10**6), st.booleans())
def test_average_precision_equals_scikit_learn(seed: int, ties: bool) -> None:
    scores, labels = drawn(seed, ties=ties)
    expected = [average_precision_score(labels[:, i], scores[:, i]) for i in range(3)]
    assert metrics.average_precisions(scores, labels).tolist() == pytest.approx(expected, abs=1e-9)


def test_a_class_without_images_has_no_average_precision() -> None:
    scores, labels = drawn(0)
    labels[:, 1] = 0
    result = Tags(scores, labels, 0.0)
    assert result.precisions.isnan().tolist() == [False, True, False]
    assert result.score == pytest.approx(float(result.precisions[[0, 2]].mean()))
    assert all(value == value for value in result.summary().values())


def test_the_interval_is_that_of_drawing_images_again() -> None:
    scores, labels = drawn(3, count=60)
    random, means = np.random.default_rng(0), []
    for row in random.multinomial(60, np.full(60, 1 / 60), 200):
        chosen = np.repeat(np.arange(60), row)
        means.append(np.mean([average_precision_score(labels[chosen, i], scores[chosen, i]) for i in range(3)]))
    assert metrics.interval_of_map(scores, labels) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=1e-9)


@given(st.integers(0, 10**6), st.booleans())
def test_no_threshold_gives_a_better_f1(seed: int, ties: bool) -> None:
    scores, labels = drawn(seed, ties=ties)
    found = metrics.best_thresholds(scores, labels)
    for i, threshold in enumerate(found):
        reached = f1_score(labels[:, i], scores[:, i] >= threshold)
        best = max(f1_score(labels[:, i], scores[:, i] >= t) for t in scores[:, i].tolist())
        assert reached == pytest.approx(best)


def test_the_numbers_are_those_of_scikit_learn() -> None:
    scores, labels = drawn(5)
    numbers = Tags(scores, labels, 0.25).summary()
    said = scores >= 0.5
    assert numbers["macro_f1"] == pytest.approx(f1_score(labels, said, average="macro"))
    assert numbers["micro_f1"] == pytest.approx(f1_score(labels, said, average="micro_batch"))
    assert numbers["accuracy"] == pytest.approx(float((said == labels.bool()).all(1).float().mean()))
    assert numbers["map_low"] < numbers["map"] < numbers["map_high"]


# --- data


def test_splits_share_out_every_class() -> None:
    _, labels = drawn(7, count=400, classes=6)
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
    """Write images whose channels are bright or dark, and return rows that say which are bright."""
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


def listed(rows: list[dict[str, str]], mark: str = "|") -> list[dict[str, str]]:
    return [{"file": row["file"], "labels": mark.join(n for n in NAMES if row[n] == "1")} for row in rows]


@pytest.mark.parametrize("mark", ["|", " | "])
def test_classes_are_columns_or_stand_in_one_cell(tmp_path: Path, mark: str) -> None:
    rows = images(tmp_path)
    columns = find(table(tmp_path / "a.csv", rows))
    cells = find(table(tmp_path / "b.csv", listed(rows, mark)))
    assert columns.classes == NAMES
    assert cells.classes == tuple(sorted(NAMES))
    assert columns.several
    assert cells.several
    first, second = columns.listings["train"], cells.listings["train"]
    assert first.names == second.names
    assert torch.equal(first.labels[:, [1, 2, 0]], second.labels)
    assert first.labels.sum(0).tolist() == [30, 30, 28]


@pytest.mark.parametrize(
    ("change", "told"),
    [({"red": "maybe"}, "'red' holds 'maybe'"), ({"file": "no.png"}, "no.png is not there"),
     ({"file": ""}, "no file"), ({"split": "perhaps"}, "the split 'perhaps'")],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_told(tmp_path: Path, change: dict[str, str], told: str) -> None:
    rows = [row | {"split": "train"} for row in images(tmp_path, 8)]
    rows[3] |= change
    with pytest.raises(DataError, match=told):
        find(table(tmp_path / "a.csv", rows))


def test_a_class_nobody_shows_is_told(tmp_path: Path) -> None:
    rows = [row | {"red": "0"} for row in images(tmp_path, 8)]
    with pytest.raises(DataError, match="no training image is of the class red"):
        find(table(tmp_path / "a.csv", rows))
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 5, 5), np.uint8), y=np.array([[1, 0]] * 4))
    with pytest.raises(DataError, match="no image is of the class 1"):
        find(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 5, 5), np.uint8), y=np.array([[1, 2]] * 4))
    with pytest.raises(DataError, match="labels are 0 or 1"):
        find(tmp_path / "x.npz")


def test_a_broken_image_does_not_make_a_rare_class_needed_in_val(tmp_path: Path) -> None:
    rows = [row | {"split": "val" if i >= 40 else "train"} for i, row in enumerate(images(tmp_path))]
    rows = [row | {"red": "0" if row["split"] == "val" else row["red"]} for row in rows]
    (tmp_path / "50.png").write_bytes(b"no image")
    data = find(table(tmp_path / "a.csv", rows)).load(Preprocessing(8, 8).for_channels(3), max_unreadable=0.1)
    assert len(data.unreadable) == 1
    assert data.val is not None
    assert not data.val.labels[:, 0].any()


def test_the_check_counts_every_class(tmp_path: Path) -> None:
    rows = images(tmp_path)
    (tmp_path / "copy.png").write_bytes((tmp_path / "3.png").read_bytes())
    rows.append(rows[4] | {"file": "copy.png"})
    checked = check(find(table(tmp_path / "a.csv", rows)))
    assert checked.counts["train"] == [30, 30, 29]
    ((one, other),) = checked.label_conflicts
    assert {checked.class_names(one), checked.class_names(other)} == {"red + Green", "blue"}


# --- from a table to answers

QUICK = Recipe(epochs=20, batch=8, lr=0.05, label_smoothing=0.05)


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colors")
    table(folder / "colors.csv", images(folder, 80))
    return folder / "colors.csv"


@pytest.fixture(scope="module")
def run(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("tags") / "run"
    return ca.fit(colors, "lenet5_modern", recipe=QUICK, out=out, settings=Settings(size=20))


def test_a_network_learns_to_name_any_number_of_classes(run: Any, colors: Path) -> None:
    result = run.results["val"]
    assert result.score == pytest.approx(1)
    assert result.errors == 0
    assert run.config.recipe.loss == "binary_cross_entropy"
    model = ca.load(run.model_file)
    assert model.header.task == "tagging"
    answers = model.predict([colors.parent / f"{i}.png" for i in (0, 1, 5, 7)])
    assert [set(answer.labels) for answer in answers] == [set(), {"red"}, {"red", "blue"}, set(NAMES)]
    assert sum(answers[3].probabilities.values()) > 2
    split, measured, _ = model.evaluate(colors)
    assert (split, measured.score, measured.errors) == ("val", pytest.approx(1), 0)
    assert torch.allclose(measured.probabilities, result.probabilities, atol=1e-6)


def test_classes_are_matched_by_name(run: Any, colors: Path) -> None:
    with colors.open() as file:
        rows = [{name: row[name] for name in ("blue", "file", "red", "Green")} for row in csv.DictReader(file)]
    other = table(colors.parent / "other.csv", rows)
    assert find(other).classes == ("blue", "red", "Green")
    assert ca.evaluate(run.model_file, other, split="all").result.score > 0.99


def test_one_class_and_several_do_not_mix(run: Any, colors: Path, tmp_path: Path) -> None:
    with colors.open() as file:
        rows = [{"file": row["file"], "label": NAMES[i % 3]} for i, row in enumerate(csv.DictReader(file))]
    single = table(colors.parent / "single.csv", rows)
    with pytest.raises(DataError, match="one class, the network was not trained"):
        ca.evaluate(run.model_file, single)
    with pytest.raises(ConvatlasError, match=r"recipe\.loss: focal"):
        ca.fit(colors, "lenet5_modern", recipe=Recipe(loss="focal"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_report_tells_of_every_class(run: Any) -> None:
    page = (run.folder / "report.html").read_text()
    for part in ("mean average precision", "seen where it is not", "Green", "micro F1"):
        assert part in page
    rows = list(csv.DictReader((run.folder / "metrics.csv").open()))
    assert float(rows[-1]["val_map"]) == pytest.approx(1)


def test_the_command_line_tells_of_every_class(run: Any, colors: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(run.model_file), str(colors)])
    assert "mean average precision 100.00%" in done.output
    told = json.loads(CliRunner().invoke(app, ["evaluate", str(run.model_file), str(colors), "--json"]).output)
    assert told["map"] == pytest.approx(1)
    assert told["classes"]["red"]["average precision"] == pytest.approx(1)
    done = CliRunner().invoke(app, ["predict", str(run.model_file), str(colors.parent / "5.png"), "--json"])
    assert set(json.loads(done.output)["labels"]) == {"red", "blue"}
    done = CliRunner().invoke(app, ["predict", str(run.model_file), str(colors.parent / "0.png")])
    assert done.output.splitlines()[0].split()[:2] == ["image", "is"]


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "asymmetric"])
def test_a_run_that_is_stopped_ends_with_the_same_bits(colors: Path, tmp_path: Path, loss: str) -> None:
    recipe = Recipe(
        epochs=3,
        batch=16,
        loss=loss,
        class_weight_power=0.5,
        ema_decay=0.9,
        micro_batch=5,
        label_smoothing=0.1 * (loss != "asymmetric"),
    ).replaced({"mixup": 0.4, "cutmix": 1.0, "flip": True})
    settings = Settings(size=20, checkpoint_steps=1)
    whole = ca.fit(colors, "lenet5_modern", recipe=recipe, out=tmp_path / "whole", settings=settings)

    def stop(event: Any) -> None:
        if not isinstance(event, dict) and event.number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ca.fit(colors, "lenet5_modern", recipe=recipe, out=tmp_path / "part", settings=settings, watch=stop)
    part = ca.resume(tmp_path / "part")
    first, second = whole.network.state_dict(), part.network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert part.thresholds == whole.thresholds


def test_thresholds_are_sealed_and_checked(run: Any, tmp_path: Path) -> None:
    import dataclasses

    from convatlas.weights import modelfile

    network, header = modelfile.read_model_file(run.model_file)
    assert len(header.thresholds) == 3
    for thresholds in ((), (0.5, 0.5), (0.5, 0.5, 1.5)):
        modelfile.write_model_file(tmp_path / "x.safetensors", network, dataclasses.replace(header, thresholds=thresholds))
        with pytest.raises(ModelFileError, match="thresholds"):
            modelfile.read_model_file(tmp_path / "x.safetensors")


def test_arrays_may_be_of_several_classes(tmp_path: Path) -> None:
    labels = np.array([[i & 1, i >> 1 & 1] for i in range(24)])
    np.savez(tmp_path / "x.npz", x=np.zeros((24, 6, 6, 3), np.uint8), y=labels, classes=np.array(["a", "b"]))
    data = find(tmp_path / "x.npz").load(Preprocessing(6, 6, mean=(0.5,) * 3, std=(0.5,) * 3), val_share=0.25)
    assert data.classes == ("a", "b")
    assert data.train.labels.shape == (18, 2)
    assert data.fingerprint() != data.without_val().fingerprint()


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_any_class_is_refused_before_the_training(tmp_path: Path, split: str) -> None:
    x, y = np.zeros((12, 8, 8), np.uint8), np.eye(3, dtype=np.uint8)[np.arange(12) % 3]
    np.savez(tmp_path / "x.npz", x=x, y=y, **{f"x_{split}": x, f"y_{split}": 0 * y})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"no image of the {split} split is of any class"):
        ca.fit(tmp_path / "x.npz", "lenet5_modern", out=tmp_path / "run")
