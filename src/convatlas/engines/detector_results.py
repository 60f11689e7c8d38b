"""Masks and keypoints of detected objects, as tensor operations without loops over objects."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to a mask."""

CUBIC = -0.75
"""The parameter of bicubic interpolation in torch (Keys 1981)."""


BORDER = 2
"""Cells around a heatmap that its interpolation reads; they repeat the outermost ones."""


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Resize masks to their boxes, bilinearly, and paste each into an image: (k, height, width) of 0 and 1, uint8.

    masks: probabilities (k, side, side). boxes: (k, 4) in pixels of the image. As `paste_masks_in_image` of
    torchvision: a border of one cell is added, and the corners of the boxes are cut down to whole pixels.
    Needs 6 bytes for each pixel of each mask.
    """
    side = masks.shape[-1] + 2
    center, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    half = half * (side / (side - 2))
    first, last = (center - half).trunc(), (center + half).trunc()
    size = (last - first + 1).clamp(min=1)
    columns = _bilinear_weights(side, first[:, 0], size[:, 0], width)
    rows = _bilinear_weights(side, first[:, 1], size[:, 1], height)
    pasted = rows @ F.pad(masks, (1, 1, 1, 1)) @ columns.transpose(1, 2)
    return (pasted >= MASK_THRESHOLD).to(torch.uint8)


def _bilinear_weights(side: int, first: Tensor, size: Tensor, length: int) -> Tensor:
    """Return (k, length, side): the weights of the cells of a mask in each pixel of an axis; 0 outside of the box.

    first: (k,), the first pixel of the box. size: (k,), its length in pixels.
    """
    offset = torch.arange(length) - first[:, None]
    source = ((offset + 0.5) * (side / size[:, None]) - 0.5).clamp(0, side - 1)
    weights = (1 - (source[..., None] - torch.arange(side)).abs()).clamp(min=0)
    return weights * ((offset >= 0) & (offset < size[:, None]))[..., None]


def locate_keypoints(heatmaps: Tensor, boxes: Tensor, *, max_side: int) -> Tensor:
    """Return the maxima of heatmaps (k, points, side, side) that are resized to their boxes, bicubically.

    boxes: (k, 4), with sides of at most `max_side` pixels. Returns (k, points, 3): x, y in the pixels of the boxes, and
    the value of the heatmap there.
    As `heatmaps_to_keypoints` of torchvision for boxes of up to 2 * side pixels. In larger ones the maximum is searched
    among 2 * side rows and columns, then among all pixels around it: another one may result if the heatmap has two
    maxima of nearly the same value.
    """
    side = heatmaps.shape[-1]
    lengths = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    sizes = lengths.ceil()
    count = 2 * side
    rows, columns = (_spread(sizes[:, axis], count)[:, None] for axis in (1, 0))
    row, column, _ = _maximum(heatmaps, sizes, rows, columns)
    reach = math.ceil(max_side / count)
    around = torch.arange(-reach, reach + 1)
    row, column, value = _maximum(heatmaps, sizes, row[..., None] + around, column[..., None] + around)
    place = torch.stack((column, row), -1) + 0.5
    place = place * (lengths / sizes)[:, None] + boxes[:, None, :2]
    return torch.cat([place, value[..., None]], -1)


def _spread(size: Tensor, count: int) -> Tensor:
    """Return (k, count): all pixels of axes with these sizes, or `count` that are evenly distributed over them."""
    numbers = torch.arange(count)
    evenly = ((numbers + 0.5) * (size[:, None] / count)).floor()
    return torch.where(size[:, None] > count, evenly, numbers.to(evenly))


def _maximum(heatmaps: Tensor, sizes: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, column and value of the maxima of resized heatmaps among some pixels, each (k, points).

    sizes: (k, 2), width and height of the resized heatmaps. rows, columns: (k, 1 or points, n).
    """
    side, n = heatmaps.shape[-1], rows.shape[-1]
    width, height = sizes[:, 0, None, None], sizes[:, 1, None, None]
    down = _bicubic_weights((rows + 0.5) * (side / height) - 0.5, side)
    right = _bicubic_weights((columns + 0.5) * (side / width) - 0.5, side)
    padded = F.pad(heatmaps, (BORDER,) * 4, mode="replicate")
    values = down @ padded @ right.transpose(-1, -2)
    inside = ((rows >= 0) & (rows < height))[..., None] & ((columns >= 0) & (columns < width))[..., None, :]
    value, best = values.masked_fill(~inside, -math.inf).flatten(-2).max(-1)
    shape = (*value.shape, n)
    row = rows.expand(shape).gather(-1, (best // n)[..., None]).squeeze(-1)
    column = columns.expand(shape).gather(-1, (best % n)[..., None]).squeeze(-1)
    return row, column, value


def _bicubic_weights(source: Tensor, side: int) -> Tensor:
    """Return (..., side + 2 * BORDER): the weights of the cells of a padded heatmap at positions (...) in cells."""
    return _cubic((source[..., None] - torch.arange(-BORDER, side + BORDER)).abs())


def _cubic(distance: Tensor) -> Tensor:
    """Return the weight of a cell at a distance in cells (Keys 1981, equation 4, with another parameter)."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
    far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
