"""The walk: shapes, MACs, parameters and receptive fields against hand counts and against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convatlas.core.compose import Chain, Concat, Pair, Product, Sum
from convatlas.core.cost import Cost, cost
from convatlas.core.signal import Signal, Tally, rule
from convatlas.errors import CostError
from convatlas.layers.channels import ChannelsLast
from convatlas.layers.lenet import RadialBasis, SparseConnectionConv2d, Subsample
from convatlas.weights.build import build
from tiny_networks import every_network


def shape_in_torch(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that torch computes, or None where torch refuses the input."""
    try:
        return tuple(layer(torch.zeros(1, *shape)).shape[1:])
    except RuntimeError:
        return None


def shape_in_walk(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return cost(layer, shape).output.shape
    except CostError:
        return None


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("layer", "shape", "output", "macs", "parameters"),
    [
        (nn.Conv2d(3, 8, 3), (3, 10, 10), (8, 8, 8), 8 * 64 * 27, 8 * 27 + 8),
        (nn.Conv2d(3, 8, 3, bias=False), (3, 10, 10), (8, 8, 8), 8 * 64 * 27, 8 * 27),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 9, 12), (8, 5, 6), 8 * 30 * 27, 224),
        (nn.Conv2d(3, 8, 3, dilation=2), (3, 10, 10), (8, 6, 6), 8 * 36 * 27, 224),
        (nn.Conv2d(3, 8, (1, 7), padding=(0, 3)), (3, 10, 10), (8, 10, 10), 8 * 100 * 21, 176),
        (nn.Conv2d(3, 8, 5, padding="same"), (3, 9, 11), (8, 9, 11), 8 * 99 * 75, 608),
        (nn.Conv2d(3, 8, 4, padding="same", dilation=3), (3, 9, 11), (8, 9, 11), 8 * 99 * 48, 392),
        (nn.Conv2d(3, 8, 5, padding="valid"), (3, 9, 11), (8, 5, 7), 8 * 35 * 75, 608),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 6, 6), (8, 6, 6), 8 * 36 * 9, 80),
        (nn.Conv2d(8, 16, 3, padding=1, groups=2), (8, 6, 6), (16, 6, 6), 16 * 36 * 4 * 9, 16 * 36 + 16),
        (nn.Conv1d(2, 4, 3), (2, 10), (4, 8), 4 * 8 * 6, 28),
        (nn.Conv3d(3, 4, (3, 5, 5), stride=(1, 2, 2)), (3, 8, 11, 13), (4, 6, 4, 5), 4 * 120 * 225, 904),
        (nn.Linear(7, 5), (7,), (5,), 35, 40),
        (nn.Linear(7, 5, bias=False), (7,), (5,), 35, 35),
        (nn.Flatten(), (3, 4, 5), (60,), 0, 0),
        (nn.AdaptiveAvgPool2d(1), (3, 4, 5), (3, 1, 1), 0, 0),
        (nn.AdaptiveAvgPool2d((1, 1)), (3, 4, 5), (3, 1, 1), 0, 0),
        (nn.AdaptiveAvgPool2d((None, 2)), (3, 4, 5), (3, 4, 2), 0, 0),
        (nn.AdaptiveAvgPool2d([1, None]), (3, 4, 5), (3, 1, 5), 0, 0),  # type: ignore[arg-type]
        (nn.AdaptiveAvgPool3d(1), (3, 4, 5, 6), (3, 1, 1, 1), 0, 0),
        (nn.MaxPool2d(3, 2), (3, 9, 10), (3, 4, 4), 0, 0),
        (nn.MaxPool3d((1, 2, 2)), (3, 4, 6, 8), (3, 4, 3, 4), 0, 0),
        (nn.ZeroPad2d((1, 2, 3, 4)), (3, 5, 5), (3, 12, 8), 0, 0),
        (nn.BatchNorm2d(3), (3, 5, 5), (3, 5, 5), 0, 6),
        (nn.ReLU(), (3, 5, 5), (3, 5, 5), 0, 0),
        (Subsample(3), (3, 5, 6), (3, 2, 3), 0, 6),
        (SparseConnectionConv2d(3, ((0,), (0, 2)), kernel=3), (3, 5, 6), (2, 3, 4), 3 * 9 * 12, 29),
        (RadialBasis(torch.ones(10, 4)), (4,), (10,), 40, 0),
    ],
    ids=lambda value: repr(value) if isinstance(value, nn.Module) else None,
)
def test_layer_costs_what_the_hand_counts(
    layer: nn.Module, shape: tuple[int, ...], output: tuple[int, ...], macs: int, parameters: int
) -> None:
    measured = cost(layer, shape)
    assert (measured.output.shape, measured.macs, measured.parameters) == (output, macs, parameters)
    assert shape_in_torch(layer.eval(), shape) == output


sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
pairs = st.tuples(st.integers(1, 5), st.integers(1, 5))


@st.composite
def pools(draw: st.DrawFn) -> nn.Module:
    kernel, stride = draw(pairs), draw(pairs)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    ceil = draw(st.booleans())
    if draw(st.booleans()):
        return nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil)
    dilation = draw(st.integers(1, 3))
    return nn.MaxPool2d(kernel, stride, padding, dilation=dilation, ceil_mode=ceil)


def hangs_over(pool: nn.Module, size: tuple[int, int]) -> bool:
    """Return whether the pool's first window is larger than the padded image, which ceil_mode allows."""
    axes = zip(size, pool.kernel_size, pool.padding, strict=True)
    return any(extent + 2 * pad < getattr(pool, "dilation", 1) * (kernel - 1) + 1 for extent, kernel, pad in axes)


@given(pools(), sizes)
@settings(deadline=None, max_examples=300)
def test_pool_has_the_shape_that_torch_computes(pool: nn.Module, size: tuple[int, int]) -> None:
    output = shape_in_torch(pool, (2, *size))
    assume(output is not None and not hangs_over(pool, size))
    assert shape_in_walk(pool, (2, *size)) == output


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, ceil_mode=True)], ids=str)
def test_ceil_mode_pool_of_an_image_smaller_than_the_window_is_as_in_torch(pool: nn.Module) -> None:
    assert shape_in_walk(pool, (2, 2, 2)) == shape_in_torch(pool, (2, 2, 2)) == (2, 1, 1)


@given(pools(), sizes)
@settings(deadline=None, max_examples=200)
def test_pool_that_torch_refuses_is_refused(pool: nn.Module, size: tuple[int, int]) -> None:
    assume(shape_in_torch(pool, (2, *size)) is None)
    assert shape_in_walk(pool, (2, *size)) is None


@given(pairs, pairs, st.tuples(st.integers(0, 4), st.integers(0, 4)), st.integers(1, 3), st.sampled_from([1, 2]), sizes)
@settings(deadline=None, max_examples=200)
def test_convolution_has_the_shape_that_torch_computes(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: int, groups: int,
    size: tuple[int, int],
) -> None:  # fmt: skip
    layer = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups)
    assert shape_in_walk(layer, (2, *size)) == shape_in_torch(layer, (2, *size))


@pytest.mark.parametrize(
    ("tree", "output"),
    [
        (Concat(nn.Identity(), nn.Conv2d(3, 8, 1)), (11, 6, 6)),
        (Concat(nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 1), nn.AvgPool2d(3, 1)), (14, 4, 4)),
        (Sum(nn.Identity(), nn.Conv2d(3, 3, 3, padding=1)), (3, 6, 6)),
        (Sum(nn.Conv2d(3, 8, 1, stride=2), nn.Conv2d(3, 8, 3, padding=1, stride=2)), (8, 3, 3)),
        (Product(nn.Identity(), Chain(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Sigmoid())), (3, 6, 6)),
        (Product(nn.Conv2d(3, 1, 1), nn.Identity()), (3, 6, 6)),
        (Chain(nn.Flatten(), Concat(nn.Linear(108, 4), nn.Identity())), (112,)),
    ],
)  # fmt: skip
def test_join_has_the_shape_that_torch_computes(tree: nn.Module, output: tuple[int, ...]) -> None:
    assert cost(tree, (3, 6, 6)).output.shape == output == shape_in_torch(tree, (3, 6, 6))


