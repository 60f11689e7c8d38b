"""Building blocks: layers, shapes and shortcuts of inverted residuals, heads, Inception rows and drop rates."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from convatlas.layers.channels import linear_drop_rates
from convatlas.layers.conv import ConvNorm
from convatlas.layers.heads import pooled, pooled_layers
from convatlas.layers.inception import ReductionRow, build_stages, module_paths, tower, widths_after
from convatlas.layers.mbconv import FusedMBConv, MBConv, mbconv_layers

conv = partial(ConvNorm, act=nn.ReLU6)
x = torch.randn(2, 8, 9, 9)


@pytest.mark.parametrize(("middle", "names"), [(8, ["depthwise", "project"]), (24, ["expand", "depthwise", "project"])])
def test_mbconv_expands_if_the_middle_is_wider(middle: int, names: list[str]) -> None:
    block = MBConv(8, middle, 8, conv=conv)
    assert [name for name, _ in block["body"].named_children()] == names == mbconv_layers(expanded=middle != 8)
    assert block(x).shape == x.shape


@pytest.mark.parametrize(("outputs", "stride", "skip"), [(8, 1, True), (8, 2, False), (16, 1, False)])
@pytest.mark.parametrize("kind", [MBConv, FusedMBConv])
def test_shortcut_exists_if_the_shape_does_not_change(
    kind: type[MBConv] | type[FusedMBConv], outputs: int, stride: int, skip: bool
) -> None:
    block = kind(8, 24, outputs, conv=conv, kernel=3, stride=stride)
    assert ("skip" in block) == skip
    size = -(-9 // stride)
    assert block(x).shape == (2, outputs, size, size)


def test_mbconv_without_shortcut() -> None:
    assert "skip" not in MBConv(8, 24, 8, conv=conv, skip=False)


def test_fused_mbconv_without_expansion_is_one_convolution_with_activation() -> None:
    block = FusedMBConv(8, 8, 8, conv=conv, kernel=3, stride=1)
    assert (
        [name for name, _ in block["body"].named_children()] == ["expand"] == mbconv_layers(expanded=False, fused=True)
    )
    assert [name for name, _ in block.get_submodule("body.expand").named_children()] == ["conv", "norm", "act"]


def test_pooled_layers_are_those_of_the_head() -> None:
    layers = pooled_layers(8, 3, dropout=0.2)
    assert list(layers) == ["pool", "flat", "drop", "out"] == [n for n, _ in pooled(8, 3, dropout=0.2).named_children()]


def test_drop_rates_are_linear_from_zero() -> None:
    assert linear_drop_rates(0.2, 4) == pytest.approx([0.0, 0.05, 0.1, 0.15])


def test_reductions_have_the_width_that_the_row_computes() -> None:
    stages = ((ReductionRow((4,), (3, 5, 6)),), (ReductionRow((2, 4), (3, 3, 5, 6), seven=True),))
    tree = build_stages(stages, 8)
    y, widths = torch.randn(1, 8, 19, 19), widths_after(stages, 8)
    for stage, width in zip(tree, widths, strict=True):
        y = stage(y)
        assert y.shape[1] == width
    assert module_paths(stages) == ["0.0", "1.0"]


def test_tower_halves_without_padding_in_the_last_convolution() -> None:
    assert tower(8, (4, 6), (1, 3), stride=2)(x).shape == (2, 6, 4, 4)
    assert tower(8, (4, 6), (1, 3))(x).shape == (2, 6, 9, 9)
