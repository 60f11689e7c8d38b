"""Rewritten gradients of depthwise convolutions: equal to torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from convatlas.models.catalog import build_fresh
from convatlas.system.devices import supports_bfloat16
from convatlas.train.cpu import depthwise_bf16
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.optim import EMA
from convatlas.train.swap_forward import restore_forwards
from tiny_networks import count_swapped

CPU = torch.device("cpu")


@given(
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    sides=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    seed=st.integers(0, 1000),
)
@example(kernel=(1, 7), stride=(1, 3), padding=(0, 4), sides=(1, 1), seed=0)  # narrower than what a strip leaves out
def test_gradients_equal_those_of_torch(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], sides: tuple[int, int], seed: int
) -> None:
    assume(all(size + 2 * p >= k for size, p, k in zip(sides, padding, kernel, strict=True)))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, *sides, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, *kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(x, weight, None, stride, padding, 1, 3)
    gradient = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(plain, (x, weight), gradient)
    rewritten = depthwise_bf16._Depthwise.apply(x, weight, stride, padding)
    assert torch.equal(rewritten, plain)
    for actual, reference in zip(torch.autograd.grad(rewritten, (x, weight), gradient), expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-10, atol=1e-10)


BFLOAT16 = ExecutionPlan("channels_last", "bfloat16", fused_norms=False)


@pytest.mark.parametrize(
    ("name", "count"),
    [("mobilenet_v2", 4), ("efficientnet_b0", 11), ("resnet18", 0), ("convnext_tiny", 18), ("resnext50_32x4d", 0)],
)
def test_only_slow_convolutions_are_swapped(name: str, count: int) -> None:
    network = build_fresh(name, classes=2)
    BFLOAT16.place(network)
    assert count_swapped(network) == count
    others = (
        ExecutionPlan("channels_last", fused_norms=False), ExecutionPlan("contiguous", "bfloat16"),
        ExecutionPlan(precision="bfloat16", compiled=True),
    )  # fmt: skip
    for plan in others:
        ExecutionPlan("channels_last", "bfloat16").place(network)
        assert count_swapped(plan.place(network)) == 0


@pytest.mark.skipif(not supports_bfloat16(CPU), reason="this CPU does not support bfloat16")
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "convnext_tiny"])
def test_gradients_of_a_network_are_close(name: str) -> None:
    torch.manual_seed(0)
    network, plan = build_fresh(name, classes=10, resolution=64).train(), BFLOAT16
    x, labels = torch.randn(8, 3, 64, 64), torch.arange(8)
    grads = []
    for swapped in (True, False):
        plan.place(network)
        if not swapped:
            restore_forwards(network)
        network.zero_grad()
        torch.manual_seed(1)
        with plan.autocast(CPU):
            loss = F.cross_entropy(network(x).float(), labels)
        loss.backward()
        grads.append([parameter.grad for parameter in network.parameters()])
    assert all(a is not None and a.dtype == torch.float32 for a in grads[0])
    first, second = (torch.cat([grad.flatten() for grad in each if grad is not None]) for each in grads)
    assert F.cosine_similarity(first, second, dim=0) > 0.995


def test_a_deep_copy_uses_its_own_weights_and_inference_is_unchanged() -> None:
    torch.manual_seed(0)
    network = (
        ExecutionPlan("channels_last", "bfloat16").place(build_fresh("mobilenet_v2", classes=3, resolution=32)).eval()
    )
    x = torch.randn(2, 3, 32, 32)
    plain = build_fresh("mobilenet_v2", classes=3, resolution=32).eval()
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(x), plain(x))
    average = EMA(network, 0.9).network
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
        with ExecutionPlan("channels_last", "bfloat16").autocast(CPU), torch.enable_grad():
            assert average(x).eq(0).all()
    assert copy.deepcopy(network)(x).ne(0).any()
