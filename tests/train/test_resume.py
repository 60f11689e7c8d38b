"""Interrupted runs: continued with other epochs and threads, and ended where they are."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import convatlas as ca
from commands import Command, check_refused
from convatlas.errors import RunError, SpecError
from convatlas.train.fit import prepare_run
from convatlas.train.recipe import Recipe
from convatlas.train.resume import open_run
from convatlas.train.run_folder import CONFIG
from convatlas.train.settings import ExecutionOptions, read_config
from convatlas.weights.modelfile import read_header

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def stopped(rows_of_two: Path, no_figures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs that was interrupted in the third one. Read only."""
    run = prepare_run(
        rows_of_two, "lenet1", out=tmp_path_factory.mktemp("stopped") / "run", weights="none",
        recipe=Recipe(epochs=4, batch=10, lr=0.01), execution=ExecutionOptions(device="cpu", threads=1),
    )  # fmt: skip
    with closing(run.steps()) as events:
        while run.state.step < 2 * run.steps_per_epoch + 1:
            next(events)
    run.save()
    return run.folder


@pytest.fixture
def interrupted(stopped: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize("epochs", [3, 6])
def test_a_run_continues_with_another_number_of_epochs(interrupted: Path, epochs: int) -> None:
    before = open_run(interrupted)
    run = ca.resume(interrupted, epochs=epochs, progress=False)
    assert (run.state.finished, len(run.history)) == (True, epochs)
    assert read_config(interrupted).recipe.epochs == epochs
    (change,) = read_config(interrupted).changes
    assert change == f"epochs 4 -> {epochs} at step {before.state.step}"
    assert read_header(run.model_file).training.changes == (change,)
    assert run.run_id == before.run_id
    assert run.history[:2] == before.history
    assert run.history[-1].lr < 1e-3  # the schedule is that of the new number


def test_fewer_epochs_than_have_begun_are_refused_and_change_nothing(interrupted: Path) -> None:
    text = (interrupted / CONFIG).read_text()
    with pytest.raises(RunError, match=r"epochs must be >= 3, the number of epochs that have begun, got 2"):
        ca.resume(interrupted, epochs=2, progress=False)
    with pytest.raises(SpecError, match=r"epochs must be an integer >= 1, got 0"):
        ca.resume(interrupted, epochs=0, progress=False)
    with pytest.raises(RunError, match=r"threads must be an integer >= 1"):
        ca.resume(interrupted, threads=0, progress=False)
    assert (interrupted / CONFIG).read_text() == text


def test_the_command_takes_epochs_and_threads_and_says_what_changes(interrupted: Path, convatlas: Command) -> None:
    outcome = convatlas("resume", interrupted, "--epochs", 3, "--threads", 2)
    assert (outcome.code, outcome.err) == (0, "")
    step = 2 * open_run(interrupted).steps_per_epoch + 1
    assert f"epochs 4 -> 3 at step {step}; the schedule is the new one" in outcome.out
    assert f"threads 1 -> 2 at step {step}; results may differ in the last bits" in outcome.out
    assert read_config(interrupted).execution.threads == 2
    refused = convatlas("resume", interrupted, "--epochs", 9)
    check_refused(refused, "the run is finished", f"--weights {interrupted} --epochs 9")


def test_an_interrupted_run_is_finished(interrupted: Path, stopped: Path, convatlas: Command, tmp_path: Path) -> None:
    outcome = convatlas("finish", interrupted)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"{interrupted}: finished after 2 of 4 epochs" in outcome.out
    assert "val: accuracy" in outcome.out
    for name in ("model.safetensors", "last.safetensors", "report.html"):
        assert (interrupted / name).is_file()
    assert open_run(interrupted).state.finished
    assert "is finished" in convatlas("resume", interrupted).out
    other = Path(shutil.copytree(stopped, tmp_path / "other"))
    scores = [ca.finish(folder, progress=False).results["val"].score for folder in (other, interrupted)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("command", ["resume", "finish"])
def test_moved_data_is_given_to_both_commands(
    command: str, interrupted: Path, rows_of_two: Path, tmp_path: Path, convatlas: Command
) -> None:
    plain = json.loads((interrupted / CONFIG).read_text())
    (interrupted / CONFIG).write_text(json.dumps(plain | {"data": str(tmp_path / "gone.npz")}))
    check_refused(convatlas(command, interrupted), "gone.npz: no such file", "if the data was moved, add --data NEW")
    assert convatlas(command, interrupted, "--data", rows_of_two).code == 0
    assert read_config(interrupted).data == str(rows_of_two)


def test_a_run_without_an_epoch_cannot_be_finished(interrupted: Path, convatlas: Command) -> None:
    (interrupted / "checkpoint.pt").unlink()
    refused = convatlas("finish", interrupted)
    check_refused(refused, "no model before the end of the first epoch", f"`convatlas resume {interrupted}` continues")


NO_RUN: dict[str, Any] = {
    "missing": (lambda path: None, "not a run directory (there is no run.json)"),
    "empty": (Path.mkdir, "not a run directory (there is no run.json)"),
    "damaged": (lambda path: (path.mkdir(), (path / CONFIG).write_text("{")), "run.json: damaged"),
    "half a start": (lambda path: (path.mkdir(), (path / ".lock").touch()), "interrupted before run.json was written"),
    "a file": (lambda path: path.write_text("x"), "not a run directory"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["resume", "finish"])
@pytest.mark.parametrize("name", NO_RUN)
def test_what_is_no_run_is_refused(command: str, name: str, tmp_path: Path, convatlas: Command) -> None:
    make, message = NO_RUN[name]
    make(tmp_path / "run")
    check_refused(convatlas(command, tmp_path / "run"), str(tmp_path / "run"), message)
