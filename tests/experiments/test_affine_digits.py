"""The arms and images of the experiments on capsules and channel boosting."""

from __future__ import annotations

import pytest
import torch

from convatlas.core.cost import cost
from convatlas.experiments.claims import capsules, channel_boosting
from convatlas.experiments.materials import Images
from convatlas.models.catalog import build_fresh


def bar() -> Images:
    """A vertical bar of 2 x 10 px in the center."""
    pixels = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
    pixels[:, :, 9:19, 13:15] = 255
    return Images(pixels, torch.zeros(64, dtype=torch.int64), ("bar",))


def mean_and_deviation(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (n, 2) and standard deviation (n, 2) of the mass of each image along y and x, in px of `SIDE`."""
    mass = images.pixels[:, 0].double()
    grid = torch.stack(torch.meshgrid(*[torch.arange(capsules.SIDE).double()] * 2, indexing="ij"))
    total = mass.sum((1, 2))[:, None]
    mean = torch.einsum("nyx,cyx->nc", mass, grid) / total
    return mean, (torch.einsum("nyx,cyx->nc", mass, grid**2) / total - mean**2).sqrt()


def test_moved_digits_keep_their_shape_and_reach_all_shifts() -> None:
    moved = capsules.move(bar(), torch.Generator().manual_seed(0), affine=False)
    mean, deviation = mean_and_deviation(moved)
    scale = capsules.SIDE / 28
    shift = (mean - (capsules.SIDE - 1) / 2) / scale
    assert shift.abs().max() == pytest.approx(capsules.MOVE, abs=0.1)
    assert deviation.std(0).max() < 0.05


def test_affine_digits_have_another_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, deviation = mean_and_deviation(capsules.move(bar(), generator, affine=True))
    assert ((mean - (capsules.SIDE - 1) / 2).abs() < 2.2).all()
    height = deviation[:, 0] / (10 / 12**0.5 * capsules.SIDE / 28)
    assert height.min() < 0.9
    assert height.max() > 1.1


def test_networks_have_equal_parameters() -> None:
    wanted = cost(build_fresh(capsules.SPEC, classes=10, channels=1)).parameters
    assert sum(each.numel() for each in capsules.equal_cnn().parameters()) == pytest.approx(wanted, rel=0.01)


def test_the_wider_base_has_the_multiply_adds_of_the_boosted_network() -> None:
    macs = channel_boosting.macs_of(channel_boosting.BOOSTED)
    assert channel_boosting.macs_of(channel_boosting.wider()) == pytest.approx(macs, rel=0.01)


def test_shuffled_channels_are_those_of_another_image() -> None:
    shuffled = channel_boosting.Shuffled(torch.nn.Identity())
    assert shuffled(torch.arange(3.0)[:, None]).flatten().tolist() == [2, 0, 1]
