"""What a training shows: nothing in scripts, the course of the run in terminals and notebooks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import convatlas as ca
from convatlas.train import display
from convatlas.train.display import Display, training_display
from convatlas.train.fit import prepare_run
from convatlas.train.run import Run
from convatlas.train.settings import ExecutionOptions

pytestmark = pytest.mark.usefixtures("no_figures")


def train(data: Path, out: Path, **options: Any) -> Run:
    execution = ExecutionOptions(threads=1, device="cpu")
    return ca.fit(data, "lenet1", recipe="default", epochs=2, lr=0.0, out=out, execution=execution, **options)


def test_a_script_shows_nothing(rows_of_two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(rows_of_two, tmp_path / "run")
    assert capsys.readouterr() == ("", "")


def test_only_an_enabled_display_of_rank_0_shows_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    for enabled, rank, quiet in ((True, "0", False), (False, "0", True), (True, "1", True)):
        monkeypatch.setenv("RANK", rank)
        with training_display(enabled) as shown:
            assert shown.console.quiet is quiet


def test_an_interruption_in_python_names_the_call_that_resumes(
    rows_of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Run) -> None:
        raise KeyboardInterrupt

    text = io.StringIO()
    shown = Display(Console(quiet=True), Console(file=text, width=1000), lambda *_: None)
    run = prepare_run(
        rows_of_two, "lenet1", recipe="default", epochs=2, out=tmp_path / "run",
        execution=ExecutionOptions(threads=1, device="cpu"),
    )  # fmt: skip
    monkeypatch.setattr(Run, "steps", stop)
    with pytest.raises(KeyboardInterrupt):
        shown.train(run)
    last = text.getvalue().splitlines()[-1]
    assert last == f'convatlas: interrupted; `ca.resume("{tmp_path}/run")` continues at step 0 (epoch 1 of 2)'


def test_a_notebook_shows_the_course_of_the_run(
    rows_of_two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Notebook(Console):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.is_jupyter = not options.get("file")

    shown: list[bool] = []
    progress_display = display.progress_display
    monkeypatch.setattr(display, "Console", Notebook)
    monkeypatch.setattr(
        display, "progress_display", lambda enabled, console: (shown.append(enabled), progress_display(False))[1]
    )
    run = train(rows_of_two, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert shown == [True]
    assert f"run directory {run.folder}" in lines[0]
    assert lines[1] == "weights: random (no library publishes weights of lenet1)"
    assert lines[2].split()[-1] == "elapsed"
    assert [line.split()[0] for line in lines[3:5]] == ["1", "2"]
    assert lines[5].startswith("val: accuracy 40.00%, 3 of 5 images wrong; best epoch 1")
    assert lines[6].startswith("val: no better than always predicting ")
    assert f"model file: {run.model_file}" in lines


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (True, "net@a:b, cached; --weights none starts from random weights"),
        (False, 'net@a:b, cached; weights="none" starts from random weights'),
    ],
)
def test_hints_are_in_the_terms_of_the_caller(command: bool, line: str) -> None:
    console = Console(file=io.StringIO())
    shown = Display(console, console, lambda *_: None, command=command)
    assert shown.describe_weights("net@a:b", "cached") == line
    assert shown.describe_weights("mine.pth", "") == "mine.pth"
    assert shown.describe_weights("", "as chosen") == "random (as chosen)"
