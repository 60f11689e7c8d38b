"""One, two and three ranks train and evaluate the same; after a rank was killed, the training is resumed."""

from __future__ import annotations

import re
import signal
import subprocess
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

import convatlas as ca
from convatlas.errors import RunError
from convatlas.system.progress import Progress
from convatlas.train import distributed, run_folder
from convatlas.train.distributed import Distributed
from convatlas.train.resume import open_run
from killed_runs import metrics_table
from scripts import TERMINATED, launch

CHILD = """
import os, signal, sys
from convatlas.train.fit import fit
from convatlas.train.recipe import RECIPES
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions
from convatlas.train.step import Step

folder, kill = sys.argv[1], int(sys.argv[2])

def on_event(event):
    if isinstance(event, Step) and event.number == kill and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

changes = {"epochs": 2, "batch": 120, "lr": 0.02, "ema_decay": 0.9, "mixup": 0.2, "grad_clip": 1.0, "flip": True,
           "micro_batch": 50}
# 1,439 training images, so the last batch has 119; 359 test images, a prime number
fit("digits", "lenet5_modern", recipe=RECIPES["default"].replaced(changes), seed=3, out=folder, on_event=on_event,
    data_options=DataOptions(val_share=0), execution=ExecutionOptions(threads=1, device="cpu"),
    options=RunOptions(checkpoint_steps=3))
"""

GRADIENTS = """
import copy, sys, torch
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Batch, Targets
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.distributed import init_distributed, sync_batch_norms
from convatlas.train.recipe import Recipe
from convatlas.train.step import StepRunner

distributed = init_distributed(torch.device("cpu"))

def compare(name, size, recipe):
    torch.manual_seed(0)
    spec = CATALOG[name].spec.scaled(width=0.25, depth=0.34, resolution=32)
    one = build_fresh(spec, classes=10, channels=3).double().train()
    x, y = torch.randn(size, 3, 32, 32).double(), torch.arange(size) % 10
    two = copy.deepcopy(one)
    sync_batch_norms(two, distributed)
    copy.deepcopy(two)  # as EMA does
    part = distributed.shard(torch.arange(size))
    task, plan = Classification(tuple("0123456789")), ExecutionPlan()
    _, alone = StepRunner(one, task, Recipe(), plan).backward(Batch(x, Targets(label=y), torch.arange(size), size))
    runner = StepRunner(two, task, recipe, plan, distributed=distributed)
    _, share = runner.backward(Batch(x[part], Targets(label=y[part]), part, size))
    distributed.all_reduce([share, *(p.grad for p in two.parameters())])
    for a, b in zip([alone, *(p.grad for p in one.parameters()), *one.buffers()],
                    [share, *(p.grad for p in two.parameters()), *two.buffers()]):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-9, msg=lambda text: f"{name}, {size} images: {text}")

compare("cifar_resnet20", 7, Recipe())
compare("densenet121", 8, Recipe())
compare("cifar_resnet20", 2, Recipe())  # one of the three ranks has no image
compare("lenet5_modern", 7, Recipe(micro_batch=2))
"""


def train(count: int, folder: Path, script: Path, kill: int = -1) -> subprocess.CompletedProcess[str]:
    script.write_text(CHILD)
    return launch(count, str(script), str(folder), str(kill))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    base = tmp_path_factory.mktemp("distributed")
    for count in (1, 2, 3):
        done = train(count, base / str(count), base / "child.py")
        assert done.returncode == 0, done.stderr[-2000:]
    return {count: base / str(count) for count in (1, 2, 3)}


