"""One, two and three processes train and measure the same; a killed one ends the training, which can go on."""

from __future__ import annotations

import csv
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import convatlas as ca
from convatlas.errors import RunError
from convatlas.system.devices import resolve_device
from convatlas.train import run_folder
from convatlas.train.distributed import Distributed
from convatlas.train.fit import reopen

CHILD = """
import os, signal, sys
from convatlas.catalog import CATALOG
from convatlas.train.recipe import RECIPES
from convatlas.train.settings import Settings
from convatlas.train.loop import Step
from convatlas.train.run import fit

folder, kill = sys.argv[1], int(sys.argv[2])

def watch(event):
    if isinstance(event, Step) and event.number == kill and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

changes = {"epochs": 2, "batch": 120, "lr": 0.02, "ema_decay": 0.9, "mixup": 0.2, "grad_clip": 1.0, "flip": True, "micro_batch": 50}
# 1,439 images are left to train, so the last batch has 119; 359 are for test, a prime number
settings = Settings(threads=1, device="cpu", val_share=0, checkpoint_steps=3)
recipe = RECIPES["default"].replaced(changes)
fit("digits", "lenet5_modern", recipe=recipe, seed=3, out=folder, settings=settings, watch=watch)
"""

GRADIENTS = """
import copy, sys, torch
from convatlas.catalog import CATALOG, build_fresh
from convatlas.data.batches import Batch
from convatlas.train.compute import Compute
from convatlas.train.loop import Learner
from convatlas.train.distributed import init_distributed, sync_batch_norms
from convatlas.train.recipe import Recipe

distributed = init_distributed(torch.device("cpu"))
torch.manual_seed(0)
spec = CATALOG[sys.argv[1]].spec.scaled(width=0.25, depth=0.34, resolution=32)
one = build_fresh(spec, classes=10, channels=3).double().train()
size = int(sys.argv[2])
x, y = torch.randn(size, 3, 32, 32).double(), torch.arange(size) % 10
two = copy.deepcopy(one)
sync_batch_norms(two, distributed)
copy.deepcopy(two)  # as an average of the weights does
mine = distributed.shard(torch.arange(size))
_, alone = Learner(one, Recipe(), Compute()).gradients(Batch(x, y, torch.arange(size)))
pieces = Recipe(micro_batch=int(sys.argv[3])) if len(sys.argv) > 3 else Recipe()
_, share = Learner(two, pieces, Compute(), distributed=distributed).gradients(Batch(x[mine], y[mine], mine, whole=size))
distributed.all_reduce([share, *(p.grad for p in two.parameters())])
for a, b in zip([alone, *(p.grad for p in one.parameters()), *one.buffers()],
                [share, *(p.grad for p in two.parameters()), *two.buffers()]):
    torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-9)
"""


def launch(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in so many processes, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-addr", "127.0.0.1",
        "--master-port", str(port), *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def trained(count: int, folder: Path, script: Path, kill: int = -1) -> subprocess.CompletedProcess[str]:
    script.write_text(CHILD)
    return launch(count, str(script), str(folder), str(kill))


def table(folder: Path) -> list[dict[str, float]]:
    with (folder / run_folder.METRICS).open() as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    base = tmp_path_factory.mktemp("distributed")
    for count in (1, 2, 3):
        done = trained(count, base / str(count), base / "child.py")
        assert done.returncode == 0, done.stderr[-2000:]
    return {count: base / str(count) for count in (1, 2, 3)}


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_say_what_one_says(runs: dict[int, Path], count: int) -> None:
    for one, several in zip(table(runs[1]), table(runs[count]), strict=True):
        assert several == pytest.approx(one, rel=1e-3)
    alone, together = (load_file(runs[n] / run_folder.MODEL) for n in (1, count))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-2, atol=1e-3)
    first, other = (ca.load(runs[n] / run_folder.MODEL).header.metrics["test"] for n in (1, count))
    assert other["images"] == first["images"] == 359
    assert other == pytest.approx(first, rel=2e-2)


