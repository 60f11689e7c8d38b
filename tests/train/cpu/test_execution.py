"""Execution plans: all compute the same step; and process-wide settings are restored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.network import Network
from convatlas.errors import RunError
from convatlas.models.catalog import CATALOG
from convatlas.train.cpu import memory
from convatlas.train.cpu.execution import ExecutionPlan, process_settings
from convatlas.train.cpu.tune import candidate_plans
from tiny_networks import build_tiny

CPU = torch.device("cpu")


def step(network: Network, x: Tensor, plan: ExecutionPlan) -> tuple[float, list[Tensor]]:
    """Return the loss of a training step and the gradients."""
    network.train().zero_grad()
    forward = plan.forward(plan.place(network))
    torch.manual_seed(0)
    labels = torch.arange(len(x)) % 7
    with plan.autocast(CPU):
        if network.auxiliary:
            _, loss = network.loss(x, labels, F.cross_entropy)
        else:
            loss = F.cross_entropy(forward(x).to(torch.promote_types(x.dtype, torch.float32)), labels)
    loss.backward()
    return loss.item(), [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", ["lenet5_modern", "resnet18", "mobilenet_v2", "densenet121", "googlenet"])
def test_all_plans_compute_the_same_step(name: str) -> None:
    network, x = build_tiny(name, channels=CATALOG[name].preprocessing.channels)
    plans = candidate_plans(network, CPU, precision="float32")
    assert ("mkldnn" in {plan.memory_format for plan in plans}) == (name == "lenet5_modern")
    # mkldnn computes in float32; batch norms over a few pixels amplify rounding errors
    exact = torch.float32 if name == "lenet5_modern" else torch.float64
    x = torch.cat([x, x.flip(0)]).to(exact)
    first, *others = (step(copy.deepcopy(network).to(exact), x, plan) for plan in plans)
    assert others
    for other in others:
        assert other[0] == pytest.approx(first[0], rel=1e-5)
        torch.testing.assert_close(other[1], first[1], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_to_float32() -> None:
    network, x = build_tiny("resnet18")
    exact, rounded = (
        step(copy.deepcopy(network), x, plan)[0] for plan in (ExecutionPlan(), ExecutionPlan(precision="bfloat16"))
    )
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("auto", "auto"), "ExecutionPlan: memory_format must be one of contiguous, channels_last, mkldnn, got 'auto'"),
        (("contiguous", "float16"), "ExecutionPlan: precision must be one of float32, bfloat16, got 'float16'"),
        (("contiguous", "float32", "yes"), "ExecutionPlan: compiled must be true or false, got 'yes'"),
    ],
)
def test_a_plan_has_definite_values(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RunError) as error:
        ExecutionPlan(*values)
    assert str(error.value) == message


def test_a_plan_survives_plain_data() -> None:
    plan = ExecutionPlan("mkldnn", "float32", compiled=False, fused_norms=False)
    assert ExecutionPlan.from_plain(plan.to_plain()) == plan
    assert str(ExecutionPlan("contiguous", "bfloat16", compiled=True)) == "contiguous, bfloat16, compiled"


def test_process_settings_are_restored() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with process_settings(threads=threads + 1, retain_malloc=True):
        assert torch.get_num_threads() == threads + 1
        torch.manual_seed(5)
        torch.rand(3)
        assert memory._retained == int(memory.has_glibc())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert memory._retained == 0


def test_process_settings_are_restored_after_an_error() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()

    def interrupted() -> None:
        with process_settings(threads=threads + 1, retain_malloc=True):
            torch.rand(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (torch.get_num_threads(), memory._retained) == (threads, 0)
    assert torch.equal(torch.get_rng_state(), state)
