"""TensorFlow's padding "SAME": sizes, values, cost, tracing, folding, export."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.engines.folding import fold_norms
from convatlas.layers.channels import SamePad, same_border
from convatlas.layers.conv import ConvNorm, Padding
from convatlas.models.catalog import build_fresh, spec
from tiny_networks import outputs

SIZES = [(8, 8), (9, 9), (9, 6), (1, 2)]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_border_gives_one_output_for_each_step_and_is_wider_at_the_end(kernel: int, stride: int) -> None:
    for size in range(1, 12):
        before, after = same_border(size, kernel, stride)
        assert after - before in (0, 1)
        assert (size + before + after - kernel) // stride + 1 == math.ceil(size / stride)
        assert before + after < kernel


@pytest.mark.parametrize("kernel", [3, 5, (3, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_convolution_reads_the_pixels_that_tensorflow_reads(
    kernel: int | tuple[int, int], stride: int, size: tuple[int, int]
) -> None:
    """Output (i, j) is the sum over the window that begins at i * stride - before; outside of the map are zeros."""
    layer = ConvNorm(2, 3, kernel=kernel, stride=stride, padding="same", norm=None, act=None)
    x = torch.randn(1, 2, *size)
    got = outputs(layer, x)
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    margin = 8
    padded = F.pad(x, (margin,) * 4)
    top, left = (margin - same_border(n, k, stride)[0] for n, k in zip(size, (rows, columns), strict=True))
    weight: Tensor = layer.get_submodule("conv").weight
    assert got.shape == (1, 3, *(math.ceil(n / stride) for n in size))
    for i in range(got.shape[2]):
        for j in range(got.shape[3]):
            y, x_ = top + i * stride, left + j * stride
            window = padded[0, :, y : y + rows, x_ : x_ + columns]
            expected = (weight * window).sum((1, 2, 3)) + layer.get_submodule("conv").bias
            torch.testing.assert_close(got[0, :, i, j], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("padding", "names"), [("symmetric", ["conv"]), ("same", ["pad", "conv"])])
def test_only_strides_need_a_layer_that_pads(padding: Padding, names: list[str]) -> None:
    def layers(stride: int) -> list[str]:
        layer = ConvNorm(1, 1, stride=stride, padding=padding, norm=None, act=None)
        return [name for name, _ in layer.named_children()]

    assert layers(1) == ["conv"]
    assert layers(2) == names


def test_pooling_does_not_see_the_border() -> None:
    pool = nn.Sequential(SamePad(3, 2, value=float("-inf")), nn.MaxPool2d(3, 2))
    assert pool(torch.full((1, 1, 4, 4), -7.0)).eq(-7).all()


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    small = spec("efficientnet_lite0").scaled(width=0.25, depth=0.25, resolution=33)
    network = build_fresh(small, classes=3, channels=3).train()
    network(torch.randn(4, 3, 33, 33))  # running statistics
    return network.eval()


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (45, 38)])
def test_cost_has_the_shapes_of_the_layers(network: Network, size: tuple[int, int]) -> None:
    shapes: list[tuple[int, ...]] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape[1:])))
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | SamePad)
    ]
    outputs(network, torch.randn(1, 3, *size))
    for hook in hooks:
        hook.remove()
    layers = [layer for layer in cost(network, (3, *size)).layers if layer.kind in ("Conv2d", "SamePad")]
    assert [layer.output.shape for layer in layers] == shapes


@pytest.mark.parametrize("size", [(33, 33), (32, 40)])
def test_traced_and_folded_networks_pad_for_the_size_of_every_input(network: Network, size: tuple[int, int]) -> None:
    x = torch.randn(3, 3, *size)
    expected = outputs(network, x)
    assert torch.equal(outputs(torch.fx.symbolic_trace(network), x), expected)
    torch.testing.assert_close(outputs(fold_norms(network), x), expected)


def test_export_with_any_batch_has_equal_outputs() -> None:
    layers, x = nn.Sequential(ConvNorm(1, 2, stride=2, padding="same"), SamePad(2, 2)).eval(), torch.randn(3, 1, 6, 5)
    exported = torch.export.export(layers, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert torch.equal(outputs(exported, x), outputs(layers, x))
