"""Hooks, in-place operations and continued forward passes on every network of the catalog, at a small size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.auxiliary import Features
from convatlas.core.compose import Chain, Concat, Pair, Product, Sum
from convatlas.core.network import Network, feature_map, tap_paths, taps
from convatlas.errors import SpecError
from convatlas.layers.channels import DropPath, Scale
from tiny_networks import build_tiny, every_network, one_of_each_spec

one_of_each_family = pytest.mark.parametrize("name", one_of_each_spec())


def tensors(y: Any) -> tuple[Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


def listen(network: nn.Module, received: list[tuple[str, Tensor, Tensor]]) -> None:
    """Let a forward hook on every module append (path, output, copy of the output)."""
    for path, module in network.named_modules():

        def hook(_: nn.Module, __: Any, y: Any, path: str = path) -> None:
            received.extend((path, each, each.clone()) for each in tensors(y))

        module.register_forward_hook(hook)


@every_network
def test_forward_hooks_receive_outputs_that_stay_as_they_are(name: str) -> None:
    network, x = build_tiny(name)
    with torch.no_grad():
        expected = network(x)
        received: list[tuple[str, Tensor, Tensor]] = []
        listen(network.inplace(False), received)
        assert torch.equal(network(x), expected)
    assert {path for path, _, _ in received} >= {"", "stem", "stages", "head"}
    for path, output, at_the_time in received:
        assert torch.equal(output, at_the_time), path


@every_network
def test_a_sum_overwrites_nothing_that_a_hook_received(name: str) -> None:
    """In-place activations still do, as in any network of torch; no module of a sum's branch ends in one."""
    network, x = build_tiny(name)
    for layer in network.modules():
        if not isinstance(layer, Sum | Network) and getattr(layer, "inplace", False):
            layer.inplace = False  # type: ignore[assignment]
    received: list[tuple[str, Tensor, Tensor]] = []
    listen(network, received)
    with torch.no_grad():
        network(x)
    for path, output, at_the_time in received:
        assert torch.equal(output, at_the_time), path


@every_network
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_full_backward_hooks_on_every_module_receive_gradients(name: str) -> None:
    network, x = build_tiny(name)
    plain = copy.deepcopy(network)
    reached: set[str] = set()
    for path, module in network.inplace(False).named_modules():
        module.register_full_backward_hook(lambda *_, path=path: reached.add(path))
    outputs = network(x.requires_grad_())
    outputs.square().sum().backward()
    assert {"", "stem", "stages", "head"} <= reached
    plain(x.detach()).square().sum().backward()
    for (path, parameter), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        if path.startswith("auxiliary."):
            continue
        assert (parameter.grad is None) == (other.grad is None), path
        if parameter.grad is not None and other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6)


def flags(network: Network) -> dict[str, bool]:
    return {path: layer.inplace for path, layer in network.named_modules() if path and hasattr(layer, "inplace")}


@every_network
def test_inplace_turns_everything_off_and_restores_what_was_on(name: str) -> None:
    network, _ = build_tiny(name)
    first = next((layer for layer in network.modules() if isinstance(layer, nn.ReLU)), None)
    if first is not None:
        first.inplace = False
    before = flags(network)
    assert network.inplace(True) is network
    assert flags(network) == before
    assert network.inplace(False) is network
    assert not any(flags(network).values())
    network.inplace(False)
    twin = copy.deepcopy(network)
    assert flags(network.inplace(True)) == flags(twin.inplace(True)) == before


def test_inplace_off_reaches_dropout() -> None:
    network = Network(stem=nn.Dropout(0.5, inplace=True), stages=Chain(), head=nn.ReLU(), input_shape=(1, 2, 2))
    x = torch.ones(4, 1, 2, 2)
    network.train().inplace(False)(x)
    assert torch.equal(x, torch.ones_like(x))


# --- which outputs a sum may overwrite


def residual() -> Sum:
    return Sum(body=Chain(conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3), drop=DropPath(0.1)), skip=nn.Identity())


def overwrites(tree: Sum, x: Tensor) -> bool:
    """Return whether the sum's output lies where its first branch's output was."""
    places: list[int] = []
    first = next(iter(tree.values()))
    original = first.forward

    def forward(x: Tensor) -> Tensor:
        y: Tensor = original(x)
        places.append(y.data_ptr())
        return y

    first.forward = forward  # type: ignore[method-assign]
    return bool(tree(x).data_ptr() == places[0])