def test_join_costs_the_sum_of_its_branches() -> None:
    branches = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
    measured = cost(Sum(*branches), (3, 6, 6))
    assert measured.macs == sum(cost(branch, (3, 6, 6)).macs for branch in branches) == 36 * 8 * 3 * 10
    assert measured.parameters == sum(p.numel() for branch in branches for p in branch.parameters())


class Mystery(nn.Module):
    def __init__(self, *, parameters: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(parameters))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (Chain(a=nn.Identity(), b=Sum(nn.Identity(), nn.Conv2d(3, 8, 1))), "b"),
        (Chain(b=Sum(nn.Identity(), nn.MaxPool2d(2))), "b"),
        (Chain(b=Concat(nn.Identity(), nn.MaxPool2d(2))), "b"),
        (Chain(b=Product(nn.Identity(), nn.Flatten())), "b"),
        (Chain(b=Concat(nn.Identity(), nn.Flatten())), "b"),
        (Chain(b=Sum(nn.Identity(), deep=Chain(conv=nn.Conv2d(4, 3, 1)))), r"b\.deep\.conv"),
        (Chain(conv=nn.Conv2d(4, 8, 1)), "conv"),
        (Chain(conv=nn.Conv3d(3, 8, 1)), "conv"),
        (Chain(conv=nn.Conv1d(3, 8, 1)), "conv"),
        (Chain(conv=SparseConnectionConv2d(4, ((0,),), kernel=1)), "conv"),
        (Chain(pool=Subsample(4)), "pool"),
        (Chain(norm=nn.BatchNorm2d(4)), "norm"),
        (Chain(norm=nn.GroupNorm(2, 4)), "norm"),
        (Chain(flat=nn.Flatten(), out=nn.Linear(100, 2)), "out"),
        (Chain(out=nn.Linear(3, 2)), "out"),
        (Chain(flat=nn.Flatten(), out=RadialBasis(torch.ones(2, 100))), "out"),
        (Chain(flat=nn.Flatten(2)), "flat"),
        (Chain(conv=nn.Conv2d(3, 8, 7)), "conv"),
        (Chain(conv=nn.Conv2d(3, 8, 3, dilation=3)), "conv"),
        (Chain(pool=nn.MaxPool2d(7)), "pool"),
        (Chain(pool=nn.MaxPool3d(2)), "pool"),
        (Chain(pool=nn.AvgPool1d(2)), "pool"),
        (Chain(flat=nn.Flatten(), pool=nn.MaxPool2d(2)), "pool"),
        (Chain(flat=nn.Flatten(), pool=nn.MaxPool2d((2, 2))), "pool"),
        (Chain(flat=nn.Flatten(), pad=nn.ZeroPad2d(2)), "pad"),
        (Chain(flat=nn.Flatten(), pool=nn.AdaptiveAvgPool2d(1)), "pool"),
        (Chain(a=Chain(odd=Mystery(parameters=3))), r"a\.odd"),
        (Chain(a=Chain(odd=Mystery())), r"a\.odd"),
        (Chain(up=nn.ConvTranspose3d(3, 8, 2)), "up"),
        (nn.ModuleList(), "network"),
    ],
)  # fmt: skip
def test_layer_that_does_not_fit_or_is_unknown_is_refused_by_path(tree: nn.Module, path: str) -> None:
    with pytest.raises(CostError, match=f"^{path} "):
        cost(tree, (3, 6, 6))


def test_shape_is_asked_for_where_it_is_not_known() -> None:
    with pytest.raises(CostError, match=r"give \(channels, height, width\)"):
        cost(nn.ReLU())


def test_shared_module_is_counted_once_in_parameters_and_each_time_in_macs() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    for tree in (Chain(conv, nn.ReLU(), conv), Sum(conv, conv), Chain(Chain(conv), Chain(conv))):
        measured = cost(tree, (3, 6, 6))
        assert measured.parameters == 84
        assert measured.macs == 2 * 36 * 81


def test_repeated_layer_changes_the_shape_each_time() -> None:
    conv = nn.Conv2d(3, 3, 3)
    assert cost(Chain(conv, conv), (3, 6, 6)).output.shape == shape_in_torch(Chain(conv, conv), (3, 6, 6)) == (3, 2, 2)
    assert cost(Concat(conv, conv), (3, 6, 6)).output.shape == (6, 4, 4)


