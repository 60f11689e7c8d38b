"""Random changes to training images, in whole batches on the device; each is a function of (seed, epoch, sample)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.data.rng import derive_key, uniform
from convatlas.errors import SpecError

Policy = Literal["none", "trivial", "rand"]
"""trivial: one operation of random strength (Müller, Hutter 2021); rand: two of strength `magnitude` (Cubuk 2020)."""

RATIOS = (3 / 4, 4 / 3)
"""The bounds of width over height of a random crop (Szegedy et al. 2014)."""

ERASED = (0.02, 1 / 3)
"""The bounds of the share of an image that is erased (Zhong et al. 2017)."""


@dataclass(frozen=True)
class Augment:
    """What is done to the images of a batch, in this order.

    min_crop_area: smallest share of an image's area that a random crop shows, resized to the network's input (0.08 for
        ImageNet); 0 takes the images as they are prepared for evaluation.
    flip: left and right are exchanged in half of the images.
    max_shift: up to so many pixels up, down, left and right; what moves in is the preprocessing's `fill`.
    policy, magnitude: random operations on color and geometry; magnitude, of 30, is for "rand".
    jitter: brightness, contrast and saturation change by up to this share.
    random_erasing: share of the images in which a random rectangle is painted with the mean of the images.
    mixup, cutmix: the parameter of the beta distribution of the shares in which an image is mixed with another one, as
        a whole or by pasting a rectangle; with both, each is done to half of the images.
    """

    min_crop_area: float = 0.0
    flip: bool = False
    max_shift: int = 0
    policy: Policy = "none"
    magnitude: int = 9
    jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.max_shift < 0:
            raise SpecError(f"augment.max_shift: a number of pixels from 0 on, not {self.max_shift}")
        if self.policy not in get_args(Policy):
            raise SpecError(f"augment.policy: {self.policy!r} is not one of {', '.join(get_args(Policy))}")
        for name, high in {
            "min_crop_area": 1,
            "jitter": 1,
            "random_erasing": 1,
            "magnitude": 30,
            "mixup": 10,
            "cutmix": 10,
        }.items():
            if not 0 <= getattr(self, name) <= high:
                raise SpecError(f"augment.{name}: {getattr(self, name)} is not between 0 and {high}")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class BatchRandom:
    """The random numbers of one batch: `samples` are the images' numbers in the training split."""

    samples: Tensor
    seed: int
    epoch: int

    def uniform(self, purpose: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return a number in [low, high) for each image; the same for the same purpose."""
        return uniform(derive_key(self.seed, self.epoch, purpose), self.samples) * (high - low) + low

    def chosen(self, purpose: int, share: float) -> Tensor:
        """Return whether each image belongs to a random share of them."""
        return self.uniform(purpose) < share


# what a random number is for; numbers that are in use must not change their meaning, or runs would not be repeated
FLIP, DOWN, RIGHT, AREA, RATIO, LEFT, TOP = 1, 2, 3, 20, 40, 60, 61
BRIGHT, CONTRAST, COLOR, ERASE, ERASE_AREA, ERASE_RATIO, ERASE_X, ERASE_Y = 62, 63, 64, 65, 66, 67, 68, 69
PARTNER, SHARE, KIND, CUT_X, CUT_Y, OPERATION, STRENGTH, SIGN = 70, 71, 72, 73, 74, 80, 90, 100
TRIES = 10


def changed(
    pixels: Tensor, random: BatchRandom, augment: Augment, *, size: int, fill: int = 0, aspects: Tensor | None = None
) -> Tensor:
    """Return images (batch, channels, size, size), uint8 or float32 from 0 to 255, changed but not yet mixed.

    pixels: uint8 (batch, channels, h, w), as prepared for evaluation; or with `aspects`, width over height of each
    image, whole images squeezed into squares, of which random crops are taken.
    """
    if aspects is not None:
        flipped = random.chosen(FLIP, 0.5 if augment.flip else 0.0)
        pixels = resized(pixels.float(), *crops(random, augment.min_crop_area, aspects), size=size, flipped=flipped)
    elif augment.flip:
        pixels = torch.where(random.chosen(FLIP, 0.5).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    if augment.max_shift:
        pixels = shifted(pixels, random, augment.max_shift, fill)
    if augment.policy != "none":
        pixels = operated(pixels.float(), random, augment, fill)
    if augment.jitter:
        pixels = jittered(pixels.float(), random, augment.jitter)
    return pixels


def shifted(pixels: Tensor, random: BatchRandom, most: int, fill: int) -> Tensor:
    """Move each image by up to `most` pixels along both axes."""
    down, right = ((random.uniform(axis) * (2 * most + 1)).long() for axis in (DOWN, RIGHT))
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels, (most,) * 4, value=fill)
    rows = down.view(-1, 1) + torch.arange(height, device=pixels.device)
    columns = right.view(-1, 1) + torch.arange(width, device=pixels.device)
    batch = torch.arange(len(pixels), device=pixels.device).view(-1, 1, 1)
    # indexing puts the channels last; the permuted view is what channels_last networks want
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def crops(random: BatchRandom, smallest: float, aspects: Tensor) -> tuple[Tensor, Tensor]:
    """Return random boxes as (start, extent), each (batch, 2) for height and width, in shares of the image.

    Area and ratio are drawn up to ten times until the box is inside the image; else the largest box in the middle
    whose ratio is allowed is taken, as torchvision's RandomResizedCrop does.
    """
    area = torch.stack([random.uniform(AREA + i, smallest, 1.0) for i in range(TRIES)])
    low, high = map(math.log, RATIOS)
    ratio = torch.stack([random.uniform(RATIO + i, low, high) for i in range(TRIES)]).exp()
    height, width = (area / ratio * aspects).sqrt(), (area * ratio / aspects).sqrt()
    fits = (height <= 1) & (width <= 1)
    first = fits.int().argmax(0, keepdim=True)
    extent = torch.stack([height.gather(0, first)[0], width.gather(0, first)[0]], 1)
    middle = aspects.clamp(*RATIOS)  # the nearest ratio that is allowed
    fallback = torch.stack([(aspects / middle).clamp(max=1), (middle / aspects).clamp(max=1)], 1)
    found = fits.any(0)[:, None]
    extent = torch.where(found, extent, fallback)
    place = torch.stack([random.uniform(TOP), random.uniform(LEFT)], 1)
    return torch.where(found, place, torch.full_like(place, 0.5)) * (1 - extent), extent


def resized(pixels: Tensor, start: Tensor, extent: Tensor, *, size: int, flipped: Tensor) -> Tensor:
    """Cut a box out of each image and resize it to `size` pixels, antialiased: two products of matrices for a batch.

    pixels: float (batch, channels, h, w). start, extent: (batch, 2), height and width, in shares of the image.
    flipped: whether left and right are exchanged.
    """
    height, width = pixels.shape[-2:]
    rows = _filters(start[:, 0] * height, extent[:, 0] * height, height, size)
    columns = _filters(start[:, 1] * width, extent[:, 1] * width, width, size)
    columns = torch.where(flipped[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ (pixels @ columns[:, None].mT)


def _filters(start: Tensor, extent: Tensor, inputs: int, outputs: int) -> Tensor:
    """Return (batch, outputs, inputs): the weights of a triangle as wide as an output pixel, or as an input pixel."""
    scale = (extent / outputs)[:, None, None]
    center = start[:, None, None] + (torch.arange(outputs, device=start.device)[:, None] + 0.5) * scale
    places = torch.arange(inputs, device=start.device) + 0.5
    weights = (1 - (places - center).abs() / scale.clamp(min=1)).clamp(min=0)
    # what is outside of the box is not seen; a box that ends within a pixel sees that pixel
    inside = (places > start[:, None, None] - 0.5) & (places < (start + extent)[:, None, None] + 0.5)
    weights = weights * inside
    return weights / weights.sum(-1, keepdim=True)


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """other + factor (pixels - other), within 0 to 255."""
    return torch.lerp(other.expand_as(pixels), pixels, factor.view(-1, 1, 1, 1)).clamp(0, 255)


def gray(pixels: Tensor) -> Tensor:
    """Return the brightness (batch, 1, h, w): the luma of ITU-R 601 of three channels, the mean of others."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    weights = pixels.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True)


def bright(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(pixels, torch.zeros_like(pixels[:, :1]), factor)


def contrasted(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(pixels, gray(pixels).mean((2, 3), keepdim=True), factor)


def saturated(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(pixels, gray(pixels), factor)


def jittered(pixels: Tensor, random: BatchRandom, most: float) -> Tensor:
    """Change brightness, then contrast, then saturation, each by a factor from 1 - most to 1 + most."""
    for change, purpose in ((bright, BRIGHT), (contrasted, CONTRAST), (saturated, COLOR)):
        pixels = change(pixels, random.uniform(purpose, 1 - most, 1 + most))
    return pixels


def erased(inputs: Tensor, random: BatchRandom, share: float) -> Tensor:
    """Set a random rectangle to 0, the mean of the normalized images, in a share of them."""
    area = random.uniform(ERASE_AREA, *ERASED)
    ratio = random.uniform(ERASE_RATIO, -math.log(3.3), math.log(3.3)).exp()
    extent = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 1).clamp(max=1)
    start = torch.stack([random.uniform(ERASE_Y), random.uniform(ERASE_X)], 1) * (1 - extent)
    hidden = _inside(start, extent, inputs) & random.chosen(ERASE, share).view(-1, 1, 1, 1)
    return inputs.masked_fill(hidden, 0)


def _inside(start: Tensor, extent: Tensor, images: Tensor) -> Tensor:
    """Return (batch, 1, h, w): which pixels lie in the box of each image, given in shares of its sides."""
    height, width = images.shape[-2:]
    sides = start.new_tensor((height, width))
    first, last = (start * sides).round(), ((start + extent) * sides).round()
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (rows >= first[:, :1]) & (rows < last[:, :1])
    in_columns = (columns >= first[:, 1:]) & (columns < last[:, 1:])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def partners(random: BatchRandom, count: int) -> Tensor:
    """Return for each image the number of another one of the `count` training images."""
    return (random.samples + 1 + (random.uniform(PARTNER) * (count - 1)).long()) % count


def mixed(inputs: Tensor, others: Tensor, random: BatchRandom, augment: Augment) -> tuple[Tensor, Tensor]:
    """Mix images with others; return them and the share (batch,) of each that is its own.

    mixup (Zhang et al. 2017): weighted sums. cutmix (Yun et al. 2019): a rectangle of the other is pasted.
    """
    pasted = random.chosen(KIND, 0.0 if not augment.cutmix else 0.5 if augment.mixup else 1.0)
    u = random.uniform(SHARE)
    share = torch.where(pasted, _beta(u, augment.cutmix or 1.0), _beta(u, augment.mixup or 1.0))
    side = (1 - share).sqrt()[:, None].expand(-1, 2)
    center = torch.stack([random.uniform(CUT_Y), random.uniform(CUT_X)], 1)
    start = (center - side / 2).clamp(0, 1)
    box = _inside(start, (center + side / 2).clamp(0, 1) - start, inputs)
    own = torch.where(pasted, 1 - box.float().mean((1, 2, 3)), share)
    whole = torch.lerp(others, inputs, share.view(-1, 1, 1, 1))
    return torch.where(pasted.view(-1, 1, 1, 1), torch.where(box, others, inputs), whole), own


def _beta(u: Tensor, alpha: float) -> Tensor:
    """Return numbers of the distribution Beta(alpha, alpha) from uniform ones."""
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, u.cpu().double().numpy())).to(u)


# --- the operations of TrivialAugment and RandAugment

Color = Callable[[Tensor, Tensor], Tensor]


def sharpened(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed copy; its border stays, as Pillow has it."""
    kernel = pixels.new_tensor(((1, 1, 1), (1, 5, 1), (1, 1, 1))).div_(13).expand(pixels.shape[1], 1, 3, 3)
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(pixels, kernel, groups=pixels.shape[1])
    return _blend(pixels, smooth, factor)


def posterized(pixels: Tensor, bits: Tensor) -> Tensor:
    step = torch.pow(2, 8 - bits.round()).view(-1, 1, 1, 1)
    return (pixels / step).floor() * step


def solarized(pixels: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(pixels >= threshold.view(-1, 1, 1, 1), 255 - pixels, pixels)


def autocontrasted(pixels: Tensor, _: Tensor) -> Tensor:
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(high > low, (pixels - low) * (255 / (high - low).clamp(min=1e-6)), pixels)


def equalized(pixels: Tensor, _: Tensor) -> Tensor:
    """Spread the values of each channel so that all are about equally frequent."""
    n, c, h, w = pixels.shape
    values = pixels.round().clamp(0, 255).long().view(n * c, h * w)
    counts = torch.zeros(n * c, 256, device=pixels.device, dtype=torch.long)
    counts.scatter_add_(1, values, torch.ones_like(values))
    last = counts.gather(1, values.amax(1, keepdim=True))
    step = (h * w - last) // 255
    table = ((counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)).clamp(0, 255)
    spread = table.gather(1, values).to(pixels.dtype).view_as(pixels)
    return torch.where((step > 0).view(n, c, 1, 1), spread, pixels)


@dataclass(frozen=True)
class Operation:
    """A change of colors, with its strength at magnitude 0 and 1; or of geometry, as an entry of a 2x3 matrix."""

    name: str
    low: float
    high: float
    signed: bool = False
    color: Color | None = None
    place: tuple[int, int] | None = None


# the spaces of RandAugment and, in the last column, of TrivialAugment's wide one where it differs
OPERATIONS: tuple[Operation, ...] = (
    Operation("identity", 0, 0),
    Operation("shear x", 0, 0.3, signed=True, place=(0, 1)),
    Operation("shear y", 0, 0.3, signed=True, place=(1, 0)),
    Operation("translate x", 0, 0.9, signed=True, place=(0, 2)),  # of half the side
    Operation("translate y", 0, 0.9, signed=True, place=(1, 2)),
    Operation("rotate", 0, math.radians(30), signed=True),
    Operation("brightness", 0, 0.9, signed=True, color=bright),
    Operation("color", 0, 0.9, signed=True, color=saturated),
    Operation("contrast", 0, 0.9, signed=True, color=contrasted),
    Operation("sharpness", 0, 0.9, signed=True, color=sharpened),
    Operation("posterize", 8, 4, color=posterized),
    Operation("solarize", 255, 0, color=solarized),
    Operation("autocontrast", 0, 0, color=autocontrasted),
    Operation("equalize", 0, 0, color=equalized),
)
WIDE = {"shear x": 0.99, "shear y": 0.99, "translate x": 0.29, "translate y": 0.29, "rotate": math.radians(135),
        "brightness": 0.99, "color": 0.99, "contrast": 0.99, "sharpness": 0.99, "posterize": 2}  # fmt: skip
"""The strength at magnitude 1 in TrivialAugment (wide), where it differs."""


def operated(pixels: Tensor, random: BatchRandom, augment: Augment, fill: int) -> Tensor:
    """Apply random operations to each image: one of random strength, or two of the given one."""
    for turn in range(1 if augment.policy == "trivial" else 2):
        number = (random.uniform(OPERATION + turn) * len(OPERATIONS)).long()
        if augment.policy == "trivial":
            magnitude = random.uniform(STRENGTH + turn)
        else:
            magnitude = torch.full_like(random.uniform(STRENGTH), augment.magnitude / 30)
        sign = torch.where(random.chosen(SIGN + turn, 0.5), -1.0, 1.0)
        matrix = torch.eye(2, 3, device=pixels.device).repeat(len(pixels), 1, 1)
        for i, operation in enumerate(OPERATIONS):
            rows = (number == i).nonzero().flatten()
            if not len(rows):
                continue
            high = WIDE.get(operation.name, operation.high) if augment.policy == "trivial" else operation.high
            strength = operation.low + magnitude[rows] * (high - operation.low)
            strength = strength * sign[rows] if operation.signed else strength
            if operation.color:
                factor = 1 + strength if operation.signed else strength
                pixels = pixels.index_copy(0, rows, operation.color(pixels[rows], factor))
            elif operation.place:
                matrix[rows, operation.place[0], operation.place[1]] += strength
            elif operation.name == "rotate":
                cos, sin = strength.cos(), strength.sin()
                matrix[rows, :, :2] = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        moved = (matrix != torch.eye(2, 3, device=pixels.device)).flatten(1).any(1).nonzero().flatten()
        if len(moved):
            grid = F.affine_grid(matrix[moved], [len(moved), *pixels.shape[1:]], align_corners=False)
            turned = F.grid_sample(pixels[moved] - fill, grid, mode="bilinear", align_corners=False) + fill
            pixels = pixels.index_copy(0, moved, turned)
    return pixels.clamp(0, 255)
