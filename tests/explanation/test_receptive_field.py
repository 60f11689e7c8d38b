"""The theoretical receptive field equals the nonzero region of the gradient, unit by unit, borders included."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.compose import Chain, Concat, Product, Sum
from convatlas.core.cost import cost
from convatlas.core.network import Network, feature_map, taps
from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import InputError, SpecError
from convatlas.explanation.receptive_field import (
    layer_signal,
    measure_receptive_field,
    theoretical_region,
    unit_gradient,
)
from convatlas.layers.channels import PadShortcut, SamePad
from convatlas.models.families.boosted import Resize
from convatlas.tasks.explained import Explained
from tiny_networks import build_tiny, of_each_kind

CHANNELS, SIZE = 2, (17, 20)


def random_layer(draw: random.Random) -> nn.Module:
    """Return a layer of random settings, with `CHANNELS` channels in and out."""
    kernel, stride, dilation = draw.randint(1, 4), draw.choice([1, 1, 1, 2, 3]), draw.choice([1, 1, 1, 2, 3])
    padding = draw.randint(0, kernel // 2)
    conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, draw.randint(0, dilation * (kernel - 1)), dilation)
    border = (draw.randint(-1, 2), draw.randint(-1, 2), draw.randint(-1, 2), draw.randint(-1, 2))
    strided = Chain(pad=SamePad(kernel, stride), conv=nn.Conv2d(CHANNELS, CHANNELS, kernel, stride))
    same = nn.Conv2d(CHANNELS, CHANNELS, 2 * kernel + 1, padding="same", dilation=dilation)
    shifted = Concat(nn.Conv2d(CHANNELS, 1, 1, 2), Chain(nn.ZeroPad2d((-1, 1, -1, 1)), nn.Conv2d(CHANNELS, 1, 3, 2, 1)))
    return draw.choice([
        conv, strided, same, shifted, nn.AvgPool2d(kernel, stride, padding, ceil_mode=draw.random() < 0.5),
        nn.ZeroPad2d(border), nn.ConvTranspose2d(CHANNELS, CHANNELS, kernel, stride, padding, 0, 1, True, dilation),
        nn.AdaptiveAvgPool2d((draw.randint(2, 9), draw.randint(2, 9))), Resize((draw.randint(2, 12), 9)),
        PadShortcut(CHANNELS, CHANNELS, stride=stride), Sum(nn.Identity(), same),
        Product(nn.Identity(), nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)),
    ])  # fmt: skip


def random_network(seed: int) -> Network:
    """Return a network of random layers with weights > 0, so that no gradients cancel."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    while len(layers) < 5:
        layer = random_layer(draw)
        try:
            shape = cost(Chain(*layers, layer), (CHANNELS, *SIZE)).output.shape
        except Exception:  # the map is too small for it
            continue
        if min(shape[1:]) > 1 and max(shape[1:]) < 30:
            layers.append(layer)
        elif len(layers) > 2:
            break
    network = Network(stem=Chain(*layers[:2]), stages=Chain(Chain(*layers[2:])), head=nn.Identity(),
                      input_shape=(CHANNELS, *SIZE))  # fmt: skip
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    return network.double().eval()


def nonzero_box(gradient: Tensor) -> Any:
    places = gradient.nonzero()
    if not len(places):
        return None
    return tuple(zip(places.amin(0).tolist(), places.amax(0).tolist(), strict=True))