@pytest.mark.parametrize("count", [2, 3])
def test_all_world_sizes_have_the_same_results(runs: dict[int, Path], count: int) -> None:
    for one, other in zip(metrics_table(runs[1]), metrics_table(runs[count]), strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    alone, parallel = (load_file(runs[n] / run_folder.MODEL) for n in (1, count))
    for name, tensor in alone.items():
        torch.testing.assert_close(parallel[name], tensor, rtol=1e-2, atol=1e-3)
    first, other = (ca.load(runs[n] / run_folder.MODEL).header.metrics["test"] for n in (1, count))
    assert other["n"] == first["n"] == 359
    assert other == pytest.approx(first, rel=2e-2)


def test_gradients_and_batch_norms_equal_those_of_the_whole_batch(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(GRADIENTS)
    done = launch(3, str(tmp_path / "child.py"))
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_metrics_of_the_model_file_are_those_of_its_weights(runs: dict[int, Path]) -> None:
    model = ca.load(runs[3] / run_folder.MODEL)
    _, result, *_ = model.evaluate("digits", split="test")
    assert result.summary() == pytest.approx(model.header.metrics["test"], abs=1e-6)


def test_after_a_rank_is_killed_the_training_can_be_resumed(runs: dict[int, Path], tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    done = train(2, folder, tmp_path / "child.py", kill=7)
    assert done.returncode != 0
    assert str(-signal.SIGKILL) in done.stderr
    assert open_run(folder).state.step >= 3
    again = launch(2, "-m", "convatlas", "resume", str(folder))
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count("model file:") == 1
    left, right = (load_file(each / run_folder.MODEL) for each in (folder, runs[2]))
    assert all(torch.equal(left[name], right[name]) for name in right)


@pytest.mark.slow
def test_after_sigterm_all_ranks_stop_at_one_step_and_the_training_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(TERMINATED)
    options = ("--epochs", "2", "--batch", "20", "--threads", "1", "--device", "cpu", "--checkpoint-every", "1h")
    command = ("fit", "digits", "--model", "lenet5_modern", *options)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = launch(2, "-m", "convatlas", *command, "--out", str(whole))
    assert done.returncode == 0, done.stderr[-2000:]
    done = launch(2, str(tmp_path / "child.py"), *command, "--out", str(stopped))
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "interrupted; " in line]
    step = open_run(stopped).state.step
    assert step >= 5
    assert f"continues at step {step} " in line
    again = launch(2, "-m", "convatlas", "resume", str(stopped))
    assert again.returncode == 0, again.stderr[-2000:]
    left, right = (load_file(each / run_folder.MODEL) for each in (stopped, whole))
    assert all(torch.equal(left[name], right[name]) for name in right)


HUNG = """
import os, sys, time
from datetime import timedelta
from convatlas.train import distributed
from convatlas.train.fit import fit
from convatlas.train.recipe import Recipe
from convatlas.train.settings import ExecutionOptions, RunOptions
from convatlas.train.step import Step

distributed.TIMEOUT = timedelta(seconds=5)
where = sys.argv[2]

def on_event(event):
    late = isinstance(event, Step) and event.number == 4 if where == "step" else not isinstance(event, Step)
    if late and os.environ["RANK"] == "1":
        time.sleep(60)

fit("digits", sys.argv[3], recipe=Recipe(epochs=2, batch=300, lr=0.01), out=sys.argv[1], on_event=on_event,
    execution=ExecutionOptions(threads=1, device="cpu"), options=RunOptions(checkpoint_steps=1))
"""


@pytest.mark.slow  # the time of a process group can only be tested in real time
@pytest.mark.parametrize(("where", "network"), [("step", "lenet5_modern"), ("epoch", "cifar_resnet20")])
def test_a_rank_that_hangs_is_named(tmp_path: Path, where: str, network: str) -> None:
    """After a step, and in the synchronized batch norms of the next epoch."""
    (tmp_path / "child.py").write_text(HUNG)
    done = launch(3, str(tmp_path / "child.py"), str(tmp_path / "run"), where, network)
    assert done.returncode != 0
    assert re.search(r"rank [02] of 3: rank 1 timed out \(", done.stderr), done.stderr[-3000:]


class Counts(dict[str, int]):
    """Stands for the store of a process group."""

    def add(self, key: str, amount: int) -> int:
        self[key] = self.get(key, 0) + amount
        return self[key]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only sleeping advances."""
    now = [0.0]
    monkeypatch.setattr(distributed.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(distributed.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=2))
    return now


def test_ranks_that_entered_fewer_collectives_are_named() -> None:
    store: Any = Counts({"arrived/0": 5, "arrived/1": 4, "arrived/2": 5, "arrived/3": 3})
    message = str(Distributed(0, 4, store).straggler_error(RuntimeError("Timed out\nafter 5 s")))
    assert message.startswith("rank 0 of 4: ranks 1 and 3 timed out (Timed out); `convatlas resume` continues")
    store |= {"arrived/3": 5}
    assert "rank 2 of 4: rank 1 timed out" in str(Distributed(2, 4, store).straggler_error(RuntimeError()))


@pytest.mark.parametrize("beats", [3, 100])
def test_rank_0_may_work_longer_than_the_timeout_while_it_reports_progress(clock: list[float], beats: int) -> None:
    store: Any = Counts()

    def add(key: str, amount: int) -> int:
        if key == "heartbeat":
            store["heartbeat"] = min(int(clock[0] / 1.2), beats)
        if key == "done/0":
            store["done/0"] = int(clock[0] > 20)
        return Counts.add(store, key, amount)

    rank = Distributed(1, 2, cast(Any, SimpleNamespace(add=add)))
    if beats == 100:
        assert rank.rank0_first(lambda _: "prepared", None) == "prepared"
        assert clock[0] > 20
    else:  # rank 0 hangs after 3.6 s
        with pytest.raises(RunError, match="rank 1 of 2: rank 0 timed out while preparing; start again"):
            rank.rank0_first(lambda _: "prepared", None)
        assert 5.6 < clock[0] < 6


def test_rank_0_reports_at_most_one_heartbeat_per_interval(clock: list[float]) -> None:
    store: Any = Counts({"done/1": 1})

    def work(progress: Progress) -> None:
        for number in range(20):
            clock[0] += 0.25
            progress("reading", number, 20)

    Distributed(0, 2, store).rank0_first(work, None)
    assert store["heartbeat"] == 4


def test_an_error_is_reported(tmp_path: Path) -> None:
    done = launch(2, "-m", "convatlas", "fit", "nothing", "--model", "lenet5_modern", "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "no such folder" in done.stderr


def test_shards_are_a_partition() -> None:
    items = torch.arange(11)
    for count in (1, 2, 3, 13):
        parts = [Distributed(rank, count).shard(items) for rank in range(count)]
        assert sorted(torch.cat(parts).tolist()) == items.tolist()


def test_a_single_rank_needs_no_process_group() -> None:
    distributed, x = Distributed(), torch.ones(3)
    distributed.all_reduce([x])
    distributed.barrier()
    assert distributed.broadcast(5) == 5
    assert torch.equal(distributed.all_gather(x, 3), x)
    assert distributed.is_main
