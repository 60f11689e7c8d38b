"""The command `diagnose`: runs and networks, its figures and JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import convatlas as ca
from commands import Command, check_refused, fit_arguments
from convatlas.train.run import Run


def test_a_run(convatlas: Command, colored: Run, tmp_path: Path) -> None:
    shown = convatlas("diagnose", colored.folder, "--out", tmp_path / "flow.svg")
    assert shown.code == 0, shown.err
    assert "measured steps" in shown.out
    assert "median update-to-weight ratio" in shown.out
    assert (tmp_path / "flow.svg").stat().st_size > 5000
    plain = json.loads(convatlas("diagnose", colored.folder, "--json").out)
    assert plain["measured_steps"] == len(plain["epoch_losses"]) + 1
    assert plain == ca.diagnose(colored.folder).to_plain() | {"name": str(colored.folder)}
    page = colored.report_file.read_text()
    assert "Gradients and activations by layer" in page


def test_a_network(convatlas: Command, tmp_path: Path) -> None:
    shown = convatlas("diagnose", "lenet5_modern", "--out", tmp_path / "flow.png")
    assert shown.code == 0, shown.err
    assert "lenet5_modern at initialization: 8 inputs of noise with variance 1" in shown.out
    assert "head.out" in shown.out
    assert (tmp_path / "flow.png").exists()
    small = ["cifar_resnet20", "--width", 0.5, "--resolution", 16]
    layers = [json.loads(convatlas("diagnose", *small, *more, "--json").out)["per_layer"]
              for more in ([], ["--depth", 2], ["--set", "depths[0]=4"])]  # fmt: skip
    assert len(layers[0]) < len(layers[2]) < len(layers[1])


def test_a_network_on_images(convatlas: Command) -> None:
    shown = convatlas("diagnose", "lenet5_modern", "--data", "digits")
    assert shown.code == 0, shown.err
    assert "64 images of digits; gradients of the training loss" in shown.out


def test_the_same_seed_gives_the_same_numbers(convatlas: Command) -> None:
    first, second, other = (convatlas("diagnose", "lenet5", "--seed", seed).out for seed in (1, 1, 2))
    assert first == second != other


def test_what_is_refused(convatlas: Command, colored: Run, tmp_path: Path) -> None:
    check_refused(convatlas("diagnose", "lenet5_moder"), "did you mean lenet5_modern?")
    check_refused(convatlas("diagnose", tmp_path), "not a run directory")
    check_refused(convatlas("diagnose", colored.folder, "--depth", 2), "depth is for networks by name")
    check_refused(convatlas("diagnose", colored.folder, "--seed", 2), "seed is for networks by name")
    check_refused(convatlas("diagnose", colored.folder, "--download"), "download is for networks by name")
    check_refused(convatlas("diagnose", "lenet5", "--set", "maps"), "--set: must be CELL=VALUE")
    check_refused(
        convatlas("diagnose", "cifar_resnet20", "--set", "depth[0]=2"), "has no cell 'depth[0]'", "did you mean"
    )
    check_refused(convatlas("diagnose", "lenet5", "--out", "flow.txt"), "suffix")
    check_refused(convatlas("diagnose", "lenet5", "--data", "digits", "--classes", 3), "classes must not be given")


def test_measurements_can_be_switched_off(convatlas: Command, images: Path, tmp_path: Path) -> None:
    done = convatlas(*fit_arguments(images, tmp_path / "run", "--no-diagnostics"))
    assert done.code == 0, done.err
    check_refused(convatlas("diagnose", tmp_path / "run"), "--no-diagnostics")