@pytest.mark.parametrize("seed", range(24))
def test_theoretical_receptive_field_is_the_nonzero_region_of_the_gradient(seed: int) -> None:
    network = random_network(seed)
    x = torch.rand(1, *network.input_shape, dtype=torch.double)
    signal = layer_signal(network, network.input_shape, "stages.0")
    height, width = signal.spatial
    # each axis for itself: all rows in one column, all columns in one row
    units = {(y, min(1, width - 1)) for y in range(height)} | {(height // 2, x) for x in range(width)}
    for unit in sorted(units):
        region = theoretical_region(signal, SIZE, unit)
        empty = any(first > last for first, last in region)
        gradients = [unit_gradient(network, x, "stages.0", c, unit)[0] for c in range(signal.channels)]
        assert (None if empty else region) == nonzero_box(torch.stack(gradients).sum(0)), (unit, str(network))


@of_each_kind()
def test_units_depend_on_no_pixel_outside_of_the_region(name: str) -> None:
    """At the last layer with a map of every network; behind a global gate every unit depends on all pixels a little."""
    network, x = build_tiny(name)
    layer = Explained(network, Preprocessing(resize=48, crop=48)).default_layer
    signal = layer_signal(network, network.input_shape, layer)
    gated = any(each.output.is_global and each.path.startswith("stages") for each in cost(network).layers)
    for unit in {(0,) * len(signal.spatial), tuple(size - 1 for size in signal.spatial)}:
        region = theoretical_region(signal, x.shape[2:], unit)
        gradient = unit_gradient(network, x[:1], layer, 0, unit)[0]
        inside = torch.zeros_like(gradient, dtype=torch.bool)
        inside[tuple(slice(first, last + 1) for first, last in region)] = True
        assert gated or not gradient[~inside].any()


def test_positions_of_every_layer_are_known() -> None:
    """Every layer of the catalog says how it moves positions."""
    for name in ("nasnet_a_mobile", "boosted_resnet18", "efficientnet_lite0", "cifar_resnet20", "i3d", "lenet5"):
        network, _ = build_tiny(name)
        for signal in cost(network).signals.values():
            if len(signal.spatial) == len(network.input_shape) - 1 and not signal.is_global:
                assert tuple(map(len, signal.reach.axes)) == signal.spatial


def explained_resnet() -> tuple[Explained, Tensor]:
    network, _ = build_tiny("resnet18")
    steps = Preprocessing(resize=48, crop=48, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Explained(network, steps), torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)


def test_strongest_channel_and_largest_unit_are_the_defaults() -> None:
    explained, pixels = explained_resnet()
    field = measure_receptive_field(explained, pixels, "stages.1")
    maps = feature_map(taps(explained.network, ["stages.1"], explained.inputs(pixels))["stages.1"])[0]
    assert field.channel == int(maps.flatten(1).std(1, correction=0).argmax())
    assert field.value == pytest.approx(maps[field.channel].max().item())
    assert field.gradient.shape == (48, 48)
    assert field.gradient.max() == 1
    assert 0 < field.effective_share <= 1
    first, last = field.region[0]
    assert not field.gradient[:first].any()
    assert not field.gradient[last + 1 :].any()


def test_rotated_inputs_are_shown_on_the_view_as_it_is() -> None:
    network, _ = build_tiny("mobilenet_v1")
    steps = Preprocessing(resize=48, crop=48, mean=(0.5,) * 3, std=(0.5,) * 3, rotation=180)
    pixels = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    field = measure_receptive_field(Explained(network, steps), pixels, "stem.conv", unit=(0, 3))
    (top, bottom), (left, right) = field.region
    assert field.view_region == ((47 - bottom, 47 - top), (47 - right, 47 - left))
    assert field.cell == ((46, 47), (40, 41))
    assert nonzero_box(field.gradient) == field.view_region


def test_a_unit_that_is_off_has_no_effective_receptive_field() -> None:
    network = Network(
        stem=Chain(conv=nn.Conv2d(3, 2, 3), act=nn.ReLU()), stages=Chain(), head=nn.Identity(), input_shape=(3, 8, 8)
    ).eval()
    nn.init.constant_(network.stem.get_submodule("conv").bias, -100)  # type: ignore[arg-type]
    steps = Preprocessing(resize=8, crop=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    field = measure_receptive_field(Explained(network, steps), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "stem")
    assert field.is_off
    assert field.effective_share == 0
    assert "the unit is off" in field.lines()[-1]


def test_bad_layers_channels_and_units_are_one_line() -> None:
    explained, pixels = explained_resnet()
    with pytest.raises(SpecError, match=r"stages\.9.*did you mean stages\.\d"):
        measure_receptive_field(explained, pixels, "stages.9")
    with pytest.raises(InputError, match=r"channel must be an integer in \[0, 31\] for stages\.1|in \[0, 15\]"):
        measure_receptive_field(explained, pixels, "stages.1", 99)
    with pytest.raises(InputError, match=r"unit must be Y,X with Y in \[0, 5\], X in \[0, 5\] for stages\.1, got 6,0"):
        measure_receptive_field(explained, pixels, "stages.1", 0, (6, 0))
    with pytest.raises(InputError, match=r"got 1,2,3"):
        measure_receptive_field(explained, pixels, "stages.1", 0, (1, 2, 3))
