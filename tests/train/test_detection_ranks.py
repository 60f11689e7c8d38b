"""Two ranks train and evaluate a detector as one does; a killed detector training continues to the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import convatlas as ca
from convatlas.weights.modelfile import read_header
from killed_runs import check_kills, metrics_table
from scripts import launch
from tiny_detection import write_rectangles

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from convatlas.train.fit import fit
from convatlas.train.settings import ExecutionOptions, RunOptions
from convatlas.weights.modelfile import read_header
from tiny_detection import TINY_SPECS

_, _, data, out, epochs, task = sys.argv
fit(data, TINY_SPECS[task], out=out, weights="none", epochs=int(epochs), batch=5, lr=0.02, ema_decay=0.9, micro_batch=3,
    execution=ExecutionOptions(device="cpu", threads=1, memory_format="contiguous", precision="float32",
                               fused_norms=False), options=RunOptions(checkpoint_steps=1))
"""

TESTS = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 training images: the last batch has a single one, so that one of two ranks has none. 5 val images."""
    return write_rectangles(tmp_path_factory.mktemp("data") / "rectangles", train=11, val=5)


@pytest.fixture
def child(tmp_path: Path) -> Path:
    path = tmp_path / "child.py"
    path.write_text(CHILD)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment", "keypoints"])
def test_two_ranks_have_the_results_of_one(task: str, data: Path, child: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        done = launch(count, str(child), TESTS, str(data), str(tmp_path / f"{count}"), "2", task)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = metrics_table(tmp_path / "1"), metrics_table(tmp_path / "2")
    # each rank normalizes the losses by its own anchors and regions, so that trainings are close, not equal
    assert [row["train_loss"] for row in two] == pytest.approx([row["train_loss"] for row in one], rel=0.1)
    stated = read_header(tmp_path / "2" / "model.safetensors").metrics["val"]
    assert ca.finish(tmp_path / "2", progress=False).results["val"].summary() == stated


@pytest.mark.slow
def test_a_training_that_is_killed_eight_times_ends_in_the_same_bits(data: Path, child: Path, tmp_path: Path) -> None:
    command, run, whole = [sys.executable, str(child), TESTS, str(data)], tmp_path / "run", tmp_path / "whole"
    subprocess.run([*command, str(whole), "16", "detect"], check=True, capture_output=True)
    check_kills([*command, str(run), "16", "detect"], run, whole, kills=8, pause_s=0.1)