WATCHERS: dict[str, Callable[[nn.Module], Any]] = {
    "forward hook": lambda module: module.register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "full backward hook": lambda module: module.register_full_backward_hook(lambda *_: None),
    "full backward pre-hook": lambda module: module.register_full_backward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("watch", WATCHERS)
@pytest.mark.parametrize("path", ["body", "body.norm", "body.drop"])
def test_an_observed_output_is_not_overwritten(path: str, watch: str) -> None:
    x, tree = torch.randn(2, 3, 4, 4), residual().eval()
    assert overwrites(tree, x)
    handle = WATCHERS[watch](tree.get_submodule(path))
    assert not overwrites(tree, x)
    handle.remove()
    assert overwrites(tree, x)


def test_a_hook_on_all_modules_is_respected() -> None:
    x, tree = torch.randn(2, 3, 4, 4), residual().eval()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not overwrites(tree, x)
    finally:
        handle.remove()


def test_hooks_elsewhere_do_not_matter() -> None:
    x, tree = torch.randn(2, 3, 4, 4), residual().eval()
    for path in ("", "body.conv", "skip"):
        tree.get_submodule(path).register_forward_hook(lambda *_: None)
    assert overwrites(tree, x)


def test_a_sum_of_other_types_is_not_in_place() -> None:
    x = torch.randn(2, 3, 4, 4)
    tree = Sum(Chain(cast=Cast(torch.bfloat16), conv=nn.Conv2d(3, 3, 1).bfloat16()), nn.Identity())
    assert tree(x).dtype == torch.float32


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


@pytest.mark.parametrize(
    "first", [Product(nn.Identity()), Chain(Product(nn.Identity())), Chain(), Chain(DropPath(0.5))]
)
def test_a_branch_that_returns_its_input_is_not_overwritten(first: nn.Module) -> None:
    x = torch.randn(2, 3, 4, 4)
    kept = x.clone()
    Sum(first, nn.Identity()).eval()(x)
    assert torch.equal(x, kept)


def test_branches_that_allocate_are_overwritten() -> None:
    x = torch.randn(2, 3, 4, 4)
    for first in (Concat(nn.Identity()), Product(nn.Identity(), nn.Sigmoid()), nn.Conv2d(3, 3, 1), Scale(2.0)):
        assert overwrites(Sum(first, nn.Identity()), x)


# --- forward_from


def detached(features: Features) -> Features:
    """Return the features as leaves that require gradients."""
    if isinstance(features, Pair):
        return Pair(*(each.detach().clone().requires_grad_() for each in features))
    return features.detach().clone().requires_grad_()


@one_of_each_family
def test_forward_from_every_tap_equals_the_forward_pass_and_has_gradients(name: str) -> None:
    network, x = build_tiny(name)
    network.requires_grad_(False)
    paths = list(dict.fromkeys(tap_paths(network)))
    expected = network(x)
    features = {path: detached(each) for path, each in taps(network, paths, x).items()}
    before = {path: feature_map(each).detach().clone() for path, each in features.items()}
    for path in paths:
        outputs = network.forward_from(path, features[path])
        assert torch.equal(outputs, expected), path
        assert torch.equal(feature_map(features[path]), before[path]), path
        if path != "head":
            (gradient,) = torch.autograd.grad(outputs.square().sum(), feature_map(features[path]))
            assert gradient.abs().sum() > 0, path


def test_gradients_at_a_tap_are_those_of_the_whole_network() -> None:
    network, x = build_tiny("resnet50")
    whole = taps(network, ["stages.1"], x)["stages.1"]
    assert isinstance(whole, Tensor)
    leaf = whole.detach().requires_grad_()
    network.forward_from("stages.1", leaf)[:, 3].sum().backward()
    received: list[Tensor] = []
    network.inplace(False).get_submodule("stages.1").register_full_backward_hook(lambda *a: received.append(a[2][0]))
    network(x)[:, 3].sum().backward()
    torch.testing.assert_close(leaf.grad, received[0])


def test_forward_from_an_unknown_path_is_refused() -> None:
    network, x = build_tiny("resnet18")
    with pytest.raises(SpecError, match=r"no tap 'stages.9' on the main path of this Network"):
        network.forward_from("stages.9", x)


def test_a_changed_pair_continues() -> None:
    network, x = build_tiny("nasnet_a_mobile")
    pair = taps(network, ["stages.1"], x)["stages.1"]
    assert isinstance(pair, Pair)
    with torch.no_grad():
        changed = network.forward_from("stages.1", pair._replace(now=torch.zeros_like(pair.now)))
        assert not torch.equal(changed, network(x))
