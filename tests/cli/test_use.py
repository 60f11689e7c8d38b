"""Using a model on the command line: evaluate and predict."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from commands import Command, check_refused
from conftest import COLORS, write_images
from convatlas.engines import select
from convatlas.inference.load import load
from convatlas.train.run import Run


def test_evaluate_counts_every_class(convatlas: Command, model_file: Path, images: Path, colored: Run) -> None:
    plain = json.loads(convatlas("evaluate", model_file, images, "--json").out)
    assert plain["split"] == "val"
    assert {name: counts["n"] for name, counts in plain["classes"].items()} == dict.fromkeys(COLORS, 12)
    assert plain["num_errors"] == colored.results["val"].num_errors
    assert sum(counts["correct"] for counts in plain["classes"].values()) == 36 - plain["num_errors"]
    shown = convatlas("evaluate", model_file, images, "--split", "train")
    assert shown.code == 0
    assert "train: accuracy" in shown.out
    assert all(name in shown.out for name in COLORS)


def test_evaluate_reports_skipped_images(convatlas: Command, model_file: Path, own_images: Path) -> None:
    for i in range(150):
        shutil.copy(own_images / "val/ant/00.jpg", own_images / f"val/ant/copy{i}.jpg")
    (own_images / "val/ant/copy7.jpg").write_bytes(b"")
    outcome = convatlas("evaluate", model_file, own_images)
    assert outcome.code == 0
    assert "val/ant/copy7.jpg" in outcome.out + outcome.err


def test_predict_prints_a_table_json_and_csv(convatlas: Command, model_file: Path, images: Path) -> None:
    files = sorted((images / "val/ant").iterdir())
    expected = load(model_file).predict(files)
    outcome = convatlas("predict", model_file, images / "val/ant")
    assert (outcome.code, outcome.err) == (0, "")
    for line, prediction in zip(outcome.out.splitlines()[1:], expected, strict=True):
        shown = [prediction.source, prediction.text, f"{prediction.probability:.2%}", prediction.text]
        assert line.split()[:4] == shown
    lines = [json.loads(line) for line in convatlas("predict", model_file, *files, "--json").out.splitlines()]
    assert lines == [prediction.to_plain() for prediction in expected]
    rows = list(csv.DictReader(io.StringIO(convatlas("predict", model_file, *files, "--csv").out)))
    assert [(row["source"], row["label"], row["error"]) for row in rows] == [(p.source, p.label, "") for p in expected]
    for row, prediction in zip(rows, expected, strict=True):
        likely = {row[f"class_{i}"]: float(row[f"probability_{i}"]) for i in (1, 2, 3)}
        assert likely == prediction.probabilities


@pytest.mark.parametrize("form", ["", "--json", "--csv"])
def test_an_unreadable_image_does_not_stop_the_others(
    convatlas: Command, model_file: Path, images: Path, tmp_path: Path, form: str
) -> None:
    (tmp_path / "unreadable.png").write_bytes(b"\x89PNG")
    good = images / "val/bee/01.png"
    outcome = convatlas("predict", model_file, tmp_path / "unreadable.png", good, *([form] if form else []))
    check_refused(outcome, str(tmp_path / "unreadable.png"))
    assert str(good) in outcome.out


def test_predict_ignores_hidden_files_in_folders(convatlas: Command, model_file: Path, own_images: Path) -> None:
    folder = own_images / "val" / "ant"
    (folder / "._00.jpg").write_bytes(b"left behind by a Mac")
    outcome = convatlas("predict", model_file, folder)
    assert (outcome.code, outcome.err) == (0, "")


def test_square_brackets_and_colons_in_names_are_printed_as_they_are(
    convatlas: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("photos[old]:cat:")
    for name, color in (("[red]", COLORS["ant"]), ("[bold]dog", COLORS["bee"])):
        write_images(folder / name, color)
    fitted = convatlas("fit", folder, "--model", "lenet1", "--epochs", 1, "--out", "run[/bold]")
    assert fitted.code == 0
    assert str(folder) in fitted.out
    assert "run[/bold]" in fitted.out
    model = Path("run[/bold]") / "model.safetensors"
    evaluated = convatlas("evaluate", model, folder)
    assert "[red]" in evaluated.out
    assert "[bold]dog" in evaluated.out
    predicted = convatlas("predict", model, folder / "[red]" / "00.jpg", "missing:cat:[red].png")
    assert f"{folder}/[red]/00.jpg" in predicted.out
    assert "missing:cat:[red].png" in predicted.err


def test_standard_input_is_predicted_without_a_measurement(
    convatlas: Command, model_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "time_engines", lambda *_: pytest.fail("measured"))
    file = next(images.rglob("*.png"))
    for data in (file.read_bytes(), f"{file}\n{file}\n".encode()):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        outcome = convatlas("predict", model_file, "-", "--csv")
        assert (outcome.code, outcome.err) == (0, "")
