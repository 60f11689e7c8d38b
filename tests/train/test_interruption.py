"""A run that is killed at any file operation continues to the same result; two runs never share a directory."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import convatlas as ca
from commands import Command
from convatlas.errors import DataError, RunError
from convatlas.train.cross_validation import cross_validate
from convatlas.train.fit import prepare_run
from convatlas.train.recipe import Recipe
from convatlas.train.resume import open_run
from convatlas.train.run_folder import CONFIG, LOCK, lock_run, start_run
from convatlas.train.settings import ExecutionOptions, RunOptions

pytestmark = pytest.mark.usefixtures("no_figures")

FILE_OPERATIONS = ("fsync", "replace", "unlink", "mkdir", "rmdir")


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def kill_at(number: int) -> Iterator[None]:
    """Kill the process at its file operation of that number, from 1 on; nothing works afterwards."""
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count >= number:
                raise Killed
            return operation(*arguments, **named)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in FILE_OPERATIONS:
            patch.setattr(os, name, counted(getattr(os, name)))
        yield


@pytest.fixture(scope="module")
def data(rows_of_two: Path) -> Path:
    return rows_of_two


HOW: dict[str, Any] = {
    "recipe": Recipe(epochs=2, batch=10, lr=0.01), "execution": ExecutionOptions(device="cpu", threads=1),
    "options": RunOptions(checkpoint_steps=1), "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(data: Path, no_figures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file to start from."""
    return ca.fit(data, "lenet1", out=tmp_path_factory.mktemp("weights") / "run", seed=5, **HOW).model_file


def result(folder: Path) -> list[Any]:
    """Return what a finished run, or each of its folds, has found: weights and metrics, and the names of its files."""
    found: list[Any] = []
    for run in [folder, *sorted(folder.glob("fold-*"))]:
        files = sorted(file.name for file in run.iterdir() if file.is_file())
        found.append(files)
        for name in ("model.safetensors", "last.safetensors"):
            if name in files:
                found += [(key, value.tolist()) for key, value in sorted(load_file(run / name).items())]
        if "metrics.csv" in files:
            with (run / "metrics.csv").open() as table:
                found += [{key: row[key] for key in row if key != "elapsed_s"} for row in csv.DictReader(table)]
    return found


START = range(2, 10)
"""The file operations before run.json is complete are among these."""

NUMBERS: dict[str, list[int]] = {
    "plain": [1, 3, 6, 15, 28, 38, 45], "weights": [3, *START], "learning-rate finder": [3, 5, 8],
    "folds": [3, 5, 8, 50],
}  # fmt: skip


def fit(kind: str, data: Path, folder: Path, weights: Path) -> None:
    how: dict[str, Any] = dict(HOW)
    if kind == "weights":
        how["weights"] = weights
    if kind == "learning-rate finder":
        how["find_lr"] = True
    if kind == "folds":
        cross_validate(data, "lenet1", folds=2, out=folder, **how)
    else:
        ca.fit(data, "lenet1", out=folder, **how)


