"""The module that is exported: pixels in, decoded outputs out; and the metadata that go with it."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.weights.modelfile import Header, header_text

PIXELS, PROBABILITIES, OUTPUTS = "pixels", "probabilities", "outputs"
"""Names of the input and the outputs of an exported network."""


class DeployModule(nn.Module):
    """pixels -> normalization -> network -> decoding by the task, calibrated.

    Takes pixels (n, channels, size, size) as `Preprocessing.resize_and_crop` returns them. Returns the decoded outputs
    (probabilities, for classification) and the network's outputs, both (n, outputs).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: Network, header: Header) -> None:
        super().__init__()
        self.network, self.task, self.calibration = network, header.task, header.calibration
        self.preprocessing = header.preprocessing
        mean, std = header.preprocessing.mean, header.preprocessing.std
        self.register_buffer("mean", torch.tensor(mean).mul_(255).view(-1, 1, 1))
        self.register_buffer("scale", torch.tensor(std).mul_(255).reciprocal_().view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.preprocessing.rotate((pixels.float() - self.mean) * self.scale)
        outputs = self.network(inputs)
        return self.task.decode(outputs, self.calibration), outputs


def example_pixels(header: Header, count: int = 2) -> Tensor:
    """Return `count` synthetic images in the shape and type that a network takes."""
    steps = header.preprocessing
    shape = (count, steps.channels, steps.resolution, steps.resolution)
    return (torch.arange(count * steps.channels * steps.resolution**2) % 251).view(shape).to(steps.dtype)


def describe_input(steps: Preprocessing) -> str:
    """Return how an image becomes the input of an exported network, with every rounding, for other programs."""
    size, colors = steps.resolution, {1: "gray", 3: "RGB"}.get(steps.channels, f"{steps.channels} channels")
    smoothing = "antialiased" if steps.antialias and steps.interpolation != "nearest" else "not antialiased"
    border = f"; put a border of {steps.pad} px of value {steps.fill} around it" if steps.pad else ""
    return (
        f"{PIXELS}: {str(steps.dtype).removeprefix('torch.')} (batch, {steps.channels}, {size}, {size}), values in "
        f"[0, 255], {colors}; apply the EXIF orientation; resize ({steps.interpolation}, {smoothing}) the short side "
        f"to {steps.resize} px and the long side to {steps.resize} * long / short px, rounded down; crop {steps.crop} "
        f"x {steps.crop} px from top (height - {steps.crop}) / 2 and left (width - {steps.crop}) / 2, halves rounded "
        f"to the even number{border}"
    )


def describe_header(header: Header) -> dict[str, str]:
    """Return the metadata of an exported network: the header, and separate entries for other programs."""
    steps = header.preprocessing
    return {
        "convatlas": header_text(header),
        "classes": json.dumps(header.classes, ensure_ascii=False),
        "preprocessing": json.dumps(steps.to_plain()),
        "input": describe_input(steps),
        "temperature": repr(header.calibration.temperature),
        "license": header.license,
        "origin": header.training.source or header.name,
    }
