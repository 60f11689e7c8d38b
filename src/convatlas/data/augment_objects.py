"""Augmentation of whole images together with their boxes, masks and keypoints, one image after another.

Geometry is that of torchvision.transforms.v2; all coordinates are distances in pixels from the left and the top edge of
the image. Random numbers are functions of (seed, epoch, sample): images may be augmented in any order, in threads.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.augment import Augment, jitter_colors
from convatlas.data.rng import BatchRandom, Purpose
from convatlas.data.segment_geometry import Box, crop_segments, flip_segments, segment_boxes
from convatlas.tasks.detection.objects import Objects

if TYPE_CHECKING:
    from torchvision import tv_tensors

MIN_AREA = 0.1
"""Minimum share of the area of an object's box that a crop must leave; objects with less are dropped."""

MIN_SIDE = 1.0
"""Minimum height and width, in pixels, of what a crop leaves of an object's box."""

HUE_SHARE = 0.1
"""Maximum change of hue, as a share of the color circle, for each unit of the other changes of color."""


@dataclass(frozen=True)
class Augmented:
    """A training image of a detector.

    image: float32 (channels, h, w) from 0 to 1. short_side: pixels to which the network resizes its short side.
    seed: of the random choice of anchors and proposals.
    """

    image: Tensor
    objects: Objects
    short_side: int
    seed: int


def augment_objects(
    pixels: Tensor,
    objects: Objects,
    random: BatchRandom,
    augment: Augment,
    preprocessing: Preprocessing,
    flip_order: tuple[int, ...] = (),
) -> Augmented:
    """Return an image (channels, h, w) of values from 0 to 255 as the network is trained on it.

    random: of this one sample. flip_order: see `Task.flip_order`.
    """
    share = random.uniform(Purpose.SHORT_SIDE, 1 - augment.multi_scale, 1).item() if augment.multi_scale else 1.0
    factor = _draw_factor(random, augment.scale_jitter)
    if factor > 1:
        pixels, objects = crop(pixels, objects, _draw_box(random, objects.size, factor))
    if augment.flip and random.bernoulli(Purpose.FLIP, 0.5).item():
        pixels, objects = flip(pixels, objects, flip_order)
    (image,) = preprocessing.normalize([pixels])
    if augment.jitter:
        image = jitter_image(image, random, augment.jitter)
    (seed,) = random.keys(Purpose.PROPOSALS)
    return Augmented(image, objects, max(1, round(preprocessing.resize * share * min(factor, 1))), seed)


def _draw_factor(random: BatchRandom, largest: float) -> float:
    """Return the factor of large-scale jitter, between 1 / largest and largest; 1 for 0."""
    if not largest:
        return 1.0
    return math.exp(random.uniform(Purpose.SCALE, -math.log(largest), math.log(largest)).item())


def _draw_box(random: BatchRandom, size: tuple[int, int], factor: float) -> Box:
    """Return a random box of an image (height, width): 1 / factor of each side, rounded."""
    height, width = (max(1, round(side / factor)) for side in size)
    top = int(random.uniform(Purpose.SCALE_TOP).item() * (size[0] - height + 1))
    left = int(random.uniform(Purpose.SCALE_LEFT).item() * (size[1] - width + 1))
    return top, left, height, width


def jitter_image(image: Tensor, random: BatchRandom, max_change: float) -> Tensor:
    """Change brightness, contrast, saturation and hue of an image (channels, h, w) from 0 to 1.

    The first three as `jitter_colors` does; its operations on whole batches are slower for single images.
    """
    from torchvision.transforms.v2 import functional as F

    if len(image) not in (1, 3):
        return jitter_colors(image[None] * 255, random, max_change)[0] / 255
    for adjust, purpose in (
        (F.adjust_brightness, Purpose.BRIGHTNESS),
        (F.adjust_contrast, Purpose.CONTRAST),
        (F.adjust_saturation, Purpose.SATURATION),
    ):
        image = adjust(image, random.uniform(purpose, 1 - max_change, 1 + max_change).item())
    if len(image) == 1:
        return image
    largest = max_change * HUE_SHARE
    return shift_hue(image, random.uniform(Purpose.HUE, -largest, largest).item())


