"""Class logits of given boxes: those of the network, differentiable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from convatlas.models.catalog import build_fresh
from convatlas.models.families.rcnn import FasterRCNN, MaskRCNN
from convatlas.models.families.resnet import ResNet
from torchvision_detectors import SMALL

TINY: dict[str, Any] = {**SMALL, "body": ResNet("basic", (1, 1, 1, 1), (8, 16, 24, 32), 8), "width": 16}
IMAGES = [torch.rand(3, *size, generator=torch.Generator().manual_seed(3)) for size in ((60, 80), (100, 50))]


def detector(kind: type[FasterRCNN] = FasterRCNN, **cells: Any) -> Any:
    torch.manual_seed(0)
    return build_fresh(kind(**(TINY | cells)), classes=3).eval()


def proposals_of(network: Any, images: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return the proposals (k, 4) of each image, in its pixels, and the logits that the network computes for them."""
    seen: dict[str, Any] = {}
    heads = network.head.roi_heads
    hooks = [
        heads.box_roi_pool.register_forward_hook(lambda _, given, __: seen.update(boxes=given[1], shapes=given[2])),
        heads.box_predictor.register_forward_hook(lambda _, __, found: seen.update(logits=found[0])),
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    sizes = [tuple(image.shape[1:]) for image in images]
    boxes = [resize_boxes(*each) for each in zip(seen["boxes"], seen["shapes"], sizes, strict=True)]
    return boxes, seen["logits"]


@pytest.mark.parametrize(
    ("kind", "cells"), [(FasterRCNN, {}), (MaskRCNN, {}), (FasterRCNN, {"neck": "single map", "levels": ("stages.2",)})]
)
def test_logits_of_proposals_are_those_of_the_network(kind: type[FasterRCNN], cells: dict[str, Any]) -> None:
    network = detector(kind, **cells)
    boxes, expected = proposals_of(network, IMAGES)
    with torch.no_grad():
        batch, _ = network.transform(IMAGES)
        sizes = [(60, 80), (100, 50)]
        logits = network.box_logits(batch, network.maps(batch.tensors), boxes, sizes)
    assert logits.shape == (sum(map(len, boxes)), 4)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_gradients_flow_to_the_maps_and_stay_near_the_box() -> None:
    network = detector(neck="single map", levels=("stages.2",))
    batch, _ = network.transform([torch.rand(3, 128, 128)])
    maps = [each.detach().requires_grad_() for each in network.maps(batch.tensors)]
    box = torch.tensor([[0.0, 0.0, 30.0, 30.0]])
    network.box_logits(batch, maps, [box], [(128, 128)])[0, 1].backward()
    assert maps[0].grad is not None
    (rows,) = maps[0].grad.abs().sum((0, 1, 3)).nonzero(as_tuple=True)
    assert 0 < len(rows) < maps[0].shape[2]
