"""Activation maximization: the value exceeds that of noise and of images; equal seeds give equal images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.clips import ClipSampling
from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import InputError, SpecError
from convatlas.explanation.activation_maximization import FourierImage, channel_objective, maximize, transform
from convatlas.tasks.explained import Explained
from tiny_networks import build_tiny


def explain(name: str, channels: int = 3) -> tuple[Explained, Tensor]:
    network, _ = build_tiny(name, channels=channels)
    _, *frames, _, size = network.input_shape
    sampling = ClipSampling(frames[0], 8.0) if frames else None
    steps = Preprocessing(size, size, mean=(0.5,) * channels, std=(0.5,) * channels, sampling=sampling)
    pixels = torch.randint(
        0, 256, (8, *steps.item_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Explained(network, steps), pixels


@pytest.mark.parametrize(("name", "channels"), [("lenet5_modern", 3), ("lenet5_modern", 1)])
def test_a_maximized_channel_exceeds_noise_and_images(name: str, channels: int) -> None:
    explained, pixels = explain(name, channels)
    objective = channel_objective(explained, explained.paths[-1], 0)
    found = maximize(explained, objective, "channel 0", pixels[:1], steps=64)
    with torch.no_grad():
        assert found.value > objective(pixels).max()
    assert found.value > found.noise
    assert found.value > found.image
    assert found.pixels.dtype == torch.uint8
    assert found.pixels.shape == pixels.shape[1:]


@pytest.mark.parametrize("name", ["mobilenet_v2", "capsnet_reduced", "r3d_18_small"])
def test_a_maximized_class_exceeds_noise_and_images(name: str) -> None:
    explained, pixels = explain(name)
    found = maximize(explained, lambda x: explained.outputs(explained.inputs(x))[:, 1], "class b", pixels[:1], steps=32)
    with torch.no_grad():
        assert found.value > explained.outputs(explained.inputs(pixels))[:, 1].max()
    assert found.value > found.noise
    assert found.value > found.image


def test_equal_seeds_give_equal_images_and_the_network_does_not_change() -> None:
    explained, pixels = explain("lenet5_modern", 1)
    before = {key: value.clone() for key, value in explained.network.state_dict().items()}
    objective = channel_objective(explained, "stages.0", 0)
    first, again, other = (
        maximize(explained, objective, "channel 0", pixels[:1], steps=3, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.pixels, again.pixels)
    assert first.value == again.value
    assert not torch.equal(first.pixels, other.pixels)
    assert all(torch.equal(value, before[key]) for key, value in explained.network.state_dict().items())
    assert all(parameter.grad is None for parameter in explained.network.parameters())
    assert "Fourier" in first.regularizer
    assert "decorrelated" not in first.regularizer


def test_a_channel_without_gradient_is_refused() -> None:
    stem = Chain(conv=nn.Conv2d(3, 2, 3), act=nn.ReLU())
    nn.init.constant_(stem.conv.bias, -1000)  # type: ignore[arg-type, union-attr]
    network = Network(stem=stem, stages=Chain(), head=nn.Identity(), input_shape=(3, 8, 8)).eval()
    explained = Explained(network, Preprocessing(resize=8, crop=8, mean=(0.5,) * 3, std=(0.5,) * 3))
    with pytest.raises(InputError, match="has a gradient of zero everywhere; choose another channel"):
        maximize(explained, channel_objective(explained, "stem", 0), "channel 0", torch.zeros(1, 3, 8, 8))


def test_bad_layers_and_channels() -> None:
    explained, _ = explain("lenet5_modern", 1)
    with pytest.raises(SpecError, match=r"did you mean stages\.0"):
        channel_objective(explained, "stages.00", 0)
    with pytest.raises(InputError, match=r"channel must be an integer in \[0, 3\]"):
        channel_objective(explained, "stages.0", 4)


def test_clips_are_moved_alike_in_all_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    image = FourierImage((4, 3, 12, 10), generator)
    assert image.pixels().shape == (4, 3, 12, 10)
    still = torch.rand(1, 3, 12, 10).expand(4, -1, -1, -1)
    moved = transform(still, generator)
    assert moved.shape == still.shape
    assert not torch.equal(moved, still)
    assert all(torch.equal(frame, moved[0]) for frame in moved)
