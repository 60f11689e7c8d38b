"""The module of a detector that is exported: one image of any size in, its objects out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.engines.detector_results import locate_keypoints, paste_masks
from convatlas.engines.detector_steps import (
    DROPPED,
    are_large,
    best_of_groups,
    clip_boxes,
    decode_boxes,
    grid_anchors,
    pool_regions,
    resize_bilinear,
    suppress_in_onnx,
)
from convatlas.models.detection.network import RCNN

TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.convatlas.suppress.default: suppress_in_onnx}
"""Operators of our own -> how they are written in ONNX."""

EXAMPLE_SIZE = (97, 131)
"""(height, width) in pixels of the image with which a detector is exported; any other works."""

MIN_SIDE = 1e-2
"""Minimum side in pixels of a predicted box, as in torchvision."""


class DetectorModule(nn.Module):
    """pixels -> resize -> body -> neck -> proposals -> boxes, masks or keypoints, for one image.

    Takes pixels (channels, h, w), 0 to 255, of any size, and the least score of an object, (). Returns boxes (k, 4) in
    pixels of that image, labels (k,) from 0, scores (k,), and masks (k, h, w) uint8, or keypoints (k, points, 3) with
    x, y and the value of the heatmap. k is the number of objects, and may be 0.
    Computes what the network computes for one image; see `detector_results` for masks and keypoints.
    """

    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, preprocessing: Preprocessing) -> None:
        super().__init__()
        if not isinstance(network, RCNN):
            raise TypeError(f"detectors must be of type RCNN, got {type(network).__name__}")
        self.network = network
        transform = network.transform
        self.short_side, self.long_side = transform.min_size[-1], transform.max_size
        self.step = transform.size_divisible
        self.register_buffer("scale", torch.tensor(preprocessing.std).mul_(255).reciprocal_().view(-1, 1, 1))
        self.register_buffer("mean", torch.tensor(transform.image_mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(transform.image_std).view(-1, 1, 1))
        for number, cells in enumerate(self.rpn.anchor_generator.cell_anchors):
            self.register_buffer(f"anchors{number}", cells.float())

    @property
    def head(self) -> Any:
        return self.network.head

    @property
    def rpn(self) -> Any:
        return self.head.rpn

    @property
    def roi_heads(self) -> Any:
        return self.head.roi_heads

    def forward(self, pixels: Tensor, score_threshold: Tensor) -> tuple[Tensor, ...]:
        height, width = pixels.shape[-2:]
        image_size = torch.stack([torch.scalar_tensor(side, dtype=torch.float64) for side in (height, width)])
        batch, resized = self.resize(pixels, image_size)
        features = self.head.pyramid(self.network.maps(batch))
        proposals, are_real = self.propose(features, resized, batch.shape[-2:])
        boxes, labels, scores = self.classify(features, proposals, are_real, resized, score_threshold)
        ratio = (image_size.float() / resized).flip(0)  # horizontal, vertical
        results = [boxes * ratio.repeat(2), labels, scores]
        heads = self.roi_heads
        if heads.has_mask():
            regions = pool_regions(heads.mask_roi_pool, features, boxes)
            masks = heads.mask_predictor(heads.mask_head(regions)).sigmoid()
            masks = masks[torch.arange(labels.shape[0]), labels + 1]
            results.append(paste_masks(masks, results[0], height, width))
        if heads.has_keypoint():
            regions = pool_regions(heads.keypoint_roi_pool, features, boxes)
            heatmaps = heads.keypoint_predictor(heads.keypoint_head(regions))
            found = locate_keypoints(heatmaps, boxes, max_side=self.long_side)
            results.append(found * torch.cat([ratio, ratio.new_ones(1)]))
        return tuple(results)

    def resize(self, pixels: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor]:
        """Return the standardized, resized and padded image (1, channels, H, W), and its size without the padding.

        The size is computed in float64, so that it is that of torchvision's transform in every case.
        """
        factor = torch.minimum(self.short_side / image_size.min(), self.long_side / image_size.max())
        size = (image_size * factor).floor()
        height, width = (_number(each) for each in size.unbind())
        down, right = (_number(each) for each in (size / self.step).ceil().unbind())
        padded = (down * self.step, right * self.step)
        inputs = resize_bilinear((pixels.float() * self.scale - self.mean) / self.std, height, width)[None]
        return F.pad(inputs, (0, padded[1] - width, 0, padded[0] - height)), size.float()

    def propose(self, features: dict[str, Tensor], size: Tensor, padded: Any) -> tuple[Tensor, Tensor]:
        """Return the proposals (n, 4) of a fixed number n, and (n,): whether a row is one."""
        rpn, maps = self.rpn, list(features.values())
        levels = []
        for number, (logits, deltas) in enumerate(zip(*rpn.head(maps), strict=True)):
            rows, columns = logits.shape[-2:]
            cells = getattr(self, f"anchors{number}")
            anchors = grid_anchors(cells, rows, columns, (padded[0] // rows, padded[1] // columns))
            logits = logits[0].permute(1, 2, 0).reshape(-1)
            deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            # a map may have fewer anchors than are kept
            best, where = torch.cat([logits, logits.new_full((rpn.pre_nms_top_n(),), -torch.inf)]).topk(
                rpn.pre_nms_top_n()
            )
            where = torch.where(best > -torch.inf, where, 0)
            levels.append((best, deltas[where], anchors[where]))
        best, deltas, anchors = (torch.stack(values) for values in zip(*levels, strict=True))
        boxes = clip_boxes(decode_boxes(deltas, anchors, rpn.box_coder), size)
        scores = best.sigmoid()
        is_candidate = (best > -torch.inf) & are_large(boxes, rpn.min_size) & (scores >= rpn.score_thresh)
        scores = torch.where(is_candidate, scores, DROPPED)
        scores, where = best_of_groups(boxes, scores, iou=rpn.nms_thresh, count=rpn.post_nms_top_n())
        return boxes.reshape(-1, 4)[where], scores > DROPPED

    def classify(
        self, features: dict[str, Tensor], proposals: Tensor, are_real: Tensor, size: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (k, 4), labels (k,) from 0, and scores (k,), the highest score first."""
        heads = self.roi_heads
        regions = heads.box_head(pool_regions(heads.box_roi_pool, features, proposals))
        logits, deltas = heads.box_predictor(regions)
        boxes = decode_boxes(deltas.unflatten(1, (-1, 4)), proposals[:, None], heads.box_coder)
        # class by class, without the background
        boxes = clip_boxes(boxes, size)[:, 1:].transpose(0, 1)
        scores = logits.softmax(-1)[:, 1:].T
        is_candidate = are_real & are_large(boxes, MIN_SIDE) & (scores > threshold)
        scores = torch.where(is_candidate, scores, DROPPED)
        best, where = best_of_groups(boxes, scores, iou=heads.nms_thresh, count=heads.detections_per_img)
        found = (best > DROPPED).nonzero().flatten()
        best, where = best[found], where[found]
        return boxes.reshape(-1, 4)[where], where // scores.shape[1], best


def _number(value: Tensor) -> Any:
    """Return a whole number >= 1 for sizes of tensors; while the module is exported, a symbol of one."""
    number = value.long().item()
    torch._check(number >= 1)
    return number


def export_program(module: DetectorModule, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """Return the program of a detector for images of any size."""
    height, width = (torch.export.Dim(name, min=2, max=2**16) for name in ("height", "width"))
    pixels = torch.zeros(len(module.mean), *EXAMPLE_SIZE, dtype=dtype)
    return torch.export.export(
        module.eval(), (pixels, torch.tensor(module.roi_heads.score_thresh)),
        dynamic_shapes=({1: height, 2: width}, None), strict=False,
    )  # fmt: skip
