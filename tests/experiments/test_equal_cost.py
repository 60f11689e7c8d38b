"""Networks of equal cost, and the layer without weight sharing that they are compared with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convatlas.core.cost import cost
from convatlas.errors import ExperimentError
from convatlas.experiments.claims.weight_sharing import KERNEL, PADDING, STRIDE, LocallyConnected2d
from convatlas.experiments.equal_cost import check_equal, cost_of, nearest_cost


def linear(width: int) -> nn.Module:
    return nn.Linear(10, width)


def test_nearest_cost_returns_the_candidate_with_the_nearest_count() -> None:
    assert nearest_cost(linear, range(1, 200), (10,), macs=1004) == 100
    assert nearest_cost(linear, range(1, 200), (10,), parameters=1104, macs=1000) == 100


def test_nearest_cost_refuses_what_is_not_equal() -> None:
    with pytest.raises(ExperimentError, match=r"no candidate has 1,050 macs; 100 differs by 4.8%"):
        nearest_cost(linear, [10, 100], (10,), macs=1050)


def test_networks_are_counted_without_memory() -> None:
    assert cost_of(lambda: nn.Linear(100_000, 100_000, bias=False), (100_000,)).macs == 10**10


def test_check_equal_names_the_arms() -> None:
    check_equal({"a": 1000, "b": 1019}, "multiply-adds")
    with pytest.raises(ExperimentError, match="multiply-adds must be equal within 2%, got 1,000 of a and 1,030 of b"):
        check_equal({"a": 1000, "c": 1001, "b": 1030}, "multiply-adds")


def test_a_locally_connected_layer_with_equal_kernels_is_a_convolution() -> None:
    convolution = nn.Conv2d(2, 3, KERNEL, STRIDE, PADDING)
    assert convolution.bias is not None
    layer = LocallyConnected2d(2, 3, 9, kernel=KERNEL, stride=STRIDE, padding=PADDING)
    with torch.no_grad():
        layer.weight.copy_(convolution.weight.flatten(1).expand_as(layer.weight))
        layer.bias.copy_(convolution.bias[:, None].expand_as(layer.bias))
    x = torch.randn(4, 2, 9, 9)
    torch.testing.assert_close(layer(x), convolution(x))
    counted, shared = cost(layer, (2, 9, 9)), cost(convolution, (2, 9, 9))
    assert (counted.macs, counted.output.shape) == (shared.macs, shared.output.shape)
    assert counted.parameters == 25 * shared.parameters
