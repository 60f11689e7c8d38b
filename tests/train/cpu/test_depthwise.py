"""Gradients of depthwise convolutions, taken in another way: the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from convatlas.models.catalog import build_fresh
from convatlas.train.cpu import depthwise_bf16
from convatlas.train.cpu.execution import ExecutionPlan, has_bfloat16, release
from convatlas.train.loop import EMA
from convatlas.train.recipe import Recipe

CPU = torch.device("cpu")


@given(
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    sides=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    seed=st.integers(0, 1000),
)
def test_the_gradients_are_those_of_torch(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], sides: tuple[int, int], seed: int
) -> None:
    assume(all(size + 2 * p >= k for size, p, k in zip(sides, padding, kernel, strict=True)))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, *sides, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, *kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(x, weight, None, stride, padding, 1, 3)
    gradient = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(plain, (x, weight), gradient)
    own = depthwise_bf16._Depthwise.apply(x, weight, stride, padding)
    assert torch.equal(own, plain)
    for mine, theirs in zip(torch.autograd.grad(own, (x, weight), gradient), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


BFLOAT16 = ExecutionPlan("channels_last", "bfloat16", kernels=False)


def installed(network: nn.Module) -> int:
    return sum("forward" in layer.__dict__ for layer in network.modules())


@pytest.mark.parametrize(
    ("name", "count"),
    [("mobilenet_v2", 4), ("efficientnet_b0", 11), ("resnet18", 0), ("convnext_tiny", 18), ("resnext50_32x4d", 0)],
)
def test_only_where_torch_is_slow(name: str, count: int) -> None:
    network = build_fresh(name, classes=2)
    BFLOAT16.place(network)
    assert installed(network) == count
    others = (
        ExecutionPlan("channels_last", kernels=False), ExecutionPlan("contiguous", "bfloat16"),
        ExecutionPlan(precision="bfloat16", compiled=True),
    )  # fmt: skip
    for way in others:
        ExecutionPlan("channels_last", "bfloat16").place(network)
        assert installed(way.place(network)) == 0


@pytest.mark.skipif(not has_bfloat16(CPU), reason="this CPU has no bfloat16 of its own")
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "convnext_tiny"])
def test_a_whole_network_has_the_same_gradients(name: str) -> None:
    torch.manual_seed(0)
    network, way = build_fresh(name, classes=10, resolution=64).train(), BFLOAT16
    x, labels = torch.randn(8, 3, 64, 64), torch.arange(8)
    found = []
    for own in (True, False):
        way.place(network)
        if not own:
            release(network)
        network.zero_grad()
        torch.manual_seed(1)
        with way.arithmetic(CPU):
            loss = F.cross_entropy(network(x).float(), labels)
        loss.backward()
        found.append([parameter.grad for parameter in network.parameters()])
    assert all(a is not None and a.dtype == torch.float32 for a in found[0])
    first, second = (torch.cat([grad.flatten() for grad in grads if grad is not None]) for grads in found)
    assert F.cosine_similarity(first, second, dim=0) > 0.995


def test_a_copy_computes_with_its_own_weights_and_measuring_is_as_before() -> None:
    torch.manual_seed(0)
    network = (
        ExecutionPlan("channels_last", "bfloat16").place(build_fresh("mobilenet_v2", classes=3, resolution=32)).eval()
    )
    x = torch.randn(2, 3, 32, 32)
    plain = build_fresh("mobilenet_v2", classes=3, resolution=32).eval()
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(x), plain(x))
    average = EMA(network, Recipe(average=0.9).average).network
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
        with ExecutionPlan("channels_last", "bfloat16").arithmetic(CPU), torch.enable_grad():
            assert average(x).eq(0).all()
    assert copy.deepcopy(network)(x).ne(0).any()
