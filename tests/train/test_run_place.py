"""Where runs are stored: never in the data, and nothing is left of a start that is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from commands import Command, check_refused, fit_arguments
from convatlas.data.open import open_data
from convatlas.data.readers import image_files
from convatlas.data.readers.image_files import holds_runs, list_images
from convatlas.train import fit as fitting
from convatlas.train.run import Run
from convatlas.train.run_folder import CONFIG, LOCK

pytestmark = pytest.mark.usefixtures("no_figures")


def test_runs_in_the_data_are_no_classes(own_images: Path, colored: Run) -> None:
    before = open_data(own_images)
    shutil.copytree(colored.folder, own_images / "train" / "runs" / "a-folds" / "fold-1")
    shutil.copytree(colored.folder, own_images / "runs" / "a")
    (own_images / "train" / "runs" / "started").mkdir()
    (own_images / "train" / "runs" / "started" / LOCK).touch()
    assert frozenset(image_files.RUN_FILES) == {CONFIG, LOCK}
    assert holds_runs(str(own_images / "runs"))
    assert not holds_runs(str(own_images / "train"))
    after = open_data(own_images)
    assert after.classes == before.classes
    assert {split: part.names for split, part in after.splits.items()} == {
        split: part.names for split, part in before.splits.items()
    }
    assert list_images(own_images)[0] == sorted(name for part in before.splits.values() for name in part.names)


def test_runs_are_stored_beside_the_data(convatlas: Command, own_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(own_images.rglob("*"))
    monkeypatch.chdir(own_images)
    for out in ("run", "runs/run", own_images / "train" / "run"):
        check_refused(convatlas(*fit_arguments(".", out)), "must not be inside the data folder", "--out")
    outcome = convatlas("fit", ".", "--model", "lenet1", "--epochs", 1)
    assert outcome.code == 0, outcome.err
    place = own_images.parent / "runs" / f"{own_images.name}-lenet1"
    assert f"run directory {place} (beside the data, not in it)" in " ".join(outcome.out.split())
    assert (place / "model.safetensors").is_file()
    assert sorted(own_images.rglob("*")) == before


def test_what_stops_a_start_is_refused_before_anything_is_read(
    convatlas: Command, own_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_for_training = fitting.open_for_training
    monkeypatch.setattr(fitting, "open_for_training", lambda *_, **__: pytest.fail("the data was read"))
    monkeypatch.setattr(fitting, "choose_plan", lambda *_, **__: pytest.fail("steps were measured"))
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").touch()
    for model in ("lenet5_modern", "auto"):
        arguments = ["fit", own_images, "--model", model, "--max-macs", "1M"][: 4 if model != "auto" else 6]
        check_refused(convatlas(*arguments, "--out", occupied), "exists already", "--out")
        check_refused(convatlas(*arguments, "--out", tmp_path / "run", "--log", "wandb"), "wandb is not installed")
    monkeypatch.setattr(fitting, "open_for_training", open_for_training)  # wrong data is reported before wrong weights
    monkeypatch.setattr(fitting, "load_data", lambda *_, **__: pytest.fail("the images were read"))
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"no weights")
    assert convatlas(*fit_arguments(own_images, tmp_path / "run", "--weights", other)).code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "occupied", "other.safetensors"]
