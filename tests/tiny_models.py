"""Models of tiny networks of the catalog, with weights of a fixed seed, and pixels for them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from convatlas.core.clips import ClipSampling
from convatlas.core.preprocessing import Preprocessing
from convatlas.inference.model import Model
from convatlas.tasks.known import task_for
from convatlas.weights.modelfile import Header
from tiny_networks import build_tiny, tiny

CLASSES = tuple("abcdefg")


@cache
def tiny_model(name: str) -> Model:
    """Return the model of a small network of the catalog for seven classes; a test that changes it takes a copy."""
    network, _ = build_tiny(name)
    channels, *frames, _, size = network.input_shape
    steps = Preprocessing(
        size, size, mean=(0.45,) * channels, std=(0.25,) * channels,
        sampling=ClipSampling(frames[0], 8.0) if frames else None,
    )  # fmt: skip
    return Model(network, Header(name, task_for(tiny(name), CLASSES), tiny(name), steps))


def random_pixels(model: Model, count: int = 2) -> Tensor:
    """Return noise of the shape that the model reads."""
    generator = torch.Generator().manual_seed(1)
    shape = (count, *model.header.preprocessing.item_shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
