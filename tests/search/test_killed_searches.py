"""Searches whose workers are killed at random times while they train: nothing is lost, and nothing counts twice."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from convatlas.models.families.resnet import ResNet
from convatlas.search.contestant import Contestant
from convatlas.search.evaluation import TRIALS
from convatlas.search.latency import LatencyModel
from convatlas.search.launch import open_store, start
from convatlas.search.limits import Limits
from convatlas.search.setup import SearchOptions, set_up
from convatlas.train.resume import open_run

PHONE = LatencyModel("torch", 1, "a phone", (0.0,) * 18 + (0.001,), 0.05, 0.97, 60)


def worker(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "convatlas", "search", "worker", str(folder)], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_search_whose_workers_are_killed(idx_folder: Path, tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    options = SearchOptions(methods=("baselines",), latency_model=PHONE, fields={"batch": 16}, seed=seed, workers=2)
    settings, _ = set_up(str(idx_folder), Limits(), 60, options, progress=lambda *_: None)
    settings = settings.replaced({"training_s": 1.0, "time_s": 3600.0})
    names = [f"network{i}" for i in range(4)]
    specs = [ResNet("basic", (1,), (8 + 8 * i,), stem=8, small_stem=True, resolution=32) for i in range(4)]
    others = [Contestant(name, "baseline", spec, seed=seed) for name, spec in zip(names, specs, strict=True)]
    folder = tmp_path / "search"
    folder.mkdir()
    store = start(folder, settings, others)
    for _ in range(3):
        workers = [worker(folder) for _ in range(2)]
        time.sleep(random.uniform(4, 12))  # about half of it are imports
        for process in workers:
            process.kill()
            process.wait()
    store.end()
    workers = [worker(folder) for _ in range(2)]
    for process in workers:
        assert process.wait(240) == 0
    evaluations = open_store(folder, settings).evaluations()
    complete = [each.key for each in evaluations if each.state == "complete"]
    promoted = {name for name, fidelity in complete if fidelity == 1.0}
    assert sorted(complete) == sorted([*((name, 0.25) for name in names), *((name, 1.0) for name in promoted)])
    assert len(promoted) == 2
    assert not [each.error for each in evaluations if each.state == "failed" and not each.is_continued]
    for name in names:  # every step counts once
        run = open_run(folder / TRIALS / name)
        seconds = settings.training_s * (1.0 if name in promoted else 0.25)
        assert run.state.seconds >= seconds
