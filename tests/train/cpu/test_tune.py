"""Autotuning of execution plans: which plans are possible, which one is chosen, and what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import RunError
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.system import autotune
from convatlas.system.load import LoadMeter
from convatlas.train.cpu import tune
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.cpu.tune import PlanChoice, candidate_plans
from tiny_networks import tiny

CPU = torch.device("cpu")


@pytest.fixture
def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "supports_bfloat16", lambda _: False)


def choose(spec: Spec, **options: Any) -> PlanChoice:
    network = build_fresh(spec, classes=3, channels=3)
    return tune.choose_plan(network, spec, classes=3, device=CPU, **{"batch": 4, **options})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"memory_format": "mkldnn"}, "memory_format: mkldnn is not possible with this network"),
        ("resnet18", {"memory_format": "diagonal"}, "memory_format: must be auto, contiguous, channels_last, mkldnn"),
        ("resnet18", {"precision": "float8"}, "precision: must be auto, float32, bfloat16, got float8"),
        ("resnet18", {"precision": "bfloat16"}, "precision: bfloat16 is emulated on this cpu"),
    ],
)
@pytest.mark.usefixtures("without_bfloat16")
def test_impossible_values_are_refused(name: str, options: dict[str, str], message: str) -> None:
    network = build_fresh(tiny(name), classes=3, channels=3, device="meta")
    with pytest.raises(RunError, match=message):
        candidate_plans(network, CPU, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_bfloat16")
def test_plans_are_timed_once_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "MIN_MACS_TO_TUNE", 0)
    load = [0.0]
    monkeypatch.setattr(LoadMeter, "share", lambda _: load[0])
    monkeypatch.setattr(autotune, "measure_load", lambda: load[0])
    calls = []

    def time_plans(network: Network, plans: list[ExecutionPlan], *_: object) -> dict[ExecutionPlan, float]:
        calls.append(plans)
        return {plan: 0.5 if plan.memory_format == "contiguous" else 1.0 for plan in plans}

    monkeypatch.setattr(tune, "_time_plans", time_plans)
    first, second = (choose(tiny("resnet18")) for _ in range(2))
    assert first.plan == second.plan == ExecutionPlan("contiguous")
    assert (first.reason, len(first.seconds)) == ("the fastest plan", 2)
    assert (second.reason, second.seconds) == ("the fastest plan in an earlier timing on this machine", {})
    assert len(calls) == 1
    assert choose(tiny("resnet34")).plan.memory_format == "contiguous"
    assert len(calls) == 2
    (tmp_path / tune.CACHE_FILE).write_text("not JSON")
    assert choose(tiny("resnet18")).plan == first.plan
    assert len(calls) == 3
    load[0] = 0.9  # as if other processes used the cores
    for _ in range(2):
        choose(tiny("resnet50"))
    assert len(calls) == 4
    load[0] = 0.0
    for _ in range(2):
        choose(tiny("resnet50"))
    assert len(calls) == 5


@pytest.mark.usefixtures("without_bfloat16")
@pytest.mark.parametrize("seconds", [0.97, float("inf")])
def test_the_default_stays_unless_another_plan_is_clearly_faster(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "MIN_MACS_TO_TUNE", 0)
    default = 1.0 if seconds < 1 else float("inf")
    monkeypatch.setattr(tune, "_time_plans", lambda _, plans, *__: dict(zip(plans, (default, seconds), strict=True)))
    choice = choose(tiny("resnet18"))
    assert choice.plan == ExecutionPlan()
    assert choice.reason == "the default; no other plan saves 5% of its time"


def test_short_steps_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_time_plans", lambda *_: pytest.fail("timed"))
    spec = CATALOG["lenet5_modern"].spec
    network = build_fresh(spec, classes=10, channels=1)
    choice = tune.choose_plan(network, spec, classes=10, batch=64, device=CPU)
    assert (choice.plan.memory_format, choice.seconds) == ("mkldnn", {})
    assert choice.reason == "the default; steps are too short to time"
    assert choose(spec, memory_format="contiguous", precision="float32").reason == "the only possible plan"


def test_a_real_timing_leaves_the_network_and_the_random_state_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "MIN_MACS_TO_TUNE", 0)
    spec = tiny("googlenet")
    network = build_fresh(spec, classes=3, channels=3)
    before, state = {key: tensor.clone() for key, tensor in network.state_dict().items()}, torch.get_rng_state()
    choice = tune.choose_plan(network, spec, classes=3, batch=2, device=CPU)
    assert choice.plan in choice.seconds
    assert all(seconds > 0 for seconds in choice.seconds.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_a_plan_that_runs_out_of_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ExecutionPlan.forward

    def limited(plan: ExecutionPlan, network: Network) -> Any:
        if plan.memory_format == "channels_last":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
        return forward(plan, network)

    monkeypatch.setattr(ExecutionPlan, "forward", limited)
    plans = [ExecutionPlan(), ExecutionPlan("contiguous")]
    seconds = tune._time_plans(build_fresh(tiny("resnet18"), classes=3), plans, 2, 3, CPU)
    assert seconds[plans[0]] == float("inf")
    assert 0 < seconds[plans[1]] < float("inf")
    assert autotune.min_times({plans[0]: []}) == {plans[0]: float("inf")}
