"""Augmentation of whole batches on the device; random numbers are functions of (seed, epoch, sample)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.record import Record, at_least, between, from_up_to
from convatlas.core.resampling import resize
from convatlas.data.augment_ops import (
    MAX_MAGNITUDE,
    Policy,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    apply_operations,
)
from convatlas.data.rng import BatchRandom, Purpose
from convatlas.errors import SpecError

CROP_RATIOS = (3 / 4, 4 / 3)
"""Minimum and maximum width / height of a random crop (Szegedy et al. 2014)."""

CROP_ATTEMPTS = 10
"""Maximum number of random boxes until one is inside the image."""

ERASED_AREA = (0.02, 1 / 3)
"""Minimum and maximum share of an image's area that is erased (Zhong et al. 2017)."""

ERASED_RATIO = 3.3
"""Maximum ratio of the sides of an erased rectangle (Zhong et al. 2017)."""


@dataclass(frozen=True)
class Augment(Record):
    """The augmentations of a batch, in this order.

    min_crop_area: minimum share of an image's area in a random crop, which is resized to the network's input (0.08 for
        ImageNet); 0 uses the images as they are prepared for evaluation.
    flip: flip half of the images horizontally.
    max_shift: maximum shift in pixels along each axis; uncovered pixels get the preprocessing's `fill`.
    policy, magnitude: random operations on color and geometry; the magnitude, at most 30, is that of "rand".
    jitter: maximum relative change of brightness, contrast and saturation; whole images also get a change of hue, of at
        most a tenth of it as a share of the color circle.
    random_erasing: probability that a random rectangle is replaced by the mean of the images.
    mixup, cutmix: parameter alpha of the distribution Beta(alpha, alpha) of the weights with which an image is mixed
        with another one, as a weighted sum or by pasting a rectangle; with both, each is applied to half of the images.
    multi_scale: the short side to which a network resizes a whole image is drawn between (1 - multi_scale) times its
        resolution and its resolution.
    scale_jitter: largest factor f of large-scale jitter of whole images (Ghiasi et al. 2021); 0: none. The factor is
        drawn between 1/f and f, uniformly in its logarithm. Above 1, a random part of the image, 1/factor of each side,
        is resized in its place; below 1, the short side is that much smaller.
    """

    min_crop_area: Annotated[float, between(0, 1)] = 0.0
    flip: bool = False
    max_shift: Annotated[int, at_least(0)] = 0
    policy: Policy = "none"
    magnitude: Annotated[int, between(0, MAX_MAGNITUDE)] = 9
    jitter: Annotated[float, between(0, 1)] = 0.0
    random_erasing: Annotated[float, between(0, 1)] = 0.0
    mixup: Annotated[float, between(0, 10)] = 0.0
    cutmix: Annotated[float, between(0, 10)] = 0.0
    multi_scale: Annotated[float, from_up_to(0, 1)] = 0.0
    scale_jitter: Annotated[float, between(0, 10)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.scale_jitter < 1:
            raise SpecError(f"Augment: scale_jitter must be 0 or in [1, 10], got {self.scale_jitter:g}")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0


def augment_pixels(
    pixels: Tensor, random: BatchRandom, augment: Augment, *, size: int, fill: int = 0, aspects: Tensor | None = None,
    frames: int = 1,
) -> Tensor:  # fmt: skip
    """Return images (batch, channels, size, size), uint8 or float32 from 0 to 255, augmented but not yet mixed.

    pixels: uint8 (batch, channels, h, w), as prepared for evaluation; or with `aspects`, width / height of each image,
        whole images resized to squares, from which random crops are taken.
    frames: number of consecutive images that have the same random numbers: the frames of a clip.
    """
    if aspects is not None:
        flip = random.bernoulli(Purpose.FLIP, 0.5 if augment.flip else 0.0)
        start, extent = random_crops(random, augment.min_crop_area, aspects)
        if frames > 1:
            pixels = crop_and_resize_clips(pixels, start, extent, size=size, flip=flip, frames=frames)
        else:
            pixels = crop_and_resize(pixels.float(), start, extent, size=size, flip=flip)
    elif augment.flip:
        pixels = torch.where(random.bernoulli(Purpose.FLIP, 0.5).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    if augment.max_shift:
        pixels = shift(pixels, random, augment.max_shift, fill)
    if augment.policy != "none":
        pixels = apply_operations(pixels.float(), random, policy=augment.policy, magnitude=augment.magnitude, fill=fill)
    if augment.jitter:
        pixels = jitter_colors(pixels.float(), random, augment.jitter)
    return pixels


def shift(pixels: Tensor, random: BatchRandom, max_shift: int, fill: int) -> Tensor:
    """Move each image by up to `max_shift` pixels along both axes."""
    down, right = (
        (random.uniform(axis) * (2 * max_shift + 1)).long() for axis in (Purpose.SHIFT_DOWN, Purpose.SHIFT_RIGHT)
    )
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels, (max_shift,) * 4, value=fill)
    rows = down.view(-1, 1) + torch.arange(height, device=pixels.device)
    columns = right.view(-1, 1) + torch.arange(width, device=pixels.device)
    batch = torch.arange(len(pixels), device=pixels.device).view(-1, 1, 1)
    # indexing puts the channels last, so the permuted view has the memory format channels_last
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_crops(random: BatchRandom, min_area: float, aspects: Tensor) -> tuple[Tensor, Tensor]:
    """Return random boxes as (start, extent), each (batch, 2) for height and width, as fractions of the image's sides.

    Area and ratio are drawn up to ten times until the box is inside the image; otherwise the box is the largest central
    one of an allowed ratio, as in torchvision's RandomResizedCrop.
    """
    area = torch.stack([random.uniform(Purpose.CROP_AREA + i, min_area, 1.0) for i in range(CROP_ATTEMPTS)])
    low, high = map(math.log, CROP_RATIOS)
    ratio = torch.stack([random.uniform(Purpose.CROP_RATIO + i, low, high) for i in range(CROP_ATTEMPTS)]).exp()
    height, width = (area / ratio * aspects).sqrt(), (area * ratio / aspects).sqrt()
    fits = (height <= 1) & (width <= 1)
    first = fits.int().argmax(0, keepdim=True)
    extent = torch.stack([height.gather(0, first)[0], width.gather(0, first)[0]], 1)
    nearest = aspects.clamp(*CROP_RATIOS)
    fallback = torch.stack([(aspects / nearest).clamp(max=1), (nearest / aspects).clamp(max=1)], 1)
    fitting = fits.any(0)[:, None]
    extent = torch.where(fitting, extent, fallback)
    position = torch.stack([random.uniform(Purpose.CROP_TOP), random.uniform(Purpose.CROP_LEFT)], 1)
    return torch.where(fitting, position, torch.full_like(position, 0.5)) * (1 - extent), extent


def crop_and_resize(pixels: Tensor, start: Tensor, extent: Tensor, *, size: int, flip: Tensor) -> Tensor:
    """Crop a box from each image and resize it to `size` pixels, antialiased: two matrix products for a batch.

    pixels: float (batch, channels, h, w). start, extent: (batch, 2), height and width, as fractions of the image's
        sides. flip: (batch,) bool, whether an image is flipped horizontally.
    """
    height, width = pixels.shape[-2:]
    rows = _filters(start[:, 0] * height, extent[:, 0] * height, height, size)
    columns = _filters(start[:, 1] * width, extent[:, 1] * width, width, size)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ (pixels @ columns[:, None].mT)


def crop_and_resize_clips(
    pixels: Tensor, start: Tensor, extent: Tensor, *, size: int, flip: Tensor, frames: int
) -> Tensor:  # fmt: skip
    """Do as `crop_and_resize`, with boxes of whole pixels: torch resizes frames of a clip in a fraction of the time.

    pixels: uint8 or float (clips x frames, channels, h, w). frames: of a clip, which have the same box.
    """
    sides = torch.tensor(pixels.shape[-2:], device=start.device)
    lengths = (extent[::frames] * sides).round().long().clamp(min=1)
    first = torch.minimum((start[::frames] * sides).round().long(), sides - lengths)
    exact = pixels if pixels.device.type == "cpu" else pixels.float()  # other devices have no kernel for uint8
    clips = [exact.new_empty(0, exact.shape[1], size, size)]  # a rank may have no clip of the last batch
    each = exact.unflatten(0, (len(exact) // frames, frames))
    boxes = torch.cat([first, lengths], 1).tolist()
    for clip, box, mirrored in zip(each, boxes, flip[::frames].tolist(), strict=True):
        top, left, height, width = box
        part = resize(clip[..., top : top + height, left : left + width], (size, size), "bilinear", antialias=True)
        clips.append(part.flip(-1) if mirrored else part)
    return torch.cat(clips)


def _filters(start: Tensor, extent: Tensor, inputs: int, outputs: int) -> Tensor:
    """Return (batch, outputs, inputs): triangle filters as wide as an output pixel, at least an input pixel."""
    scale = (extent / outputs)[:, None, None]
    center = start[:, None, None] + (torch.arange(outputs, device=start.device)[:, None] + 0.5) * scale
    positions = torch.arange(inputs, device=start.device) + 0.5
    weights = (1 - (positions - center).abs() / scale.clamp(min=1)).clamp(min=0)
    # pixels outside of the box have no weight; those on its border have
    inside = (positions > start[:, None, None] - 0.5) & (positions < (start + extent)[:, None, None] + 0.5)
    weights = weights * inside
    return weights / weights.sum(-1, keepdim=True)


def jitter_colors(pixels: Tensor, random: BatchRandom, max_change: float) -> Tensor:
    """Multiply brightness, then contrast, then saturation by a factor from 1 - max_change to 1 + max_change."""
    for adjust, purpose in (
        (adjust_brightness, Purpose.BRIGHTNESS),
        (adjust_contrast, Purpose.CONTRAST),
        (adjust_saturation, Purpose.SATURATION),
    ):
        pixels = adjust(pixels, random.uniform(purpose, 1 - max_change, 1 + max_change))
    return pixels


def erase(inputs: Tensor, random: BatchRandom, probability: float) -> Tensor:
    """Set a random rectangle to 0, the mean of the normalized images, in some of them."""
    area = random.uniform(Purpose.ERASE_AREA, *ERASED_AREA)
    ratio = random.uniform(Purpose.ERASE_RATIO, -math.log(ERASED_RATIO), math.log(ERASED_RATIO)).exp()
    extent = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 1).clamp(max=1)
    start = torch.stack([random.uniform(Purpose.ERASE_TOP), random.uniform(Purpose.ERASE_LEFT)], 1) * (1 - extent)
    hidden = _inside(start, extent, inputs) & random.bernoulli(Purpose.ERASE, probability).view(-1, 1, 1, 1)
    return inputs.masked_fill(hidden, 0)


def _inside(start: Tensor, extent: Tensor, images: Tensor) -> Tensor:
    """Return (batch, 1, h, w): which pixels are in the box of each image, given as fractions of its sides."""
    height, width = images.shape[-2:]
    sides = start.new_tensor((height, width))
    first, last = (start * sides).round(), ((start + extent) * sides).round()
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (rows >= first[:, :1]) & (rows < last[:, :1])
    in_columns = (columns >= first[:, 1:]) & (columns < last[:, 1:])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def mixing_partners(random: BatchRandom, count: int) -> Tensor:
    """Return for each image the index of another one of the `count` training images."""
    return (random.samples + 1 + (random.uniform(Purpose.MIX_PARTNER) * (count - 1)).long()) % count


def mix(inputs: Tensor, others: Tensor, random: BatchRandom, augment: Augment) -> tuple[Tensor, Tensor]:
    """Mix images with others; return them and the weight (batch,) of each image itself.

    mixup (Zhang et al. 2017): weighted sums. cutmix (Yun et al. 2019): a rectangle of the other image is pasted.
    """
    pasted = random.bernoulli(Purpose.MIX_KIND, 0.0 if not augment.cutmix else 0.5 if augment.mixup else 1.0)
    u = random.uniform(Purpose.MIX_WEIGHT)
    weight = torch.where(pasted, _beta(u, augment.cutmix or 1.0), _beta(u, augment.mixup or 1.0))
    side = (1 - weight).sqrt()[:, None].expand(-1, 2)
    center = torch.stack([random.uniform(Purpose.CUT_TOP), random.uniform(Purpose.CUT_LEFT)], 1)
    start = (center - side / 2).clamp(0, 1)
    box = _inside(start, (center + side / 2).clamp(0, 1) - start, inputs)
    own = torch.where(pasted, 1 - box.float().mean((1, 2, 3)), weight)
    blended = torch.lerp(others, inputs, weight.view(-1, 1, 1, 1))
    return torch.where(pasted.view(-1, 1, 1, 1), torch.where(box, others, inputs), blended), own


def _beta(u: Tensor, alpha: float) -> Tensor:
    """Return samples of Beta(alpha, alpha) from uniform ones, by the inverse of its distribution function."""
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, u.cpu().double().numpy())).to(u)