def shift_hue(image: Tensor, turns: float) -> Tensor:
    """Rotate the hue of an RGB image (3, h, w) from 0 to 1 by a share of the color circle.

    The values of torchvision's adjust_hue, but rounding, in a fraction of its time.
    """
    red, green, blue = image
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    share = chroma.clamp(min=1e-12).reciprocal_()
    of_green_or_blue = torch.where(high == green, (blue - red) * share + 2, (red - green) * share + 4)
    hue = torch.where(high == red, (green - blue) * share, of_green_or_blue) + 6 * turns  # six is a whole turn
    channels = []
    for place in (5, 3, 1):
        distance = (hue + place).remainder_(6)
        channels.append(high - torch.minimum(distance, 4 - distance).clamp_(0, 1).mul_(chroma))
    return torch.stack(channels)


def flip(pixels: Tensor, objects: Objects, flip_order: tuple[int, ...] = ()) -> tuple[Tensor, Objects]:
    """Return a horizontally flipped image and its objects: x becomes width - x.

    Keypoints change places with their partners in `flip_order`; those that are not labeled stay at 0.
    """
    from torchvision.transforms.v2 import functional as F

    keypoints, segments = objects.keypoints, objects.segments
    if keypoints is not None:
        keypoints = keypoints[:, list(flip_order)] if flip_order else keypoints
        x, y, visibility = keypoints.unbind(-1)
        keypoints = torch.stack([torch.where(visibility > 0, objects.size[1] - x, x), y, visibility], -1)
    return F.horizontal_flip(pixels), dataclasses.replace(
        objects,
        boxes=F.horizontal_flip(_boxes(objects)).as_subclass(Tensor),
        segments=None if segments is None else flip_segments(segments, objects.size),
        keypoints=keypoints,
    )


def crop(pixels: Tensor, objects: Objects, box: Box) -> tuple[Tensor, Objects]:
    """Return a part of an image and the objects in it. box: (top, left, height, width) in pixels.

    Boxes are clipped; those that are cut are tightened to what is left of their masks. Objects with less than
    `MIN_AREA` of their box or a side below `MIN_SIDE` are dropped; of crowds, which are not trained on, any part is
    kept. Keypoints outside become not labeled. There are no areas, because those of the annotations are of whole
    objects.
    """
    from torchvision.transforms.v2 import functional as F

    top, left, height, width = box
    cropped = dataclasses.replace(
        objects,
        size=(height, width),
        boxes=F.crop(_boxes(objects), top, left, height, width).as_subclass(Tensor),
        segments=None if objects.segments is None else crop_segments(objects.segments, objects.size, box),
        keypoints=None if objects.keypoints is None else _crop_keypoints(objects.keypoints, box),
        areas=None,
    )
    corner = torch.tensor([left, top] * 2)
    cropped = _tightened(cropped, (cropped.boxes != objects.boxes - corner).any(1))
    sides = _sides(cropped.boxes)
    share = sides.prod(1) / _sides(objects.boxes).prod(1).clamp(min=1e-6)
    kept = (sides >= MIN_SIDE).all(1) & (share >= MIN_AREA)
    if objects.crowd is not None:
        kept |= objects.crowd & (sides > 0).all(1)
    return F.crop(pixels, top, left, height, width), cropped.take(kept)


def _tightened(objects: Objects, cut: Tensor) -> Objects:
    """Return objects whose boxes are not larger than what is around their masks, if they are `cut` (k,)."""
    if objects.segments is None:
        return objects
    around = segment_boxes(objects.segments, objects.size)
    low = torch.maximum(objects.boxes[:, :2], around[:, :2])
    high = torch.minimum(objects.boxes[:, 2:], around[:, 2:])
    tight = torch.cat([low, torch.maximum(low, high)], 1)
    return dataclasses.replace(objects, boxes=torch.where(cut[:, None], tight, objects.boxes))


def _crop_keypoints(keypoints: Tensor, box: Box) -> Tensor:
    top, left, height, width = box
    x, y, visibility = keypoints.unbind(-1)
    x, y = x - left, y - top
    visible = (visibility > 0) & (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    return torch.stack([x, y, visibility], -1).masked_fill(~visible[..., None], 0)


def _sides(boxes: Tensor) -> Tensor:
    """Return the width and height (k, 2) of boxes (k, 4)."""
    return boxes[:, 2:] - boxes[:, :2]


def _boxes(objects: Objects) -> tv_tensors.BoundingBoxes:
    from torchvision import tv_tensors

    return tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=objects.size)
