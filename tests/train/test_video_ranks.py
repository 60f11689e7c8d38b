"""Two ranks train and evaluate on videos as one does; a killed training on videos continues to the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import convatlas as ca
from convatlas.weights.modelfile import read_header
from killed_runs import check_kills, metrics_table
from scripts import launch
from video_files import moving_square, write_video

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from convatlas.models.families.video_resnet import VideoResNet
from convatlas.train.fit import fit
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions

_, _, data, out, epochs = sys.argv
spec = VideoResNet(("3d",) * 4, (1,) * 4, (4, 4, 8, 8), stem=(4,), frames=4, resolution=16)
fit(data, spec, out=out, weights="none", epochs=int(epochs), batch=4, micro_batch=2, lr=0.02, ema_decay=0.9,
    freeze_bn_stats=True, mixup=0.2, min_crop_area=0.4, flip=True, jitter=0.2,
    data_options=DataOptions(frames=4, frame_rate=10, clips=3),
    execution=ExecutionOptions(device="cpu", threads=1, memory_format="contiguous", precision="float32",
                               fused_norms=False), options=RunOptions(checkpoint_steps=1))
"""

TESTS = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 training videos: the last batch has a single one, so that one of two ranks has none. 5 val videos."""
    root = tmp_path_factory.mktemp("moves") / "moves"
    for split, counts in (("train", (5, 4)), ("val", (3, 2))):
        for label, count in zip(("left", "right"), counts, strict=True):
            for number in range(count):
                frames = moving_square(20 + number, 24, 32, seed=number, step=3 if label == "right" else -3)
                write_video(root / split / label / f"{number}.mp4", frames, rate=20)
    return root


@pytest.fixture
def child(tmp_path: Path) -> Path:
    path = tmp_path / "child.py"
    path.write_text(CHILD)
    return path


@pytest.mark.slow
def test_two_ranks_have_the_results_of_one(data: Path, child: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        done = launch(count, str(child), TESTS, str(data), str(tmp_path / f"{count}"), "3")
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = metrics_table(tmp_path / "1"), metrics_table(tmp_path / "2")
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    stated = read_header(tmp_path / "2" / "model.safetensors").metrics["val"]
    assert ca.finish(tmp_path / "2", progress=False).results["val"].summary() == stated


@pytest.mark.slow
def test_a_training_that_is_killed_ten_times_ends_in_the_same_bits(data: Path, child: Path, tmp_path: Path) -> None:
    command, run, whole = [sys.executable, str(child), TESTS, str(data)], tmp_path / "run", tmp_path / "whole"
    subprocess.run([*command, str(whole), "20"], check=True, capture_output=True)
    check_kills([*command, str(run), "20"], run, whole, kills=10, pause_s=0.02)
