"""Chain, Sum, Concat, Product and taps against plain torch."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.auxiliary import Auxiliary
from convatlas.core.compose import Chain, Concat, Join, Product, Sum, _may_overwrite_output
from convatlas.core.network import Network, taps
from convatlas.errors import SpecError
from convatlas.layers.channels import DropPath

JOINS: dict[type[Join], Callable[[Tensor, Tensor], Tensor]] = {
    Sum: lambda a, b: a + b,
    Concat: lambda a, b: torch.cat([a, b], 1),
    Product: lambda a, b: a * b,
}
HIDDEN_NAMES = [
    "train", "training", "eval", "half", "double", "float", "type", "to", "forward", "parameters", "state_dict",
    "append", "insert", "pop", "keys", "values", "items", "update", "clear", "join", "input_shape",
]  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class Counter(nn.Module):
    """The identity, counting how often it is called."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_chain_runs_its_layers_in_order(x: Tensor) -> None:
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
    assert torch.equal(Chain(first, second)(x), second(first(x)))


def test_chain_keeps_order_of_numbered_then_named_layers() -> None:
    chain = Chain(nn.ReLU(), nn.Tanh(), norm=nn.BatchNorm2d(3), act=nn.Sigmoid())
    assert [name for name, _ in chain.named_children()] == ["0", "1", "norm", "act"]


def test_slice_of_a_chain_is_the_chain_of_those_layers(x: Tensor) -> None:
    chain = Chain(nn.Conv2d(3, 4, 3), nn.Tanh(), out=nn.Conv2d(4, 2, 1))
    part = chain[:2]
    assert torch.equal(part(x), chain[1](chain[0](x)))


@pytest.mark.parametrize("join", JOINS)
def test_join_equals_plain_torch(join: type[Join], x: Tensor) -> None:
    left, right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
    expected = JOINS[join](left(x), right(x))
    assert torch.equal(join(left, right)(x), expected)
    assert torch.equal(join(long=left, short=right)(x), expected)


@pytest.mark.parametrize("join", JOINS)
def test_join_of_three_branches_joins_all(join: type[Join], x: Tensor) -> None:
    branches = [nn.Conv2d(3, 2, 1) for _ in range(3)]
    a, b, c = (branch(x) for branch in branches)
    assert torch.equal(join(*branches)(x), JOINS[join](JOINS[join](a, b), c))


@pytest.mark.parametrize("join", JOINS)
def test_join_of_one_branch_is_that_branch(join: type[Join], x: Tensor) -> None:
    assert torch.equal(join(nn.Identity())(x), x)


@pytest.mark.parametrize("join", JOINS)
def test_branches_may_share_a_module(join: type[Join], x: Tensor) -> None:
    shared = nn.Conv2d(3, 2, 1)
    assert torch.equal(join(shared, shared)(x), JOINS[join](shared(x), shared(x)))


def test_concat_joins_branches_of_different_channels(x: Tensor) -> None:
    assert Concat(nn.Identity(), nn.Conv2d(3, 8, 1))(x).shape == (2, 11, 5, 5)


def test_product_with_a_gate_is_squeeze_and_excitation(x: Tensor) -> None:
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Sigmoid())
    assert torch.equal(Product(nn.Identity(), gate)(x), x * gate(x))


@pytest.mark.parametrize("join", JOINS)
def test_gradients_through_a_join_equal_plain_torch(join: type[Join], x: Tensor) -> None:
    left, right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
    parameters = [*left.parameters(), *right.parameters()]
    weight = torch.randn_like(JOINS[join](left(x), right(x)))
    through_join = torch.autograd.grad((join(left, right)(x) * weight).sum(), parameters)
    through_torch = torch.autograd.grad((JOINS[join](left(x), right(x)) * weight).sum(), parameters)
    torch.testing.assert_close(through_join, through_torch)


def test_a_tree_of_joins_exports(x: Tensor) -> None:
    tree = Chain(Sum(nn.Identity(), nn.Conv2d(3, 3, 1)), Concat(nn.Identity(), Product(nn.ReLU(), nn.Sigmoid()))).eval()
    exported = torch.export.export(tree, (x,)).module()
    torch.testing.assert_close(exported(x), tree(x))


@pytest.mark.parametrize("name", HIDDEN_NAMES)
@pytest.mark.parametrize("kind", [Chain, *JOINS])
def test_name_that_would_hide_an_attribute_is_refused(kind: type[nn.Module], name: str) -> None:
    with pytest.raises(SpecError, match=f"'{name}'"):
        kind(**{name: nn.Identity()})


@pytest.mark.parametrize("join", JOINS)
def test_join_without_branches_is_refused(join: type[Join]) -> None:
    with pytest.raises(SpecError, match=f"{join.__name__} needs at least one branch"):
        join()


def nested() -> Chain:
    return Chain(
        stem=nn.Conv2d(3, 4, 1), stages=Chain(nn.Tanh(), Chain(conv=nn.Conv2d(4, 2, 1))), head=Sum(nn.ReLU(), nn.Tanh())
    )


def test_taps_returns_the_outputs_along_the_chain(x: Tensor) -> None:
    tree = nested()
    stem = tree.stem(x)
    stage0 = tree.stages[0](stem)
    stages = tree.stages[1](stage0)
    expected = {
        "stem": stem, "stages.0": stage0, "stages.1.conv": stages, "stages.1": stages, "stages": stages,
        "head": tree.head(stages),
    }  # fmt: skip
    tapped = taps(tree, list(expected), x)
    torch.testing.assert_close(tapped, expected, rtol=0, atol=0)


