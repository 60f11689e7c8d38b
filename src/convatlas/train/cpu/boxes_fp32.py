"""Boxes, scores and losses of detectors in float32 while the rest of a step runs in bfloat16.

A bfloat16 has 8 bits: coordinates above 256 px would be multiples of 2. torchvision makes anchors and boxes of the type
of the feature maps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.train.swap_forward import swap_forward

PREDICTORS = {
    "rpn": ["RPNHead"],
    "faster_rcnn": ["FastRCNNPredictor"],
    "mask_rcnn": ["MaskRCNNPredictor"],
    "keypoint_rcnn": ["KeypointRCNNPredictor"],
}
"""Module of torchvision.models.detection -> its layers that output scores, boxes, masks or heatmaps."""


def install(network: nn.Module) -> None:
    """Let anchors, and what predictors return, be float32 under autocast."""
    predictors = tuple(_classes(PREDICTORS))
    anchors = tuple(_classes({"anchor_utils": ["AnchorGenerator"]}))
    for layer in network.modules():
        if isinstance(layer, predictors):
            swap_forward(layer, _forward)
        elif isinstance(layer, anchors):
            swap_forward(layer, _anchors)


def _classes(names: Mapping[str, Sequence[str]]) -> Iterator[type[nn.Module]]:
    """Yield classes of torchvision.models.detection by module, if a network has imported them."""
    for module, members in names.items():
        imported = sys.modules.get(f"torchvision.models.detection.{module}")
        yield from (getattr(imported, each) for each in members if imported)


def to_float32(outputs: Any) -> Any:
    """Return a tensor, or tensors in lists and tuples, as float32."""
    return outputs.float() if isinstance(outputs, Tensor) else type(outputs)(map(to_float32, outputs))


def _forward(layer: Any, x: Any) -> Any:
    return to_float32(type(layer).forward(layer, x))


def _anchors(layer: Any, images: Any, maps: list[Tensor]) -> list[Tensor]:
    shapes = [each.new_empty(1, 0, *each.shape[2:], dtype=torch.float32) for each in maps]
    anchors: list[Tensor] = type(layer).forward(layer, images, shapes)
    return anchors