@pytest.mark.parametrize(
    "arguments", [("cifar_resnet20", "7"), ("densenet121", "8"), ("cifar_resnet20", "2"), ("lenet5_modern", "7", "2")]
)
def test_gradients_and_norms_are_those_of_the_whole_batch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """With 2 images for 3 processes, one has none; the last is taken in pieces of at most 2."""
    (tmp_path / "child.py").write_text(GRADIENTS)
    done = launch(3, str(tmp_path / "child.py"), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_sealed_metrics_are_those_of_the_sealed_weights(runs: dict[int, Path]) -> None:
    model = ca.load(runs[3] / run_folder.MODEL)
    _, result, _ = model.evaluate("digits", split="test")
    assert result.summary() == pytest.approx(model.header.metrics["test"], abs=1e-6)


def test_a_process_that_is_killed_ends_the_training_and_it_goes_on(runs: dict[int, Path], tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    done = trained(2, folder, tmp_path / "child.py", kill=7)
    assert done.returncode != 0
    assert str(-signal.SIGKILL) in done.stderr
    assert reopen(folder).state.step >= 3
    again = launch(2, "-m", "convatlas", "resume", str(folder))
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count("model file:") == 1
    left, right = (load_file(each / run_folder.MODEL) for each in (folder, runs[2]))
    assert all(torch.equal(left[name], right[name]) for name in right)


HUNG = """
import os, sys, time
from datetime import timedelta
from convatlas.train.recipe import Recipe
from convatlas.train.settings import Settings
from convatlas.train import distributed
from convatlas.train.loop import Step
from convatlas.train.run import fit

distributed.TIMEOUT = timedelta(seconds=5)
where = sys.argv[2]

def watch(event):
    late = isinstance(event, Step) and event.number == 4 if where == "step" else not isinstance(event, Step)
    if late and os.environ["RANK"] == "1":
        time.sleep(60)

fit("digits", sys.argv[3], recipe=Recipe(epochs=2, batch=300, lr=0.01), out=sys.argv[1], watch=watch,
    settings=Settings(threads=1, device="cpu", checkpoint_steps=1))
"""


@pytest.mark.parametrize(
    ("where", "network"),
    [("step", "lenet5_modern"), pytest.param("epoch", "cifar_resnet20", marks=pytest.mark.slow)],
)
def test_a_process_that_hangs_is_named(tmp_path: Path, where: str, network: str) -> None:
    """After a step, and where the norms of the next epoch would meet."""
    (tmp_path / "child.py").write_text(HUNG)
    done = launch(3, str(tmp_path / "child.py"), str(tmp_path / "run"), where, network)
    assert done.returncode != 0
    assert re.search(r"process [02] of 3: process 1 did not come \(", done.stderr), done.stderr[-3000:]


SLOW = """
import sys, time
from datetime import timedelta
import torch
from convatlas.train import distributed

distributed.TIMEOUT = timedelta(seconds=2)
here = distributed.init_distributed(torch.device("cpu"))
stuck, order = sys.argv[1] == "stuck", []

def work(progress):
    for i in range(4):
        time.sleep(1.2 if here.first and not (stuck and i) else 5.0 if here.first and i == 1 else 0)
        progress("reading", i, 4)
    order.append(time.time())
    return here.rank

for _ in range(1 if stuck else 2):
    assert here.in_turn(work, None) == here.rank
when = torch.zeros(2, dtype=torch.float64)
when[here.rank] = order[0] if order else 0
here.sum([when])
assert when[0] < when[1]
"""


def test_the_first_one_may_work_for_long_while_it_tells_of_progress(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(SLOW)
    done = launch(2, str(tmp_path / "child.py"), "slow")
    assert done.returncode == 0, done.stderr[-3000:]
    done = launch(2, str(tmp_path / "child.py"), "stuck")
    assert done.returncode != 0
    assert "process 1 of 2: process 0 did not get ready; start again" in done.stderr, done.stderr[-3000:]


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: options.append(device) or Tensor())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    resolve_device("cuda")
    assert options == [torch.device("cuda:1")]
    with pytest.raises(RunError, match="each has a GPU of its own; write cuda"):
        resolve_device("cuda:0")
    monkeypatch.delenv("WORLD_SIZE")
    resolve_device("cuda:1")
    assert options[1] == torch.device("cuda:1")


def test_an_error_is_told_once(tmp_path: Path) -> None:
    done = launch(2, "-m", "convatlas", "fit", "nothing", "--model", "lenet5_modern", "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "no such folder" in done.stderr


def test_shares_are_disjoint_and_whole() -> None:
    items = torch.arange(11)
    for count in (1, 2, 3, 13):
        parts = [Distributed(rank, count).share(items) for rank in range(count)]
        assert sorted(torch.cat(parts).tolist()) == items.tolist()


def test_alone_nothing_is_sent() -> None:
    distributed, x = Distributed(), torch.ones(3)
    distributed.all_reduce([x])
    distributed.barrier()
    assert distributed.broadcast(5) == 5
    assert torch.equal(distributed.all_gather(x, 3), x)
    assert distributed.is_main
