"""The command as a process of its own, the public names, and the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import convatlas as ca
from commands import Command, Outcome, check_refused, fit_arguments
from conftest import COLORS, write_images
from convatlas.inference.load import load

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ca.__all__)
def test_public_names_are_not_hidden_by_modules_of_the_same_name(name: str) -> None:
    value = getattr(ca, name)
    assert callable(value) or (isinstance(value, ModuleType) and name == "search")


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


def test_commands_that_read_the_index_load_no_torch() -> None:
    script = """
import sys
from convatlas.cli.app import main
for line in ("list", "list resnet* --json", "list nothing", "show ResNet50", "show resnet5O", "compare resnet50 vgg16",
             "compare resnet50 resnet101 --json", "--help", "fit --help", "--version"):
    sys.argv = ["convatlas", *line.split()]
    try:
        main()
    except SystemExit:
        pass
import convatlas
convatlas.list_models(), convatlas.show("lenet5"), convatlas.compare("lenet1", "lenet5")
print(sorted({"torch", "torchvision", "matplotlib", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_closed_standard_output_is_no_error() -> None:
    script = """
import sys
sys.stdout, sys.argv = None, ["convatlas", "list", "lenet1"]
from convatlas.cli.app import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("line", ["show resnet5", "compare vgg16 resnet5", "fit digits --model resnet5"])
def test_the_shell_completes_names_of_networks(convatlas: Command, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setenv("_CONVATLAS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"convatlas {line}")
    monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
    assert convatlas().out.split() == ["resnet50", "resnet50_v1"]


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
    with Image.open(tmp_path / "demo" / "overview.png") as figure, Image.open(DOCS / "demo.png") as shown:
        assert figure.size == shown.size
    examples = sorted((tmp_path / "demo" / "examples").glob("*.png"))
    assert len(examples) == 16
    right = [
        prediction.label == path.name[0] for prediction, path in zip(model.predict(examples), examples, strict=True)
    ]
    assert sum(right) >= 10
    commands = [line for line in outcome.out.splitlines() if line.startswith("  ") and "convatlas " in line]
    assert len(commands) == 3
