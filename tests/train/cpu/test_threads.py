"""Threads of a training beside other processes: when they are measured, and that resuming continues with them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from convatlas.core.network import Network
from convatlas.models.catalog import build_fresh
from convatlas.system.load import LoadMeter
from convatlas.train import fit
from convatlas.train import run as run_module
from convatlas.train.cpu import threads
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.cpu.threads import LoadWatch, choose_threads, fastest_threads, thread_counts
from convatlas.train.fit import prepare_run
from convatlas.train.recipe import Recipe
from convatlas.train.resume import open_run
from convatlas.train.run import Run
from convatlas.train.settings import ExecutionOptions, RunOptions, read_config
from convatlas.train.state import Epoch
from tiny_networks import tiny

CPU = torch.device("cpu")
HOW: dict[str, Any] = {"recipe": Recipe(epochs=2, batch=5, lr=0.01), "options": RunOptions(checkpoint_seconds=1e9)}


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch used two threads by default; real ones would be slow beside other processes."""
    threads = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))


@pytest.fixture(scope="module")
def network() -> Network:
    return build_fresh(tiny("mobilenet_v2"), classes=3)


# --- the measurement


def test_all_free_and_one_thread_are_measured() -> None:
    assert thread_counts(2, 2, 0.9) == [2, 1]
    assert thread_counts(1, 2, 0.0) == [1, 2]
    assert thread_counts(64, 64, 0.25) == [64, 48, 1]
    assert thread_counts(1, 1, 1.0) == [1]


@pytest.mark.usefixtures("two_threads")
def test_a_real_measurement_changes_nothing_but_the_number(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "TIMING", dataclasses.replace(threads.TIMING, max_turns=1, min_turns=1))
    before, state = {key: tensor.clone() for key, tensor in network.state_dict().items()}, torch.get_rng_state()
    plan = ExecutionPlan("contiguous")
    assert fastest_threads(network, plan, [2, 1], batch=4, classes=3, device=CPU) in (1, 2)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize(("one", "expected"), [(1.0, 1), (1.9, 2), (5.0, 2), (None, 2)])
def test_another_number_must_be_clearly_faster(
    one: float | None, expected: int, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "time_candidates", lambda *_, **__: {2: [2.0, 1.0, 9.0], 1: [one] if one else []})
    assert fastest_threads(network, ExecutionPlan(), [2, 1], batch=4, classes=3, device=CPU) == expected


@pytest.mark.usefixtures("two_threads")
def test_nothing_is_measured_on_a_quiet_machine_or_for_short_steps(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "fastest_threads", lambda _, __, counts, **___: counts[-1])
    options: dict[str, Any] = {"batch": 4, "classes": 3, "device": CPU}
    assert choose_threads(network, tiny("mobilenet_v2"), ExecutionPlan(), load=0.9, **options) == (0, 0.0)
    monkeypatch.setattr(threads, "MIN_MACS_TO_TUNE", 0)
    assert choose_threads(network, tiny("mobilenet_v2"), ExecutionPlan(), load=0.9, **options) == (1, 0.9)
    assert choose_threads(network, tiny("mobilenet_v2"), ExecutionPlan(), load=0.05, **options) == (0, 0.0)
    assert choose_threads(network, tiny("mobilenet_v2"), ExecutionPlan(compiled=True), load=0.9, **options) == (0, 0.0)
    torch.set_num_threads(1)
    assert choose_threads(network, tiny("mobilenet_v2"), ExecutionPlan(), load=0.9, **options) == (0, 0.0)


