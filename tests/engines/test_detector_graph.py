"""The module of a detector that is exported computes what the network computes, for one image of any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, paste_masks_in_image
from torchvision.ops import batched_nms

from convatlas.engines.deploy import RESULTS
from convatlas.engines.detector_graph import DetectorModule
from convatlas.engines.detector_results import locate_keypoints, paste_masks
from convatlas.engines.detector_steps import DROPPED, best_of_groups, resize_bilinear
from convatlas.engines.onnxruntime import as_torchvision
from convatlas.inference.detector_parity import DetectorParity, add_image
from convatlas.models.catalog import CATALOG
from convatlas.models.families.rcnn import FasterRCNN
from random_detectors import detections_of, header_for, random_detector, smooth_image
from tiny_detection import TINY_SPECS

SIZES = [(60, 90), (150, 41), (64, 64), (3, 200)]

NECKS: dict[str, dict[str, Any]] = {"": {}, "single map": {"neck": "single map", "anchors": ((16, 32, 64),)}}
"""What is replaced in the spec of a detector."""


def check_module(spec: FasterRCNN) -> None:
    # all objects are kept: of several with the same score, any may be among the first ones
    spec = replace(spec, boxes=replace(spec.boxes, detections=100))
    network = random_detector(spec)
    module = DetectorModule(network, header_for(spec).preprocessing).eval()
    names = ("boxes", "labels", "scores", *RESULTS[spec.predicts])
    parity = DetectorParity()
    for seed, size in enumerate(SIZES):
        image = smooth_image(*size, seed=seed)
        (expected,) = detections_of(network, [image])
        with torch.inference_mode():
            found = dict(zip(names, module(image, torch.tensor(spec.boxes.min_score)), strict=True))
            nothing = module(image, torch.tensor(1.0))
        parity = add_image(parity, expected, as_torchvision(found))
        assert [len(each) for each in nothing] == [0] * len(names)
    assert parity.num_same == parity.num_objects > len(SIZES)
    assert parity.num_other_pixels == 0
    # heatmaps of random weights have maxima of nearly the same value
    assert parity.num_same_keypoints >= 0.98 * parity.num_keypoints
    assert bool(parity.num_pixels) == (spec.predicts == "masks")
    assert bool(parity.num_keypoints) == (spec.predicts == "keypoints")


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("kind", TINY_SPECS)
def test_the_module_has_the_objects_of_the_network(kind: str, neck: str) -> None:
    check_module(replace(TINY_SPECS[kind], **NECKS[neck]))


def test_another_body() -> None:
    check_module(replace(TINY_SPECS["detect"], body=CATALOG["mobilenet_v3_small"].spec))


@pytest.mark.parametrize("size", [(48, 64), (20, 90), (200, 30)])
def test_images_are_resized_as_by_torch(size: tuple[int, int]) -> None:
    image = torch.rand(3, 57, 80)
    expected = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(resize_bilinear(image, *size), expected, atol=1e-5, rtol=0)


def test_boxes_of_each_group_are_suppressed_alone() -> None:
    torch.manual_seed(0)
    corners = torch.rand(3, 200, 2) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(3, 200, 2) * 20], -1)
    scores = torch.rand(3, 200).where(torch.rand(3, 200) > 0.2, DROPPED)
    candidates = (scores > DROPPED).flatten().nonzero().flatten()
    groups = torch.arange(3).repeat_interleave(200)[candidates]
    expected = candidates[batched_nms(boxes.view(-1, 4)[candidates], scores.flatten()[candidates], groups, 0.5)]
    best, where = best_of_groups(boxes, scores, iou=0.5, count=700)
    count = len(expected)
    assert torch.equal(where[:count], expected)
    assert torch.equal(best[:count], scores.flatten()[expected])
    assert bool((best[count:] == DROPPED).all())
    assert not where[count:].any()


def boxes_up_to(side: float, count: int) -> Tensor:
    """Return boxes (count, 4) with sides from 4 px to `side`, which begin at up to 100 px."""
    first = torch.rand(count, 2) * 100
    return torch.cat([first, first + 4 + torch.rand(count, 2) * (side - 4)], 1)


def test_masks_are_pasted_as_by_torchvision() -> None:
    torch.manual_seed(0)
    masks, boxes = torch.rand(20, 28, 28), boxes_up_to(80, 20) - 3
    expected = paste_masks_in_image(masks[:, None], boxes, (190, 180))[:, 0] >= 0.5
    assert torch.equal(paste_masks(masks, boxes, 190, 180) > 0, expected)
    assert paste_masks(masks[:0], boxes[:0], 190, 180).shape == (0, 190, 180)


def test_keypoints_in_boxes_of_up_to_twice_the_heatmap_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    heatmaps, boxes = torch.randn(12, 3, 56, 56), boxes_up_to(112, 12)
    expected, scores = heatmaps_to_keypoints(heatmaps, boxes)
    found = locate_keypoints(heatmaps, boxes, max_side=1333)
    assert torch.equal(found[..., :2], expected[..., :2])
    torch.testing.assert_close(found[..., 2], scores, atol=1e-4, rtol=0)


def test_keypoints_in_larger_boxes_are_those_of_torchvision_where_heatmaps_have_one_maximum() -> None:
    torch.manual_seed(0)
    cells = torch.arange(56.0)
    center = torch.rand(12, 3, 2) * 56
    x, y = (-((cells - center[..., axis, None]) ** 2) / 18 for axis in (0, 1))
    heatmaps, boxes = 10 * torch.exp(y[..., None] + x[..., None, :]), boxes_up_to(900, 12)
    expected, _ = heatmaps_to_keypoints(heatmaps, boxes)
    assert torch.equal(locate_keypoints(heatmaps, boxes, max_side=1333)[..., :2], expected[..., :2])
