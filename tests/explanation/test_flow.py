"""Statistics of layers in one step: equal to their definitions, and without an effect on the step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.compose import Chain, Product
from convatlas.explanation.flow import MAX_IMAGES, Probe, effective_rank, layer_statistics
from convatlas.explanation.statistics import LayerStatistics
from tiny_networks import build_tiny


def by_path(layers: tuple[LayerStatistics, ...]) -> dict[str, LayerStatistics]:
    return {layer.path: layer for layer in layers}


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(0)
    return Chain(
        conv=nn.Conv2d(1, 4, 3), relu=nn.ReLU(inplace=True), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
        out=nn.Linear(4, 3),
    )  # fmt: skip


def square(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: network(x).square().sum()


def test_statistics_equal_their_definitions(chain: Chain) -> None:
    x, twin = torch.randn(5, 1, 8, 8), copy.deepcopy(chain)
    optimizer = torch.optim.SGD(chain.parameters(), lr=0.1, momentum=0.9)
    layers = by_path(layer_statistics(chain, square(chain, x), optimizer=optimizer))
    assert list(layers) == ["conv", "relu", "out"]

    first, last = twin[0], twin[4]
    maps = first(x)
    maps.retain_grad()
    features = maps.relu().mean((2, 3))
    last(features).square().sum().backward()
    conv, weight, gradient = layers["conv"], first.weight, first.weight.grad
    assert gradient is not None
    assert maps.grad is not None
    assert conv.activation_mean == pytest.approx(maps.mean().item(), abs=1e-6)
    assert conv.activation_std == pytest.approx(maps.std(correction=0).item(), rel=1e-5)
    assert conv.activation_gradient_rms == pytest.approx(maps.grad.square().mean().sqrt().item(), rel=1e-5)
    assert conv.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert conv.weight_norm == pytest.approx(weight.norm().item(), rel=1e-5)
    assert conv.update_ratio == pytest.approx((0.1 * gradient.norm() / weight.norm()).item(), rel=1e-4)
    assert layers["relu"].activation_mean == pytest.approx(maps.relu().mean().item(), rel=1e-5)
    assert (layers["relu"].gradient_norm, conv.dead_share, conv.effective_rank) == (None, None, None)
    assert layers["out"].effective_rank == pytest.approx(effective_rank(features).item(), rel=1e-5)
    assert layers["out"].max_rank == 4


def test_without_an_optimizer_nothing_changes() -> None:
    network, x = build_tiny("cifar_resnet20")
    network.train()
    before = copy.deepcopy(network.state_dict())
    layers = layer_statistics(network, square(network, x))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training
    assert all(layer.finite and layer.update_ratio is None for layer in layers)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["cifar_resnet20", "densenet121", "mobilenet_v3_small", "capsnet_reduced"])
def test_a_measured_step_has_the_same_bits(name: str) -> None:
    network, x = build_tiny(name)
    network.train()
    twin = copy.deepcopy(network)
    probe = Probe(network, activation_gradients=True)
    for each, context in ((network, probe), (twin, None)):
        torch.manual_seed(1)
        if context:
            with context:
                each(x).square().sum().backward()
        else:
            each(x).square().sum().backward()
    state = torch.random.get_rng_state()
    probe.read_gradients()
    probe.statistics()
    assert torch.equal(state, torch.random.get_rng_state())
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad is not None:
            assert torch.equal(ours.grad, theirs.grad)
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), twin.buffers(), strict=True))


def test_units_that_pass_no_gradient_are_dead() -> None:
    layers = {
        "relu": (nn.ReLU(), [-1.0, 2.0]), "six": (nn.ReLU6(), [9.0, 3.0]), "sigmoid": (nn.Sigmoid(), [-30.0, 0.0]),
        "tanh": (nn.Tanh(), [20.0, 0.1]), "swish": (nn.Hardswish(), [-4.0, 1.0]), "silu": (nn.SiLU(), [-30.0, 1.0]),
    }  # fmt: skip
    for name, (activation, values) in layers.items():
        inputs = torch.tensor([values, values]).requires_grad_()
        chain = Chain(**{name: activation})
        assert by_path(layer_statistics(chain, square(chain, inputs)))[name].dead_share == 0.5, name
    leaky = Chain(leaky=nn.LeakyReLU())
    inputs = torch.full((2, 2), -1.0, requires_grad=True)
    assert by_path(layer_statistics(leaky, square(leaky, inputs)))["leaky"].dead_share is None


def test_a_unit_that_is_active_for_one_image_is_alive_and_gates_do_not_count() -> None:
    x = torch.tensor([[-1.0, -1.0], [-1.0, 3.0]]).requires_grad_()
    chain = Chain(relu=nn.ReLU())
    assert by_path(layer_statistics(chain, square(chain, x)))["relu"].dead_share == 0.5
    gate = Product(same=nn.Identity(), gate=Chain(relu=nn.ReLU()))
    assert by_path(layer_statistics(gate, square(gate, x)))["gate.relu"].dead_share is None


def test_micro_batches_are_measured_together(chain: Chain) -> None:
    x = torch.randn(6, 1, 8, 8)
    probe = Probe(chain)
    with probe:
        for piece in x.split(2):
            chain(piece).square().sum().backward()
    probe.read_gradients()
    pieces, whole = by_path(probe.statistics()), by_path(layer_statistics(chain, square(chain, x)))
    for path, layer in whole.items():
        assert pieces[path].activation_std == pytest.approx(layer.activation_std, rel=1e-5)
        assert pieces[path].activation_mean == pytest.approx(layer.activation_mean, rel=1e-5)
        assert pieces[path].dead_share == layer.dead_share
    assert pieces["out"].effective_rank == pytest.approx(whole["out"].effective_rank, rel=1e-5)


def test_at_most_so_many_images_are_measured(chain: Chain) -> None:
    x = torch.cat([torch.randn(MAX_IMAGES, 1, 8, 8), torch.full((9, 1, 8, 8), 1e6)])
    layers = by_path(layer_statistics(chain, square(chain, x)))
    assert (layers["conv"].activation_std or math.inf) < 10
    assert layers["out"].max_rank == 4


def test_effective_rank_is_the_exponential_of_an_entropy() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.ones(9, 5)) == pytest.approx(1, abs=1e-5)
    shares = torch.tensor([3.0, 1.0]) / 4
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(torch.special.entr(shares).sum().exp())
    assert effective_rank(torch.zeros(4, 3)).item() == pytest.approx(1)
    assert effective_rank(torch.full((3, 3), math.nan)).isnan()


def test_what_is_not_finite_is_named(chain: Chain) -> None:
    with torch.no_grad():
        chain[4].weight.fill_(math.inf)
    layers = by_path(layer_statistics(chain, square(chain, torch.randn(2, 1, 8, 8).abs())))
    assert layers["relu"].activation_mean is not None
    assert not layers["out"].finite
    assert layers["out"].activation_mean is None


def test_frozen_layers_and_functions_have_no_gradient() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(F.relu(self.conv(x)).mean((2, 3)))
            return y

    network = Functional()
    network.conv.requires_grad_(False)
    layers = by_path(layer_statistics(network, square(network, torch.randn(3, 1, 6, 6))))
    assert list(layers) == ["conv", "out"]
    assert layers["conv"].gradient_norm is None
    assert layers["conv"].activation_std is not None
    assert layers["out"].gradient_norm
