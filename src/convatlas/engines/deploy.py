"""The module that is exported: pixels in, decoded outputs out; and the metadata that go with it."""

from __future__ import annotations

import json
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convatlas.core.clips import ClipSampling
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs
from convatlas.errors import listed
from convatlas.weights.modelfile import Header, header_text

PIXELS, PROBABILITIES, OUTPUTS = "pixels", "probabilities", "outputs"
"""Names of the input and the outputs of an exported network."""

SCORE_THRESHOLD = "score_threshold"
"""Name of the optional input of an exported detector: objects have a higher score."""

RESULTS = {"boxes": (), "masks": ("masks",), "keypoints": ("keypoints",)}
"""What a detector predicts (`Spec.predicts`) -> the outputs of its export behind boxes, labels and scores."""


class ResultForm(NamedTuple):
    """The type and the sizes of an output of an exported detector, and what it is. Sizes with a name vary."""

    dtype: torch.dtype
    shape: tuple[str | int, ...]
    text: str


RESULT_FORMS = {
    "boxes": ResultForm(torch.float32, ("objects", 4), "x1, y1, x2, y2 in pixels of the image"),
    "labels": ResultForm(torch.int64, ("objects",), "indices of the classes from 0"),
    "scores": ResultForm(torch.float32, ("objects",), "the highest first"),
    "masks": ResultForm(torch.uint8, ("objects", "height", "width"), "1 inside of the object"),
    "keypoints": ResultForm(
        torch.float32, ("objects", "points", 3), "x, y in pixels of the image, and a score that is no probability"
    ),
}
"""The outputs of exported detectors by name; the number of objects may be 0."""


def result_names(header: Header) -> tuple[str, ...]:
    """Return the names of the outputs of an exported detector."""
    return ("boxes", "labels", "scores", *RESULTS[header.spec.predicts])


class DeployModule(nn.Module):
    """pixels -> normalization -> network -> decoding by the task, calibrated.

    Takes pixels (n, *Preprocessing.item_shape) of images or clips, as `Preprocessing.resize_and_crop` returns them.
    Returns the decoded outputs (probabilities, for classification) and the network's outputs, both (n, outputs).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: Network, header: Header) -> None:
        super().__init__()
        self.network, self.task, self.calibration = network, header.task, header.calibration
        self.preprocessing = header.preprocessing
        mean, scale = header.preprocessing.scaling()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        values = self.preprocessing.channels_first(pixels).float()
        inputs = self.preprocessing.rotate((values - self.mean) * self.scale)
        outputs = self.network(inputs)
        return self.task.decode(outputs, self.calibration), outputs


def example_pixels(header: Header, count: int = 2) -> Tensor:
    """Return `count` synthetic images, or clips, in the shape and type that a network takes."""
    shape = (count, *header.preprocessing.item_shape)
    return (torch.arange(prod(shape)) % 251).view(shape).to(header.preprocessing.dtype)


def example_inputs(header: Header, count: int = 2, size: tuple[int, int] | None = None) -> Inputs:
    """Return `count` synthetic images, or clips, as an engine takes them; whole images are a list.

    size: (height, width) of whole images; by default they are a third wider than the resolution of the network.
    """
    steps = header.preprocessing
    if not steps.is_whole:
        return example_pixels(header, count)
    height, width = size or (steps.resolution, round(4 / 3 * steps.resolution))
    values = torch.arange(steps.channels * height * width) % 251
    return [(values + image).view(steps.channels, height, width).to(steps.dtype) for image in range(count)]


def describe_input(steps: Preprocessing) -> str:
    """Return how an image, or a video, becomes the input of an exported network, with every rounding."""
    if steps.is_whole:
        return _describe_whole_input(steps)
    shape = listed(("batch", *steps.item_shape))
    before = "apply the EXIF orientation;" if steps.sampling is None else f"{_describe_sampling(steps.sampling)},"
    border = f"; put a border of {steps.pad} px of value {steps.fill} around it" if steps.pad else ""
    return (
        f"{PIXELS}: {str(steps.dtype).removeprefix('torch.')} ({shape}), values in [0, 255], {_colors(steps)}; "
        f"{before} {_describe_resize(steps)}; crop {steps.crop} x {steps.crop} px from top (height - {steps.crop}) / "
        f"2 and left (width - {steps.crop}) / 2, halves rounded to the even number{border}"
    )


def _describe_resize(steps: Preprocessing) -> str:
    smoothing = "antialiased" if steps.antialias and steps.interpolation != "nearest" else "not antialiased"
    how = f"{steps.interpolation}, {smoothing}"
    if steps.sampling is not None and steps.dtype == torch.uint8:
        how += ", in float32, then rounded, halves to the even number"
    if steps.width is not None:
        return f"resize ({how}) to a height of {steps.resize} px and a width of {steps.width} px"
    return (
        f"resize ({how}) the short side to {steps.resize} px and the long side to {steps.resize} * long / short px, "
        "rounded down"
    )


def _describe_sampling(sampling: ClipSampling) -> str:
    """Return which frames of a video its clips have."""
    frames, last = sampling.frames, sampling.clips - 1
    if last:
        clips = f"{sampling.clips} clips of {frames} frames, whose probabilities are averaged, begin at the frames "
        clips += f"i * (n - {frames}) / {last}, rounded down, for i = 0 to {last}"
    else:
        clips = f"one clip of {frames} frames begins at frame (n - {frames}) / 2, rounded down"
    return (
        f"frame k of n is what the video displays k / {sampling.rate:g} s after its start; {clips}; apply the rotation "
        "of the video; frame by frame"
    )


def _describe_whole_input(steps: Preprocessing) -> str:
    return (
        f"{PIXELS}: {str(steps.dtype).removeprefix('torch.')} ({steps.channels}, height, width), one image of any "
        f"size, values in [0, 255], {_colors(steps)}; apply the EXIF orientation; the network resizes and standardizes "
        f"the image itself; {SCORE_THRESHOLD}: optional, float32 (), objects have a higher score"
    )


def describe_results(header: Header) -> str:
    """Return what the outputs of an exported detector are, for other programs."""
    forms = {name: RESULT_FORMS[name] for name in result_names(header)}
    return "; ".join(
        f"{name}: {str(form.dtype).removeprefix('torch.')} ({listed(form.shape)}), {form.text}"
        for name, form in forms.items()
    )


def _colors(steps: Preprocessing) -> str:
    return {1: "gray", 3: "RGB"}.get(steps.channels, f"{steps.channels} channels")


def describe_header(header: Header) -> dict[str, str]:
    """Return the metadata of an exported network: the header, and separate entries for other programs."""
    steps = header.preprocessing
    return {
        "convatlas": header_text(header),
        "classes": json.dumps(header.classes, ensure_ascii=False),
        "preprocessing": json.dumps(steps.to_plain()),
        "input": describe_input(steps),
        **({"results": describe_results(header)} if steps.is_whole else {}),
        "temperature": repr(header.calibration.temperature),
        "license": header.license,
        "origin": header.training.source or header.name,
    }