def test_shared_parameter_is_counted_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert cost(Chain(first, second), (4,)).parameters == 16 + 4 + 4


class Repeat(Mystery):
    """A layer of the user's own: twice the channels, 7 MACs an element."""


def test_rule_of_the_user_is_used() -> None:
    @rule.register
    def _(layer: Repeat, x: Signal, tally: Tally) -> Signal:
        return tally.add(layer, x, x.like((2 * x.channels, *x.spatial)), macs=7 * x.size)

    measured = cost(Chain(Repeat(parameters=5), nn.Conv2d(6, 1, 1)), (3, 2, 2))
    assert (measured.macs, measured.parameters, measured.output.shape) == (7 * 12 + 24, 5 + 7, (1, 2, 2))
    assert measured.layers[0].kind == "Repeat"


def test_rule_applies_to_subclasses() -> None:
    class Named(nn.Conv2d):
        pass

    assert cost(Named(3, 8, 1), (3, 2, 2)).macs == 96


def stack(*layers: int | tuple[int, int]) -> nn.Sequential:
    """Return 3x3 convolutions of stride 1 (an int: how many), and pools or convolutions of (kernel, stride)."""
    chain = nn.Sequential()
    for layer in layers:
        if isinstance(layer, int):
            chain.extend(nn.Conv2d(1, 1, 3, padding=1) for _ in range(layer))
        else:
            kernel, stride = layer
            chain.append(nn.MaxPool2d(kernel, stride) if stride > 1 else nn.Conv2d(1, 1, kernel, padding=kernel // 2))
    return chain


ALEXNET = nn.Sequential(nn.Conv2d(1, 1, 11, stride=4, padding=2), *stack((3, 2), (5, 1), (3, 2), 3, (3, 2)))
VGG16 = stack(2, (2, 2), 2, (2, 2), 3, (2, 2), 3, (2, 2), 3, (2, 2))


@pytest.mark.parametrize(
    ("features", "field", "stride"),
    [
        (ALEXNET, 195, 32),
        (VGG16, 212, 32),
        (stack(2), 5, 1),
        (nn.Sequential(nn.Conv2d(1, 1, 3, dilation=2), nn.Conv2d(1, 1, 3, dilation=4)), 13, 1),
        (Chain(Sum(nn.Identity(), stack(2)), Concat(nn.Conv2d(1, 1, 7, padding=3), nn.Identity())), 11, 1),
    ],
    ids=["alexnet", "vgg16", "two 3x3", "dilated", "branches"],
)
def test_receptive_field_is_the_published_one(features: nn.Module, field: int, stride: int) -> None:
    measured = cost(features, (1, 224, 224))
    assert measured.receptive_field == measured.output.receptive_field == (field, field)
    assert measured.output.stride == (stride, stride)


def test_receptive_field_equals_the_pixels_that_change_the_output() -> None:
    features = stack(1, (3, 2), 1, (2, 2)).double()
    x = torch.rand(1, 1, 64, 64, dtype=torch.float64, requires_grad=True)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.uniform_(layer.weight, 0.1, 1)
    smooth = nn.Sequential(
        *(nn.AvgPool2d(m.kernel_size, m.stride) if isinstance(m, nn.MaxPool2d) else m for m in features)
    )
    y = smooth(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    assert x.grad is not None
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert cost(features, (1, 64, 64)).receptive_field[0] == rows[-1] - rows[0] + 1


def test_axes_have_fields_of_their_own() -> None:
    measured = cost(nn.Conv3d(1, 1, (3, 7, 7), stride=(1, 2, 2)), (1, 8, 32, 32))
    assert measured.output.receptive_field == (3, 7, 7)
    assert measured.output.stride == (1, 2, 2)
    assert measured.receptive_field_text == "3 frames x 7 x 7 px"
    assert cost(nn.Conv2d(1, 1, (3, 7)), (1, 32, 32)).receptive_field_text == "3 x 7 px"


@pytest.mark.parametrize("gate", [nn.AdaptiveAvgPool2d(1), nn.Flatten()])
def test_pooled_signal_has_seen_the_whole_image(gate: nn.Module) -> None:
    measured = cost(Chain(nn.Conv2d(1, 1, 3), gate), (1, 9, 9))
    assert measured.output.is_global
    assert measured.receptive_field == (3, 3)


def test_global_gate_leaves_the_field_local() -> None:
    gate = Chain(nn.Conv2d(2, 2, 5), nn.AdaptiveAvgPool2d(1), nn.Sigmoid())
    y = cost(Chain(nn.Conv2d(1, 2, 3), Product(nn.Identity(), gate)), (1, 9, 9)).output
    assert not y.is_global
    assert y.receptive_field == (3, 3)


def shape_of(y: Tensor | Pair) -> tuple[int, ...]:
    return tuple((y.now if isinstance(y, Pair) else y).shape[1:])


@pytest.mark.parametrize(("size", "out", "field"), [(6, 6, 1), (12, 6, 2), (7, 6, 2), (20, 6, 4), (1, 6, 1)])
def test_adaptive_pooling_reads_what_it_covers(size: int, out: int, field: int) -> None:
    measured = cost(Chain(pool=nn.AdaptiveAvgPool2d(out)), (3, size, size))
    assert measured.output.shape == (3, out, out)
    assert measured.receptive_field == (field, field)


def run_macs(network: nn.Module, measured: Cost) -> int:
    """Return the MACs that are really run: a LinkedConv2d runs its full convolution, a RadialBasis no product."""
    total = measured.macs
    for layer in measured.layers:
        module = network.get_submodule(layer.path)
        if isinstance(module, SparseConnectionConv2d):
            total += layer.output.size * module.maps * module.kernel**2 - layer.macs
        elif isinstance(module, RadialBasis):
            total -= layer.macs
    return total


@every_network
def test_numbers_are_those_that_torch_counts_and_shapes_those_of_the_real_outputs(name: str) -> None:
    network = build(name, classes=7, channels=3, device="meta").eval()
    shapes: dict[str, Any] = {}
    for path, module in network.named_modules():
        module.register_forward_hook(lambda _, __, y, path=path: shapes.update({path: shape_of(y)}))
    with FlopCounterMode(display=False) as counter:
        output = network(torch.zeros(2, *network.input_shape, device="meta"))
    measured = cost(network)
    assert (2, *measured.output.shape) == output.shape == (2, 7)
    assert measured.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert counter.get_total_flops() == 2 * 2 * run_macs(network, measured)
    for layer in measured.layers:
        shape = shapes[layer.path]
        parent = network.get_submodule(layer.path.rpartition(".")[0])
        if isinstance(parent, ChannelsLast):
            shape = (shape[-1], *shape[:-1])
        assert layer.output.shape == shape, layer.path


@pytest.mark.parametrize("shape", [(3, 4.5, 4), (3, 0, 4), (3, -2, 4), (True, 4, 4), ("3", 4, 4), (), "344", 5])
def test_shapes_that_are_not_of_positive_integers_are_refused(shape: Any) -> None:
    with pytest.raises(CostError, match=r"the shape must be \(channels, height, width\), integers >= 1, got "):
        cost(nn.ReLU(), shape)


def test_an_output_of_no_pixels_is_refused() -> None:
    with pytest.raises(CostError, match="output sizes must be >= 1, got 0"):
        cost(nn.AdaptiveAvgPool2d(0), (3, 4, 4))


def test_a_class_that_changes_the_forward_pass_of_a_known_one_is_refused() -> None:
    class Sideways(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([layer(x) for layer in self], 1)

    with pytest.raises(CostError, match="forward pass is not that of Sequential"):
        cost(Sideways(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)), (3, 8, 8))


def test_parameters_outside_of_layers_are_refused() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 4, 1))
    chain.register_parameter("loose", nn.Parameter(torch.zeros(5)))
    with pytest.raises(CostError, match="has 21 parameters, but its layers have 16"):
        cost(chain, (3, 8, 8))


def test_receptive_field_is_the_largest_along_each_axis() -> None:
    tree = nn.Sequential(Concat(nn.Conv2d(1, 2, (1, 7), padding="same"), nn.Conv2d(1, 2, (7, 1), padding="same")))
    assert cost(tree, (1, 9, 9)).receptive_field == (7, 7)
