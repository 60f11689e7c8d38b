"""Searches, and workers of them, that are killed at random times: nothing is lost, and nothing counts twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from convatlas.models.families.resnet import ResNet
from convatlas.search.contestant import Contestant
from convatlas.search.evaluation import TRIALS
from convatlas.search.latency import LatencyModel
from convatlas.search.launch import BEST, _start_worker, open_store, start
from convatlas.search.limits import Limits
from convatlas.search.settings import SearchSettings
from convatlas.search.setup import SearchOptions, set_up
from convatlas.search.standings import standings
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


def test_a_worker_stops_with_the_process_that_started_it(idx_folder: Path, tmp_path: Path) -> None:
    options = SearchOptions(methods=("baselines",), latency_model=PHONE, fields={"batch": 16})
    settings, others = set_up(str(idx_folder), Limits(), 60, options, progress=lambda *_: None)
    folder = tmp_path / "search"
    folder.mkdir()
    start(folder, settings.replaced({"training_s": 1e6, "time_s": 1e8}), others[:1])
    process = _start_worker(folder)
    while not any(each.state == "running" for each in open_store(folder, settings).evaluations()):
        assert process.poll() is None
        time.sleep(0.5)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) != 0
    store = open_store(folder, settings)
    store.take_over()  # if it had not begun to train
    assert [each.state for each in store.evaluations()] == ["failed", "waiting"]


SPACE = """
type: ResNet
block: basic
depths: [1, {choose: [1, 2]}]
widths: [8, {choose: [8, 16, 24]}]
stem: 8
small_stem: true
resolution: 32
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_search_that_is_killed_again_and_again(idx_folder: Path, tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    space, phone, folder = tmp_path / "space.yaml", tmp_path / "phone.json", tmp_path / "search"
    space.write_text(SPACE)
    phone.write_text(json.dumps(PHONE.to_plain()))
    command = [
        sys.executable, "-m", "convatlas", "search", str(idx_folder), "--time", "120s", "--method", "random", "--space",
        str(space), "--latency", str(phone), "--workers", "2", "--set", "batch=16", "--out", str(folder),
        "--seed", str(seed),
    ]  # fmt: skip
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(15, 30))
        process.kill()
        process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=240, check=False).returncode == 0
    settings = SearchSettings.read(folder)
    evaluations = open_store(folder, settings).evaluations()
    complete = [each.key for each in evaluations if each.state == "complete"]
    assert len(complete) == len(set(complete))
    finals = standings(evaluations, time_s=settings.time_s)
    assert [each.contestant.to_end for each in finals] == [True, *[False] * (len(finals) - 1)]
    run = open_run(folder / BEST)
    assert run.state.finished
    assert 0.9 * run.config.recipe.epochs <= len(run.history) <= run.config.recipe.epochs
    assert run.history[-1].lr < 0.1 * run.history[1].lr
    run.finish()  # evaluates it
    assert run.results["val"].score == finals[0].accuracy
