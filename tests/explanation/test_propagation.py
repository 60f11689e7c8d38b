"""Signal propagation at initialization."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.explanation.propagation import Propagation, propagate, propagate_noise
from convatlas.models.catalog import build_fresh
from tiny_detection import TINY_SPECS
from tiny_networks import build_tiny, every_network


def plain(activation: type[nn.Module], depth: int = 12, gain: float = 1.0) -> Network:
    """Return a plain network, initialized by He et al. 2015, times a gain."""
    torch.manual_seed(0)
    stages = Chain(*(Chain(conv=nn.Conv2d(16, 16, 3, padding=1), act=activation()) for _ in range(depth)))
    head = Chain(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), out=nn.Linear(16, 10))
    network = Network(stem=nn.Conv2d(3, 16, 3, padding=1), stages=stages, head=head, input_shape=(3, 16, 16))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data.mul_(gain)
    return network


def test_he_initialization_keeps_the_variance_of_relus() -> None:
    found = propagate_noise("plain", plain(nn.ReLU))
    stds = [layer.activation_std or 0.0 for layer in found.layers if layer.kind == "Conv2d"]
    assert max(stds) / min(stds) < 6
    assert found.causes == ()
    assert "nothing is wrong" in str(found)
    assert len(found.table().rows) == 14


def test_gradients_vanish_in_sigmoids() -> None:
    (vanishing, *_) = propagate_noise("sigmoid", plain(nn.Sigmoid)).causes
    assert vanishing.problem == "gradients vanish"
    assert vanishing.epoch == 0
    assert "at initialization" in vanishing.text()


@pytest.mark.parametrize(("gain", "problem"), [(0.2, "activations vanish"), (5.0, "activations explode")])
def test_weights_of_a_wrong_size_are_named(gain: float, problem: str) -> None:
    network = plain(nn.ReLU, gain=gain)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    cause = propagate_noise("plain", network).causes[0]
    assert cause.problem == problem
    assert cause.layer.startswith("stages")


def test_the_body_of_a_detector_is_measured() -> None:
    torch.manual_seed(0)
    found = propagate_noise("detector", build_fresh(TINY_SPECS["detect"], classes=2))
    assert found.layers[0].path.startswith("stem")
    assert all(layer.path.startswith(("stem", "stages")) for layer in found.layers)
    assert all(layer.activation_gradient_rms is not None for layer in found.layers)


@every_network
@pytest.mark.slow
def test_every_network(name: str, tmp_path: Path) -> None:
    network, x = build_tiny(name)
    found = propagate_noise(name, network, inputs=len(x))
    weights = [layer for layer in found.layers if layer.weight_norm is not None]
    assert weights
    assert all(layer.finite and layer.activation_std is not None for layer in weights)
    assert not network.training


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    first, second = (propagate_noise("plain", plain(nn.ReLU, depth=2), seed=3) for _ in range(2))
    assert first == second
    other = propagate_noise("plain", plain(nn.ReLU, depth=2), seed=4)
    assert other.layers != first.layers
    first.figure(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 5000
    assert first.to_plain()["causes"] == []


def test_layers_that_do_not_run_are_left_out() -> None:
    network = plain(nn.ReLU, depth=2)
    layers = propagate(network, lambda: network.stem(torch.randn(2, 3, 16, 16)).sum())
    assert [layer.path for layer in layers] == ["stem"]
    assert isinstance(Propagation("x", "y", "z", layers).causes, tuple)
