"""The command as a process of its own, the public names, and the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import convatlas as ca
from commands import Command, Outcome, check_refused, fit_arguments
from conftest import COLORS, write_images
from convatlas.inference.model import load


@pytest.mark.parametrize("name", ca.__all__)
def test_public_names_are_not_hidden_by_modules_of_the_same_name(name: str) -> None:
    assert callable(getattr(ca, name))


def process(*arguments: object, **environment: str) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", "convatlas", *map(str, arguments)], capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CONVATLAS_OFFLINE": "1"} | environment,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def test_the_module_is_the_command() -> None:
    outcome = process("--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert "Usage:" in outcome.out


def test_a_process_that_fails_prints_one_line(tmp_path: Path) -> None:
    check_refused(process(*fit_arguments(tmp_path / "nowhere", tmp_path / "run")), str(tmp_path / "nowhere"))


def test_names_that_are_no_text_give_no_traceback(tmp_path: Path) -> None:
    for name, color in ((b"ant", COLORS["ant"]), (b"caf\xe9", COLORS["bee"])):
        write_images(tmp_path / "data" / os.fsdecode(name), color, count=6)
    outcome = process(*fit_arguments(tmp_path / "data", tmp_path / "run"), PYTHONIOENCODING="utf-8")
    assert "Traceback" not in outcome.err
    if outcome.code:
        check_refused(outcome, "caf")
        assert not (tmp_path / "run").exists()


def test_demo_goes_the_whole_way(convatlas: Command, tmp_path: Path) -> None:
    outcome = convatlas("demo", "--out", tmp_path / "demo")
    assert outcome.code == 0
    model = load(tmp_path / "demo" / "model.safetensors")
    assert model.header.metrics["test"]["accuracy"] >= 0.985
    assert (tmp_path / "demo" / "overview.png").read_bytes().startswith(b"\x89PNG")
    examples = sorted((tmp_path / "demo" / "examples").glob("*.png"))
    assert len(examples) == 16
    right = [
        prediction.label == path.name[0] for prediction, path in zip(model.predict(examples), examples, strict=True)
    ]
    assert sum(right) >= 10
    commands = [line for line in outcome.out.splitlines() if line.startswith("  ") and "convatlas " in line]
    assert len(commands) == 3
