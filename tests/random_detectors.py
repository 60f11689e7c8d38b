"""Detectors with random weights that find objects: scores, boxes, masks and heatmaps are spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.network import Network
from convatlas.models.detection.variants import preprocessing_of
from convatlas.models.families.rcnn import FasterRCNN
from convatlas.tasks.known import task_for
from convatlas.weights.modelfile import Header


def smooth_image(height: int, width: int, *, seed: int = 0) -> Tensor:
    """Return a smooth random image, uint8 (3, height, width)."""
    values = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(values, size=(height, width), mode="bicubic")[0]
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def random_detector(spec: FasterRCNN, *, classes: int = 3) -> Network:
    """Return a detector whose norms and predictors are scaled to one image."""
    torch.manual_seed(0)
    network: Any = spec.build(classes=classes, channels=3).eval()
    heads, rpn, inputs = network.head.roi_heads, network.head.rpn.head, [smooth_image(60, 90) / 255]

    def results_of(layer: nn.Module) -> Tensor:
        seen: list[Tensor] = []
        with layer.register_forward_hook(lambda *call: seen.append(call[2])):
            network(inputs)
        return torch.cat([each.flatten(1) for each in seen], -1) if seen[0].ndim > 2 else seen[0]

    layers = [(rpn.cls_logits, 2.0), (rpn.bbox_pred, 0.3), (heads.box_predictor.cls_score, 2.0),
              (heads.box_predictor.bbox_pred, 0.5)]  # fmt: skip
    if heads.has_mask():
        layers.append((heads.mask_predictor.mask_fcn_logits, 3.0))
    if heads.has_keypoint():
        layers.append((heads.keypoint_predictor.kps_score_lowres, 3.0))
    with torch.no_grad():
        for layer, deviation in layers:
            layer.bias.zero_()
            layer.weight.mul_(deviation / results_of(layer).std())
        heads.box_predictor.cls_score.bias.sub_(results_of(heads.box_predictor.cls_score).mean(0))
    result: Network = network
    return result


def header_for(spec: FasterRCNN, *, classes: int = 3) -> Header:
    """Return the header of a detector."""
    names = tuple(f"class {number}" for number in range(classes))
    return Header("random", task_for(spec, names), spec, preprocessing_of(spec))


def detections_of(network: Network, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    with torch.inference_mode():
        found: list[dict[str, Tensor]] = network([image / 255 for image in images])
    return found
