"""Activation maximization: an image that a channel, or a class, has a large value for (Erhan et al. 2009).

Without a regularizer the result is noise at high frequencies. Here it is the one of Olah et al. (2017, "Feature
visualization"): the image is optimized as the coefficients of its Fourier transform, of which low frequencies have the
larger step, in decorrelated colors, and in every step it is shifted, zoomed and rotated a little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, optim
from torch.nn import functional as F

from convatlas.core.network import feature_map, taps
from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import InputError
from convatlas.explanation.receptive_field import check_channel
from convatlas.system.progress import Progress
from convatlas.tasks.explained import Explained

STEPS, LEARNING_RATE = 256, 0.05
"""Default number of steps of Adam, and its learning rate (that of the authors' code, which takes 512 steps)."""

SHIFT, ZOOM, ROTATION = 1 / 16, 0.1, 5.0
"""Largest shift as a share of the side, largest relative change of the size, and largest rotation in degrees."""

NOISE_IMAGES = 8
"""Number of images of uniform noise whose mean value is the baseline."""

MAX_SIDE = 320
"""Side in pixels of the image for networks that read whole images."""

STARTS = (0.01, 0.1, 1.0)
"""Standard deviations of the first coefficients: the first one at which the gradient is not zero is used."""

COLORS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""Square root of the covariance of red, green and blue in ImageNet's images, as the authors' code (lucid) has it."""

REGULARIZER = (
    "Fourier coefficients scaled by 1/frequency, {colors}each step shifted by up to {shift} px, zoomed by up to "
    "{zoom:.0%} and rotated by up to {rotation:g} degrees (Olah et al. 2017)"
)

Objective = Callable[[Any], Tensor]
"""From a batch of pixels, as `Explained.inputs` takes them, to the value (n,) that is maximized."""


@dataclass(frozen=True)
class MaximizedImage:
    """An image that a channel or class has a large value for.

    target: what was maximized, such as "channel 12 of stages.3" or "class bee". pixels: uint8, of the shape of the
    network's view. value: of the target for it. noise: mean of the value over images of uniform noise. image: the value
    for the image that the features are of. regularizer: in words. steps, seed: of the optimization.
    """

    target: str
    pixels: Tensor
    value: float
    noise: float
    image: float
    regularizer: str
    steps: int
    seed: int

    def lines(self) -> list[str]:
        """Return the values, and how the image was computed."""
        return [
            f"{self.target}: {self.value:.3g}; the image of the features {self.image:.3g}, noise {self.noise:.3g}",
            f"regularizer: {self.regularizer}",
            f"{self.steps} steps of Adam, learning rate {LEARNING_RATE}, seed {self.seed}",
        ]

    def to_plain(self) -> dict[str, Any]:
        """Return the values as plain data, without pixels."""
        return {
            "target": self.target, "value": self.value, "noise": self.noise, "image": self.image,
            "regularizer": self.regularizer, "steps": self.steps, "seed": self.seed,
        }  # fmt: skip


def channel_objective(explained: Explained, layer: str, channel: int) -> Objective:
    """Return the mean of a channel over its positions. Raises SpecError or InputError for one that is not there."""
    explained.check_paths([layer], where="features")
    check_channel(channel, explained.shapes[layer][0], layer)

    def objective(pixels: Any) -> Tensor:
        inputs = explained.network.first_inputs(explained.inputs(pixels))
        maps = feature_map(taps(explained.network, [layer], inputs)[layer])
        return maps[:, channel].float().flatten(1).mean(1)

    return objective


def maximize(
    explained: Explained, objective: Objective, target: str, view: Any, *, steps: int = STEPS, seed: int = 0,
    progress: Progress | None = None,
) -> MaximizedImage:  # fmt: skip
    """Return an image that `objective` is large for; equal seeds give equal images.

    target: what the objective is, in words. view: a batch of one, the image that is compared.
    Raises InputError if the objective does not depend on the image at any of the starts, as behind a ReLU that is off.
    """
    shape = item_shape(explained.preprocessing)
    generator = torch.Generator().manual_seed(seed)
    image = FourierImage(shape, generator)
    for start in STARTS:
        image.spectrum = (torch.randn(image.spectrum.shape, generator=generator) * start).requires_grad_()
        if bool(_gradient(objective, image.pixels(), image.spectrum).any()):
            break
    else:
        raise InputError(f"features: {target} has a gradient of zero everywhere; choose another channel")
    optimizer = optim.Adam([image.spectrum], lr=LEARNING_RATE, eps=1e-16)  # gradients may be small
    for step in range(steps):
        transformed = transform(image.pixels(), generator)
        image.spectrum.grad = -_gradient(objective, transformed, image.spectrum)
        optimizer.step()
        if progress:
            progress("maximizing", step + 1, steps)
    with torch.no_grad():
        pixels = image.pixels().round()
        noise = [torch.rand(shape, generator=generator) * 255 for _ in range(NOISE_IMAGES)]
        values = [float(objective(each)) for each in (pixels[None], view, *(each[None] for each in noise))]
    side = shape[-1]
    regularizer = REGULARIZER.format(
        colors="decorrelated colors, " if shape[-3] == 3 else "", shift=max(1, round(SHIFT * side)), zoom=ZOOM,
        rotation=ROTATION,
    )  # fmt: skip
    value, image_value, *noise_values = values
    return MaximizedImage(
        target, pixels.to(torch.uint8), value, sum(noise_values) / len(noise), image_value, regularizer, steps, seed
    )


def item_shape(preprocessing: Preprocessing) -> tuple[int, ...]:
    """Return the shape of the image: that of one input, of whole images a square of at most `MAX_SIDE` pixels."""
    if not preprocessing.is_whole:
        return preprocessing.item_shape
    side = min(MAX_SIDE, preprocessing.resize)
    return (preprocessing.channels, side, side)


def _gradient(objective: Objective, pixels: Tensor, spectrum: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(objective(pixels[None]).sum(), spectrum, allow_unused=True)
    return torch.zeros_like(spectrum) if gradient is None else gradient


class FourierImage:
    """Pixels ([frames,] channels, h, w) from 0 to 255 as the coefficients of a Fourier transform.

    Coefficients are divided by their frequency, as those of natural images are, so that steps of equal size in all
    coefficients are larger at low frequencies. A sigmoid keeps the pixels in their range.
    """

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator) -> None:
        *frames, channels, height, width = shape
        self.shape, self.channels, self.space = shape, channels, (*frames, height, width)
        *others, last = self.space
        axes = [*map(torch.fft.fftfreq, others), torch.fft.rfftfreq(last)]
        frequency = torch.stack(torch.meshgrid(*(axis.square() for axis in axes), indexing="ij")).sum(0).sqrt()
        self.scale = math.sqrt(math.prod(self.space)) / frequency.clamp(min=1 / max(height, width))
        self.spectrum = torch.randn(channels, *frequency.shape, 2, generator=generator) * STARTS[0]

    def pixels(self) -> Tensor:
        """Return the pixels, float32; gradients flow to `spectrum`."""
        coefficients = torch.view_as_complex(self.spectrum.contiguous()) * self.scale
        axes = tuple(range(1, 1 + len(self.space)))
        values: Tensor = torch.fft.irfftn(coefficients, self.space, dim=axes) / 4
        if self.channels == 3:
            colors = torch.tensor(COLORS)
            colors = colors / colors.square().sum(0).sqrt().max()
            values = torch.einsum("oc,c...->o...", colors, values)
        values = values.sigmoid() * 255
        return values.transpose(0, 1) if len(self.space) == 3 else values


def transform(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return pixels ([frames,] channels, h, w) shifted, zoomed and rotated a little; the border is mirrored.

    All frames of a clip are moved alike.
    """
    shift_y, shift_x, zoom, turn = (torch.rand(4, generator=generator) * 2 - 1).tolist()
    height, width = pixels.shape[-2:]
    size, angle = 1 + ZOOM * zoom, math.radians(ROTATION * turn)
    cos, sin = math.cos(angle) / size, math.sin(angle) / size
    # in units of half a side; the ratio keeps rotations rigid where the sides differ
    matrix = torch.tensor([[cos, -sin * height / width, 2 * SHIFT * shift_x],
                           [sin * width / height, cos, 2 * SHIFT * shift_y]])  # fmt: skip
    frames = pixels.reshape(-1, *pixels.shape[-3:])
    grid = F.affine_grid(matrix[None], [1, 1, height, width], align_corners=False).expand(len(frames), -1, -1, -1)
    moved = F.grid_sample(frames, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return moved.reshape(pixels.shape)
