"""Detectors of torchvision with random weights, and the same weights in ours."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.models.catalog import CATALOG, FAMILIES, build_fresh
from convatlas.models.detection.rows import BoxHead, KeypointHead, MaskHead, Proposals
from convatlas.models.families.rcnn import FasterRCNN, KeypointRCNN, MaskRCNN
from convatlas.models.families.resnet import ResNet
from convatlas.models.keys import remap_keys

ROWS = [name for name, row in CATALOG.items() if row.spec.predicts != "classes" and row.upstream]


def theirs(name: str) -> nn.Module:
    """Return torchvision's detector with random values, and frozen norms where its weights have them."""
    spec = CATALOG[name].spec
    assert isinstance(spec, FasterRCNN)
    torch.manual_seed(0)
    detector: Any = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    detector.transform.min_size = (spec.resolution,)  # the keypoint detector draws one of several in training
    return with_random_norms(detector, spec)


def with_random_norms(detector: Any, spec: FasterRCNN) -> nn.Module:
    """Give the norms random values; those of the body become constants if the spec says so."""
    for layer in list(detector.backbone.body.modules()):
        for key, child in layer.named_children():
            if spec.norm == "frozen" and isinstance(child, nn.BatchNorm2d):
                eps = child.eps if spec.eps is None else spec.eps
                setattr(layer, key, torchvision.ops.FrozenBatchNorm2d(child.num_features, eps))
    for layer in detector.modules():
        if isinstance(layer, nn.BatchNorm2d | torchvision.ops.FrozenBatchNorm2d):
            for tensor, (low, high) in (
                (layer.weight, (0.3, 0.7)), (layer.bias, (-0.2, 0.2)), (layer.running_mean, (-0.2, 0.2)),
                (layer.running_var, (0.5, 1.5)),
            ):  # fmt: skip
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    module: nn.Module = detector
    return module


SMALL_BODY = ResNet("basic", (1, 1, 1, 1))
SMALL: dict[str, Any] = {
    "body": SMALL_BODY, "resolution": 64, "max_size": 96,
    "proposals": Proposals(before_nms=(40, 40), after_nms=(30, 20)),
    "boxes": BoxHead(units=(32, 32), samples=24, min_score=0.0, detections=10),
}  # fmt: skip
SMALL_SPECS: dict[str, FasterRCNN] = {
    "fasterrcnn": FasterRCNN(**SMALL), "maskrcnn": MaskRCNN(**SMALL, masks=MaskHead(convs=(16,), deconv=16)),
    "keypointrcnn": KeypointRCNN(**SMALL, keypoints=KeypointHead(convs=(16,))),
}  # fmt: skip


def small_pair(kind: str, *, classes: int = 3) -> tuple[Network, nn.Module]:
    """Return a small detector of ours, and one that is put together of torchvision's parts, with the same weights."""
    spec, detection = SMALL_SPECS[kind], torchvision.models.detection
    torch.manual_seed(0)
    body = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    extractor = detection.backbone_utils._resnet_fpn_extractor(body, 5)
    regions = detection.mask_rcnn if kind == "maskrcnn" else detection.keypoint_rcnn
    more: dict[str, Any] = {}
    if kind == "maskrcnn":
        more["mask_head"] = regions.MaskRCNNHeads(256, (16,), 1)
        more["mask_predictor"] = regions.MaskRCNNPredictor(16, 16, classes + 1)
    if kind == "keypointrcnn":
        more["keypoint_head"] = regions.KeypointRCNNHeads(256, (16,))
        more["keypoint_predictor"] = regions.KeypointRCNNPredictor(16, 17)
    builder = {"fasterrcnn": detection.FasterRCNN, "maskrcnn": detection.MaskRCNN}.get(kind, detection.KeypointRCNN)
    other = builder(
        extractor, None, 64, 96, rpn_pre_nms_top_n_train=40, rpn_pre_nms_top_n_test=40, rpn_post_nms_top_n_train=30,
        rpn_post_nms_top_n_test=20, box_batch_size_per_image=24, box_score_thresh=0.0, box_detections_per_img=10,
        box_head=detection.faster_rcnn.TwoMLPHead(256 * 49, 32),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(32, classes + 1), **more,
    )  # fmt: skip
    with_random_norms(other, spec)
    network = build_fresh(spec, classes=classes, channels=3)
    network.load_state_dict(renamed(other.state_dict(), spec, network.state_dict()))
    return network, other


def renamed(state: dict[str, Tensor], spec: Spec, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return torchvision's tensors under our names."""
    rules = FAMILIES["rcnn"].rules(spec)["torchvision"]
    return remap_keys(state, rules, expected)


def pair(name: str) -> tuple[Network, nn.Module]:
    """Return our detector and torchvision's with the same weights."""
    row, other = CATALOG[name], theirs(name)
    network = build_fresh(row.spec, classes=row.classes, channels=3)
    network.load_state_dict(renamed(other.state_dict(), row.spec, network.state_dict()))
    return network, other


def targets_of(images: list[Tensor], classes: int) -> list[dict[str, Tensor]]:
    """Return random objects: none in the last image."""
    generator = torch.Generator().manual_seed(1)
    targets = []
    for number, image in enumerate(images):
        count = 0 if number == len(images) - 1 else 3
        height, width = image.shape[-2:]
        corner = torch.rand(count, 2, generator=generator) * 0.5
        size = 0.2 + torch.rand(count, 2, generator=generator) * 0.3
        boxes = torch.cat([corner, corner + size], 1) * torch.tensor([width, height, width, height])
        keypoints = boxes[:, None, :2] + torch.rand(count, 17, 2, generator=generator) * (
            boxes[:, None, 2:] - boxes[:, None, :2]
        )
        masks = torch.zeros(count, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        targets.append({
            "boxes": boxes, "labels": torch.randint(1, classes + 1, (count,), generator=generator), "masks": masks,
            "keypoints": torch.cat([keypoints, torch.full((count, 17, 1), 2.0)], 2),
        })  # fmt: skip
    return targets