def test_taps_returns_the_order_asked_for(x: Tensor) -> None:
    assert list(taps(nested(), ["stages.1", "stem", "stages.0"], x)) == ["stages.1", "stem", "stages.0"]


def test_taps_reads_a_plain_sequential(x: Tensor) -> None:
    tree = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))
    torch.testing.assert_close(taps(tree, ["1.0"], x), {"1.0": tree(x)})


def test_taps_runs_a_repeated_layer_each_time(x: Tensor) -> None:
    shared = nn.Conv2d(3, 3, 3)
    torch.testing.assert_close(taps(Chain(shared, shared), ["1"], x), {"1": shared(shared(x))})


@pytest.mark.parametrize(("tap", "calls"), [("first", 0), ("inner.0", 1), ("inner", 2), ("last", 2)])
def test_taps_stops_after_the_last_tap(tap: str, calls: int, x: Tensor) -> None:
    counter = Counter()
    last = Counter()
    taps(Chain(first=nn.ReLU(), inner=Chain(counter, Chain(counter_too := Counter())), last=last), [tap], x)
    assert counter.calls + counter_too.calls == calls
    assert last.calls == (tap == "last")


def test_unknown_tap_is_refused_with_the_nearest_name(x: Tensor) -> None:
    with pytest.raises(SpecError, match=r"no tap 'stages.7'.*did you mean stages\.[01]\?"):
        taps(nested(), ["stem", "stages.7"], x)


def test_branch_inside_a_join_is_no_tap(x: Tensor) -> None:
    with pytest.raises(SpecError, match=r"no tap 'head.0'"):
        taps(nested(), ["head.0"], x)


def test_gradients_flow_from_a_tap(x: Tensor) -> None:
    tree = nested()
    taps(tree, ["stages.0"], x)["stages.0"].sum().backward()
    assert tree.stem.weight.grad is not None
    assert tree.stages[1].conv.weight.grad is None


class Watch(nn.Module):
    """Passes on a new tensor, and notes whether the tensor that came `back` layers before is still there."""

    seen: list[weakref.ref[Tensor]]

    def __init__(self, seen: list[weakref.ref[Tensor]]) -> None:
        super().__init__()
        self.seen, self.alive = seen, -1

    def forward(self, x: Tensor) -> Tensor:
        self.alive = sum(tensor() is not None for tensor in self.seen)
        y = x + 1
        self.seen.append(weakref.ref(y))
        return y


def test_a_chain_holds_no_tensor_that_is_read_no_more() -> None:
    seen: list[weakref.ref[Tensor]] = []
    watches = [Watch(seen) for _ in range(6)]
    a, b, c, d, e, f = watches
    network = Network(
        stem=Chain(a, b), stages=Chain(Chain(c, d), nn.Sequential(e)), head=Chain(f=f), input_shape=(1, 4, 4)
    )
    with torch.inference_mode():
        assert torch.equal(network(torch.zeros(1, 1, 4, 4)), torch.full((1, 1, 4, 4), 6.0))
    assert [watch.alive for watch in watches] == [0, 1, 1, 1, 1, 1]  # only what each of them reads


def observed_chains() -> dict[str, Callable[[Chain, list[str]], object]]:
    def replaced(chain: Chain, calls: list[str]) -> None:
        def forward(x: Tensor) -> Tensor:
            calls.append("called")
            return x

        chain.forward = forward  # type: ignore[method-assign]

    return {
        "hook": lambda chain, calls: chain.register_forward_hook(lambda *_: calls.append("called")),
        "pre-hook": lambda chain, calls: chain.register_forward_pre_hook(lambda *_: calls.append("called")),
        "backward hook": lambda chain, calls: chain.register_full_backward_hook(lambda *_: calls.append("called")),
        "own forward pass": replaced,
    }


@pytest.mark.parametrize("how", observed_chains())
def test_a_chain_in_a_chain_that_is_observed_is_called(how: str) -> None:
    inner, calls = Chain(nn.Linear(2, 2)), list[str]()
    observed_chains()[how](inner, calls)
    chain = Chain(nn.Linear(2, 2), Chain(inner))
    chain(torch.ones(1, 2)).sum().backward()
    assert calls == ["called"]


def test_a_hook_on_every_module_sees_every_chain() -> None:
    inner, seen = Chain(nn.Identity()), list[nn.Module]()
    chain = Chain(Chain(inner))
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        chain(torch.ones(1))
    finally:
        handle.remove()
    assert seen == [inner[0], inner, chain[0], chain]


def test_a_network_in_a_chain_leaves_out_what_only_training_uses() -> None:
    class Side(Auxiliary):
        pass

    network = Network(
        stem=nn.Identity(), stages=Chain(), head=nn.Identity(), input_shape=(1, 1, 1), auxiliary={"side": Side("stem")}
    )
    assert Chain(network)(torch.ones(1)).item() == 1


def test_a_sum_behind_a_branch_that_hands_its_input_on_does_not_change_the_input() -> None:
    x = torch.ones(2, 3, 4, 4)
    Sum(DropPath(0.1), nn.Identity()).eval()(x)
    assert torch.equal(x, torch.ones_like(x))
    assert _may_overwrite_output(Chain(nn.BatchNorm2d(3), DropPath(0.1)))
    assert not _may_overwrite_output(Chain(nn.ReLU(), DropPath(0.1)))