@pytest.fixture(scope="module")
def whole(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The results of uninterrupted runs."""
    results = {}
    for kind in NUMBERS:
        folder = tmp_path_factory.mktemp("whole") / "run"
        fit(kind, data, folder, weights)
        results[kind] = result(folder)
    return results


def kill_and_continue(kind: str, data: Path, folder: Path, weights: Path, number: int) -> bool:
    """Kill a run at a file operation and continue it; return False if it had fewer of them."""
    try:
        with kill_at(number):
            fit(kind, data, folder, weights)
    except Killed:
        if kind != "folds" and (folder / CONFIG).exists():
            ca.resume(folder, progress=False)
        else:
            fit(kind, data, folder, weights)  # the same command
        return True
    return False


@pytest.mark.parametrize(("kind", "number"), [(kind, number) for kind in NUMBERS for number in NUMBERS[kind]])
def test_a_run_killed_at_a_file_operation_continues(
    kind: str, number: int, data: Path, whole: dict[str, list[Any]], weights: Path, tmp_path: Path
) -> None:
    assert kill_and_continue(kind, data, tmp_path / "run", weights, number)
    assert result(tmp_path / "run") == whole[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_run_killed_at_any_file_operation_continues(
    kind: str, data: Path, whole: dict[str, list[Any]], weights: Path, tmp_path: Path
) -> None:
    number = 1
    while kill_and_continue(kind, data, tmp_path / str(number), weights, number):
        assert result(tmp_path / str(number)) == whole[kind], f"killed at file operation {number}"
        number += 1
    assert number > 30


# --- one process at a time


def test_two_starts_in_one_directory_are_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start_run(folder, "data", "model", "elsewhere"):
        (folder / "unreadable.csv").touch()
        with (
            pytest.raises(RunError, match="run: another process is training this run"),
            start_run(folder, "d", "m", "x"),
        ):
            pass
        assert (folder / "unreadable.csv").exists(), "the second start removed a file of the first"
        (folder / CONFIG).touch()
    with pytest.raises(RunError, match="run: exists already; choose another --out, or resume it"):
        start_run(folder, "d", "m", "x").__enter__()
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, "unreadable.csv"]


def test_starts_without_a_directory_of_their_own_get_different_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    how = (None, "data", "model", "elsewhere")
    with start_run(*how) as first, start_run(*how) as second:
        assert (str(first), str(second)) == ("runs/data-model", "runs/data-model-2")


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    def fail(folder: Path) -> None:
        with start_run(folder, "data", "model", "elsewhere"):
            (folder / "lr_finder.png").touch()
            raise DataError("no images")

    for name in ("new", "empty"):
        with pytest.raises(DataError):
            fail(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("name", ["checkpoint.pt", "notes.txt", "unreadable.csv"])
def test_a_directory_with_other_files_is_not_touched(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        start_run(tmp_path, "data", "model", "elsewhere").__enter__()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_a_run_directory_must_have_a_printable_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"caf\\xe9: the name of a run directory must be printable text in UTF-8"):
        start_run(tmp_path / "caf\udce9", "data", "model", "elsewhere").__enter__()
    assert not list(tmp_path.iterdir())


STARTED_TWICE = """
import sys
from convatlas.train.run_folder import CONFIG, start_run

folder, number = sys.argv[1:]
sys.stdin.readline()
with start_run(folder, "data", "model", "elsewhere") as made:
    (made / CONFIG).write_text(number)
"""


def test_of_processes_that_start_at_once_one_gets_the_directory(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STARTED_TWICE, folder, str(number)], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes.count(0) == 1
    assert (folder / CONFIG).read_text() == str(codes.index(0))
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or "exists already" in error or "another process" in error


def test_a_run_that_another_process_has_trained_meanwhile_is_not_continued(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepare_run(data, "lenet1", out=folder, **{key: HOW[key] for key in ("recipe", "execution", "options")})
    late = open_run(folder)
    ca.resume(folder, progress=False)
    for use in (late.finish, lambda: next(late.steps())):
        with pytest.raises(RunError, match="another process has trained this run since it was opened"):
            use()
    assert open_run(folder).state.finished


def test_the_lock_of_a_killed_process_does_not_last(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ca.fit(data, "lenet1", out=folder, **HOW)
    (folder / LOCK).touch()
    with lock_run(folder):
        pass
    assert not (folder / LOCK).exists()


def test_resume_of_an_interrupted_start_names_the_way_on(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    with pytest.raises(RunError, match=r"interrupted before run\.json was written; run the same fit again"):
        open_run(tmp_path)


# --- moved data


def test_a_run_continues_with_moved_data(
    data: Path, tmp_path: Path, convatlas: Command, whole: dict[str, list[Any]]
) -> None:
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    first.write_bytes(data.read_bytes())
    folder = tmp_path / "run"
    next(prepare_run(first, "lenet1", out=folder, **{key: HOW[key] for key in HOW if key != "progress"}).steps())
    first.rename(second)
    outcome = convatlas("resume", folder)
    assert outcome.code == 2
    assert "if the data was moved, add --data NEW" in outcome.err
    other = np.load(second)
    np.savez(tmp_path / "other.npz", x=other["x"][::-1], y=other["y"])
    with pytest.raises(RunError, match=r"other\.npz: is not the data that .* was started with"):
        ca.resume(folder, data=tmp_path / "other.npz", progress=False)
    assert convatlas("resume", folder, "--data", second).code == 0
    assert result(folder) == whole["plain"]
    assert ca.resume(folder, progress=False).config.data == str(second)
