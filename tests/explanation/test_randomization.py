"""The sanity check by random weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from convatlas.core.network import Network, taps
from convatlas.explanation.randomization import Randomization, randomize_weights, rank_correlation
from tiny_networks import build_tiny


def strongest_channel(x: Tensor) -> Callable[[Network], Tensor]:
    return lambda network: taps(network, ["stages"], x)["stages"].detach()[0].amax(0)  # type: ignore[union-attr]


def test_rank_correlation_is_that_of_scipy() -> None:
    torch.manual_seed(0)
    first, second = torch.rand(7, 7), torch.randint(0, 5, (7, 7)).float()
    expected = spearmanr(first.flatten(), second.flatten()).statistic
    assert rank_correlation(first, second) == pytest.approx(expected)
    assert rank_correlation(first, first.exp()) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)


def test_a_constant_map_has_no_correlation() -> None:
    assert rank_correlation(torch.rand(4, 4), torch.zeros(4, 4)) == 0
    assert rank_correlation(torch.rand(4, 4), torch.full((4, 4), torch.nan)) == 0


def test_weights_are_randomized_from_the_head_down_and_the_network_stays_as_it_is() -> None:
    network, x = build_tiny("resnet18")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    check = randomize_weights(network, strongest_channel(x[:1]), draws=2)
    assert list(check.correlations) == ["head", "stages.3", "stages.2", "stages.1", "stages.0", "stem"]
    assert check.correlations["head"] == pytest.approx(1)  # the map does not read the head
    assert check.correlation < 0.9
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert check.correlations == randomize_weights(network, strongest_channel(x[:1]), draws=2).correlations


def test_a_map_that_ignores_the_weights_fails() -> None:
    network, x = build_tiny("lenet5")
    check = randomize_weights(network, lambda _: x[0].mean(0))
    assert not check.is_passed
    assert check.correlation == pytest.approx(1)
    assert check.verdict.endswith("the map does not depend on the weights")
    assert Randomization({"head": 0.9, "stem": 0.2}).verdict.endswith("0.20: the map depends on the weights")
    assert Randomization({"head": 0.9, "stem": 0.2}).to_plain()["passed"]
