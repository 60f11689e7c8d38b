"""Training on the command line: the run directory, unreadable images, resuming."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from commands import Command, fit_arguments
from conftest import COLORS
from convatlas.cli.fit import _network as chosen_network
from convatlas.inference.load import load
from convatlas.models.catalog import CATALOG
from convatlas.models.families.inflated import Inflated
from convatlas.train.run import Run


def test_fit_leaves_a_complete_run_directory(convatlas: Command, images: Path, tmp_path: Path) -> None:
    outcome, run = convatlas(*fit_arguments(images, tmp_path / "run", "--license", "CC0-1.0")), tmp_path / "run"
    assert (outcome.code, outcome.err) == (0, "")
    assert {path.name for path in run.iterdir()} == {
        "run.json", "diagnostics.csv", "metrics.csv", "curves.png", "report.html", "model.safetensors",
        "last.safetensors", "checkpoint.pt",
    }  # fmt: skip
    config = json.loads((run / "run.json").read_text())
    assert (config["model"], config["task"]["classes"], config["recipe"]["epochs"]) == (
        "lenet5_modern",
        list(COLORS),
        2,
    )
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    with Image.open(run / "curves.png") as curves:
        assert curves.format == "PNG"
    model = load(run / "model.safetensors")
    assert model.header.license == "CC0-1.0"
    assert f"{model.header.metrics['val']['accuracy']:.2%}" in outcome.out
    assert str(run / "model.safetensors") in outcome.out
    finished = convatlas("resume", run)
    assert finished.code == 0
    assert "is finished" in finished.out


def test_fit_names_its_run_directories(
    convatlas: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("images-lenet1", "images-lenet1-2"):
        assert convatlas("fit", images, "--model", "lenet1", "--epochs", 1).code == 0
        assert (tmp_path / "runs" / folder / "model.safetensors").is_file()


def test_unreadable_images_are_listed_up_to_max_unreadable(
    convatlas: Command, own_images: Path, tmp_path: Path
) -> None:
    unreadable = own_images / "train/bee/01.png"
    unreadable.write_bytes(b"")
    outcome = convatlas(*fit_arguments(own_images, tmp_path / "run", "--max-unreadable", 0.05))
    assert outcome.code == 0
    assert str(unreadable) in outcome.out
    (row,) = csv.DictReader((tmp_path / "run" / "unreadable.csv").open())
    assert row["path"] == str(unreadable)
    # the data that a model was trained on can be measured with the same tolerance
    assert convatlas("evaluate", tmp_path / "run" / "model.safetensors", own_images).code == 0


def test_a_run_on_a_relative_folder_can_be_resumed_from_anywhere(
    convatlas: Command, own_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_images.parent)
    assert convatlas(*fit_arguments("images", tmp_path / "run")).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = convatlas("resume", tmp_path / "run")
    assert (outcome.code, outcome.err) == (0, "")


def test_an_interrupted_training_names_the_command_that_resumes_it(
    convatlas: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "steps", stop)
        outcome = convatlas(*fit_arguments(images, tmp_path / "run"))
    assert outcome.code == 130
    assert f"convatlas: interrupted; `convatlas resume {tmp_path / 'run'}` continues" in outcome.err
    resumed = convatlas("resume", tmp_path / "run")
    assert resumed.code == 0
    assert f"run directory {tmp_path / 'run'}" in resumed.out.splitlines()[0]
    assert (tmp_path / "run" / "last.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "inflated"), "--model: inflated needs a body, such as --body resnet18"),
        (("--model", "resnet18", "--body", "resnet18"), "--body: needs a detector"),
    ],
)
def test_a_body_is_for_detectors_and_inflated_networks(
    convatlas: Command, images: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = convatlas("fit", images, *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_an_inflated_network_gets_its_body_and_keeps_its_other_cells() -> None:
    network = chosen_network("inflated_mobilenet_v2", "resnet18")
    assert isinstance(network, Inflated)
    assert (network.body, network.time_strides) == (CATALOG["resnet18"].spec, (1, 2, 2, 2, 2))
    assert chosen_network("inflated", "resnet18") == Inflated(CATALOG["resnet18"].spec)
