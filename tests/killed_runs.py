"""Runs in processes of their own: their metrics, and runs that are killed again and again."""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file

from convatlas.errors import RunError
from convatlas.train.resume import read_progress
from convatlas.train.run_folder import DIAGNOSTICS, METRICS


def metrics_table(folder: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv without the elapsed time."""
    with (folder / METRICS).open() as file:
        return [{k: float(v) for k, v in row.items() if k != "elapsed_s"} for row in csv.DictReader(file)]


def check_kills(start: Sequence[str], run: Path, whole: Path, *, kills: int, pause_s: float) -> None:
    """Kill a training `kills` times and resume it each time; it must end in the bits of the finished run `whole`.

    start: the command that trains in the run directory `run`, with a checkpoint after each step. A kill comes one to
    four steps after the last one, up to `pause_s` seconds later, anywhere in a step.
    """
    resume = [sys.executable, "-m", "convatlas", "resume", str(run)]
    choose = random.Random(0)
    for kill in range(kills):
        process = subprocess.Popen(resume if kill else start, stdout=subprocess.DEVNULL)
        _wait_for(run, read_progress(run).step + choose.randint(1, 4), process)
        time.sleep(choose.uniform(0, pause_s))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run(resume, check=True, capture_output=True)
    assert metrics_table(run) == metrics_table(whole)
    assert (run / DIAGNOSTICS).read_bytes() == (whole / DIAGNOSTICS).read_bytes()
    for name in ("model.safetensors", "last.safetensors"):
        ours, theirs = load_file(run / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def _wait_for(folder: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the checkpoint of a run is of this step or a later one, or the process ends."""
    while process.poll() is None:
        with suppress(RunError):  # a checkpoint that is replaced at this moment
            if read_progress(folder).step >= step:
                return
        time.sleep(0.01)
