"""The steps of a detector between its layers, as tensor operations without loops over objects.

They compute what torchvision's detectors compute for one image, and can be exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

DROPPED = -1.0
"""The score of what is not a candidate."""


@torch.library.custom_op("convatlas::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression in each of several groups, such as the classes.

    boxes: (groups, n, 4). scores: (groups, n), `DROPPED` for what is not a candidate. iou: of two boxes with a larger
    intersection over union, the one with the lower score is left out. Returns rows (group, index), (m, 2).
    """
    kept = []
    for group, (each, score) in enumerate(zip(boxes, scores, strict=True)):
        candidates = (score > DROPPED).nonzero().flatten()
        best = candidates[torchvision.ops.nms(each[candidates], score[candidates], iou)]
        kept.append(torch.stack([torch.full_like(best, group), best], 1))
    return torch.cat(kept)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 2), dtype=torch.int64)


def suppress_in_onnx(boxes: Any, scores: Any, iou: float) -> Any:
    """`suppress` as ONNX operators: groups are the images of a batch, with one class."""
    from onnxscript import opset20 as op

    rows = op.NonMaxSuppression(
        boxes, op.Unsqueeze(scores, op.Constant(value_ints=[1])), op.Constant(value_ints=[2**31 - 1]),
        op.Constant(value_floats=[iou]), op.Constant(value_floats=[DROPPED / 2]),
    )  # fmt: skip
    return op.Gather(rows, op.Constant(value_ints=[0, 2]), axis=1)


def best_of_groups(boxes: Tensor, scores: Tensor, *, iou: float, count: int) -> tuple[Tensor, Tensor]:
    """Return (scores, indices) of the best boxes of all groups together after suppression, both (count,).

    boxes: (groups, n, 4). scores: (groups, n). The index of a box is group * n + number; where there are fewer boxes,
    the score is `DROPPED` and the index 0.
    """
    rows = suppress(boxes, scores, iou)
    indices = rows[:, 0] * scores.shape[1] + rows[:, 1]
    flat = scores.reshape(-1)
    kept = torch.full_like(flat, DROPPED).index_put((indices,), flat[indices])
    best, where = torch.cat([kept, kept.new_full((count,), DROPPED)]).topk(count)
    return best, torch.where(best > DROPPED, where, 0)


def resize_bilinear(image: Tensor, height: int, width: int) -> Tensor:
    """Resize an image (..., h, w) to (..., height, width), not antialiased.

    The positions are computed as `interpolate` of torch does. Those of ONNX's operator Resize are rounded otherwise,
    which adds visible noise where large images become small.
    """
    for axis, length in ((-1, width), (-2, height)):
        before = image.shape[axis]
        step = torch.scalar_tensor(before, dtype=torch.float32) / torch.scalar_tensor(length, dtype=torch.float32)
        source = (step * (torch.arange(length) + 0.5) - 0.5).clamp(min=0)
        first = source.floor()
        weight = (source - first).view(-1, *[1] * (-1 - axis))
        first = first.long()
        image = (
            image.index_select(axis, first) * (1 - weight)
            + image.index_select(axis, (first + 1).clamp(max=before - 1)) * weight
        )
    return image


def decode_boxes(deltas: Tensor, boxes: Tensor, coder: Any) -> Tensor:
    """Apply predicted changes to boxes (Girshick et al. 2014, appendix C): (..., 4) and (..., 4) in, (..., 4) out.

    coder: torchvision's `BoxCoder`, whose weights and limit are used.
    """
    x, y, w, h = (deltas[..., i] / weight for i, weight in enumerate(coder.weights))
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    center_x = x * width + (boxes[..., 0] + 0.5 * width)
    center_y = y * height + (boxes[..., 1] + 0.5 * height)
    half_w = 0.5 * (w.clamp(max=coder.bbox_xform_clip).exp() * width)
    half_h = 0.5 * (h.clamp(max=coder.bbox_xform_clip).exp() * height)
    return torch.stack((center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h), -1)


def clip_boxes(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip boxes (..., 4) to an image of size (height, width)."""
    corners = boxes.unflatten(-1, (2, 2))
    return torch.minimum(corners.clamp(min=0), size.flip(0)).flatten(-2)


def are_large(boxes: Tensor, side: float) -> Tensor:
    """Return (...): whether both sides of boxes (..., 4) have at least this length in pixels."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(-1)


def grid_anchors(cells: Tensor, rows: int, columns: int, stride: tuple[int, int]) -> Tensor:
    """Return the anchors of a map, (rows * columns * anchors, 4).

    cells: (anchors, 4), those of the first cell. stride: (vertical, horizontal) in pixels.
    """
    y, x = torch.meshgrid(torch.arange(rows) * stride[0], torch.arange(columns) * stride[1], indexing="ij")
    return (torch.stack((x, y, x, y), -1).to(cells)[:, :, None] + cells).reshape(-1, 4)


def pool_regions(align: Any, features: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
    """Pool regions of one image: boxes (n, 4) in, (n, channels, side, side) out.

    align: torchvision's `MultiScaleRoIAlign`, which knows its scales; each box is pooled from the level that fits its
    size (Lin et al. 2017, equation 1).
    """
    maps = [features[name] for name in align.featmap_names if name in features]
    regions = F.pad(boxes, (1, 0))  # the number of the image in front
    if len(maps) == 1:
        return _align(align, maps[0], regions, align.scales[0])
    levels = _levels_of(align.map_levels, boxes)
    rows = [(levels == number).nonzero().flatten() for number in range(len(maps))]
    pooled = [
        _align(align, each, regions[row], scale) for each, row, scale in zip(maps, rows, align.scales, strict=True)
    ]
    joined = torch.cat(pooled)
    return joined.new_zeros((boxes.shape[0], *joined.shape[1:])).index_put((torch.cat(rows),), joined)


def _align(align: Any, features: Tensor, regions: Tensor, scale: float) -> Tensor:
    pooled: Tensor = torchvision.ops.roi_align(features, regions, align.output_size, scale, align.sampling_ratio)
    return pooled


def _levels_of(mapper: Any, boxes: Tensor) -> Tensor:
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = (mapper.lvl0 + (sides / mapper.s0).log2() + mapper.eps).floor()
    numbers: Tensor = levels.clamp(mapper.k_min, mapper.k_max) - mapper.k_min
    return numbers