@pytest.mark.usefixtures("two_threads")
def test_a_choice_is_stored_for_similar_loads(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(threads, "MIN_MACS_TO_TUNE", 0)
    fastest = [1]
    monkeypatch.setattr(threads, "fastest_threads", lambda *_, **__: fastest[0])

    def choose(load: float, batch: int = 4) -> tuple[int, float]:
        spec = tiny("mobilenet_v2")
        return choose_threads(network, spec, ExecutionPlan(), load=load, batch=batch, classes=3, device=CPU)

    assert choose(0.9) == (1, 0.9)
    fastest[0] = 2  # by chance, in another measurement
    assert choose(0.7) == (1, 0.7)
    assert choose(0.9, batch=8) == (2, 0.9)
    assert choose(0.4) == (2, 0.4)
    (tmp_path / threads.CHOICES_FILE).write_text((tmp_path / threads.CHOICES_FILE).read_text().replace("2,", "99,"))
    assert choose(0.4) == (2, 0.4)


def test_measurements_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    now, load = [0.0], [0.9]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(LoadMeter, "share", lambda _: load[0])
    watch, measured, known = LoadWatch(), [], 0.0
    for second in range(1000):
        now[0] = float(second)
        load[0] = 0.9 if second // 40 % 2 == 0 else 0.1  # changes all the time
        if (changed := watch.changed_load(known)) is not None:
            measured.append(second)
            known = changed
    assert measured == [30, 120, 240, 520]


# --- a run


class Neighbor:
    """A `LoadWatch` that sees another process begin after three steps."""

    def __init__(self) -> None:
        self.steps = 0

    def changed_load(self, before: float) -> float | None:
        self.steps += 1
        return 0.92 if self.steps >= 3 and before < 0.5 else None


def fewest(_: Network, __: ExecutionPlan, counts: Sequence[int], **___: object) -> int:
    return min(counts)


def train(run: Run, *, stop: int | None = None) -> list[tuple[int, str]]:
    """Train to step `stop`; return threads and remark of each step."""
    seen = []
    for event in run.steps():
        if not isinstance(event, Epoch):
            seen.append((torch.get_num_threads(), event.remark))
            if event.number == stop:
                break
    return seen


@pytest.mark.usefixtures("two_threads", "no_figures")
def test_a_run_continues_with_the_threads_of_its_checkpoint(
    rows_of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "LoadWatch", Neighbor)
    monkeypatch.setattr(run_module, "fastest_threads", fewest)
    whole = prepare_run(rows_of_two, "lenet1", out=tmp_path / "whole", **HOW)
    remark = "other processes use 92 % of the CPU: continuing with 1 thread"
    assert train(whole) == [(2, ""), (2, ""), (1, remark), *[(1, "")] * 5]
    assert torch.get_num_threads() == 2
    train(prepare_run(rows_of_two, "lenet1", out=tmp_path / "part", **HOW), stop=3)
    part = open_run(tmp_path / "part")
    assert (part.state.step, part.state.threads, part.state.other_load, part.threads) == (3, 1, 0.92, 1)
    assert part.describe_execution().endswith(", 1 thread (other processes use 92 % of the CPU)")
    assert train(part) == [(1, "")] * 5
    tensors = [load_file(run.folder / "last.safetensors") for run in (whole, part)]
    assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
    assert read_config(whole.folder).execution.threads == 2


@pytest.mark.usefixtures("two_threads", "no_figures")
def test_given_threads_are_kept(rows_of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "LoadWatch", lambda: pytest.fail("measured"))
    run = prepare_run(rows_of_two, "lenet1", out=tmp_path / "run", execution=ExecutionOptions(threads=2), **HOW)
    assert train(run, stop=1) == [(2, "")] * 2
    execution = read_config(run.folder).execution
    assert (execution.threads, execution.adapt_threads) == (2, False)
    # threads that are given when a run is resumed replace measured ones
    monkeypatch.setattr(run_module, "LoadWatch", Neighbor)
    monkeypatch.setattr(run_module, "fastest_threads", fewest)
    train(prepare_run(rows_of_two, "lenet1", out=tmp_path / "other", **HOW), stop=3)
    resumed = open_run(tmp_path / "other", threads=2)
    assert (resumed.threads, resumed.state.threads) == (2, 1)
    assert train(resumed, stop=4) == [(2, ""), (2, "")]


@pytest.mark.usefixtures("two_threads", "no_figures")
def test_threads_are_measured_at_the_start_on_a_busy_machine(
    rows_of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "choose_threads", lambda *_, **__: (1, 0.8))
    run = prepare_run(rows_of_two, "lenet1", out=tmp_path / "run", **HOW)
    assert (run.threads, run.config.execution.threads, torch.get_num_threads()) == (1, 2, 2)
    assert open_run(tmp_path / "run").threads == 1  # before the first step
    assert train(run, stop=0) == [(1, "")]
