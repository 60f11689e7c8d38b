"""The filters of the first convolution of every network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.draw.regions import filter_image
from convatlas.errors import SpecError
from convatlas.explanation.filters import first_filters, to_grays
from tiny_networks import build_tiny, of_each_kind


@of_each_kind()
def test_every_network_has_first_filters_that_read_its_input(name: str) -> None:
    network, x = build_tiny(name)
    filters = first_filters(network)
    assert filters.weights.ndim == x.ndim
    assert filters.weights.shape[1] == x.shape[1]
    assert not filters.weights.requires_grad


def test_a_convolution_with_links_is_shown_as_the_full_one() -> None:
    network, _ = build_tiny("lenet5")
    filters = first_filters(network)
    layer = network.get_submodule(filters.path)
    weight = layer.dense() if hasattr(layer, "dense") else layer.weight
    torch.testing.assert_close(filters.weights, weight.detach())


def test_zero_is_mid_gray_and_channels_share_one_scale() -> None:
    weights = torch.tensor([[[-2.0, 0.0]], [[1.0, 2.0]], [[0.0, 0.0]]])
    assert to_grays(weights).tolist() == [[[0.0, 0.5]], [[0.75, 1.0]], [[0.5, 0.5]]]
    assert (to_grays(torch.zeros(1, 3, 3)) == 0.5).all()


def test_images_of_filters() -> None:
    """Three channels are colors; other channels, and frames, are side by side with a gap of one pixel."""
    assert filter_image(torch.rand(3, 5, 5)).shape == (3, 5, 5)
    assert filter_image(torch.rand(1, 5, 5)).shape == (3, 5, 5)
    assert filter_image(torch.rand(4, 5, 5)).shape == (3, 5, 23)
    assert filter_image(torch.rand(3, 7, 5, 5)).shape == (3, 5, 41)


def test_a_network_without_convolutions_is_refused() -> None:
    network = Network(stem=nn.Flatten(), stages=Chain(), head=nn.Linear(12, 2), input_shape=(3, 2, 2))
    with pytest.raises(SpecError, match="must have a convolution"):
        first_filters(network)
