"""Specs of detectors: plain data, differences, scaling, wrong cells, cost, key rules, and torchvision's parts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

import convatlas as ca
from convatlas.core.cost import cost
from convatlas.core.spec import diff
from convatlas.errors import SpecError
from convatlas.models.catalog import CATALOG, FAMILIES, SPEC_TYPES, build_fresh, measure, resolve, spec
from convatlas.models.detection.rows import BoxHead, Proposals
from convatlas.models.families.rcnn import FasterRCNN, KeypointRCNN, MaskRCNN, from_body, on_body
from convatlas.models.keys import rename
from convatlas.weights.sizes import Sizes

SMALL: Any = spec("fasterrcnn_resnet18_fpn")
DETECTORS = [name for name, row in CATALOG.items() if row.spec.predicts != "classes"]


@pytest.mark.parametrize("name", DETECTORS)
def test_plain_data_reads_back(name: str) -> None:
    for plain in (json.loads(json.dumps(spec(name).to_plain())), yaml.safe_load(yaml.safe_dump(spec(name).to_plain()))):
        assert type(spec(name)).from_plain(plain, known=SPEC_TYPES) == spec(name)


@pytest.mark.parametrize("name", DETECTORS)
def test_preprocessing_keeps_images_whole(name: str) -> None:
    steps, cells = CATALOG[name].preprocessing, spec(name)
    assert isinstance(cells, FasterRCNN)
    assert steps.is_whole
    assert (steps.resolution, steps.max_size, steps.mean, steps.std) == (
        cells.resolution, cells.max_size, (0, 0, 0), (1, 1, 1),
    )  # fmt: skip


def test_differences_reach_into_the_body() -> None:
    other = replace(SMALL, body=spec("resnet34"), boxes=replace(SMALL.boxes, min_score=0.2))
    assert set(diff(SMALL, other)) == {f"body.depths[{i}]" for i in range(4)} | {"boxes.min_score"}


def test_scaling_reaches_body_neck_and_heads_but_not_the_resolution_of_the_body() -> None:
    scaled = SMALL.scaled(width=0.5, depth=2, resolution=160)
    assert (scaled.body.widths, scaled.body.depths) == ((32, 64, 128, 256), (4, 4, 4, 4))
    assert (scaled.width, scaled.boxes.units, scaled.proposals.convs) == (64, (512, 512), 1)
    assert (scaled.resolution, scaled.max_size, scaled.body.resolution) == (160, 320, 224)
    mobile: Any = spec("fasterrcnn_mobilenet_v2_fpn").scaled(width=0.5)
    assert mobile.body.head == 1280  # as the body scales itself


def test_a_budget_is_fitted() -> None:
    small = ca.fit_budget(SMALL, params="5M")
    assert 0.97 * 5e6 <= measure(small).parameters <= 5e6


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"max_size": 300}, "max_size must be >= resolution, 320 px, got 300 px"),
        ({"anchors": ((8,), (16, 32))}, "anchors must have as many sizes on each level"),
        ({"mean": (0.5,)}, "mean and std must have the same length"),
        ({"norm": "group"}, "norm must be one of frozen, batch, got 'group'"),
    ],
)
def test_wrong_cells_are_refused(cells: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replace(SMALL, **cells)


def test_anchors_for_another_number_of_maps_are_refused() -> None:
    with pytest.raises(
        SpecError, match=r"anchors must have sizes for 5 maps, at strides 4, 8, 16, 32, 64 px, or .*, got 3"
    ):
        build_fresh(replace(SMALL, anchors=((8,),) * 3), device="meta")


def test_anchors_are_eight_strides_by_default() -> None:
    network: Any = build_fresh(replace(SMALL, anchors=()), device="meta")
    assert network.head.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))


def test_a_detector_on_a_body_has_its_normalization() -> None:
    other = on_body("maskrcnn", CATALOG["mobilenet_v3_large_075"])
    assert type(other) is MaskRCNN
    assert (other.mean, other.std) == ((0.5,) * 3, (0.5,) * 3)  # what the weights of the body expect
    assert resolve(other)[0] == "maskrcnn-mobilenet_v3_large_075"
    with pytest.raises(SpecError, match="detector: must be one of fasterrcnn, maskrcnn, keypointrcnn, got 'mask'"):
        on_body("mask", CATALOG["resnet18"])


def test_the_body_of_a_detector_is_replaced() -> None:
    small = CATALOG["fasterrcnn_resnet18_fpn"].spec
    assert isinstance(small, FasterRCNN)
    other = on_body(small, CATALOG["efficientnet_b0"])
    assert other == replace(small, body=CATALOG["efficientnet_b0"].spec)  # everything else stays
    assert resolve(other)[0] == "fasterrcnn-efficientnet_b0"
    build_fresh(other, device="meta")  # its levels have the strides of the anchors
    three_levels = CATALOG["fasterrcnn_mobilenet_v2_fpn"].spec
    assert isinstance(three_levels, FasterRCNN)
    with pytest.raises(SpecError, match="anchors must have sizes for 5 maps"):
        build_fresh(on_body(three_levels, CATALOG["resnet18"]), device="meta")


# --- cost


@pytest.mark.parametrize(
    ("name", "giga"), [("fasterrcnn_resnet50_fpn", 134.38), ("fasterrcnn_resnet50_fpn_v2", 280.371),
                       ("maskrcnn_resnet50_fpn_v2", 333.577)],
)  # fmt: skip
def test_multiply_adds_are_those_that_torchvision_states(name: str, giga: float) -> None:
    assert measure(name).macs / 1e9 == pytest.approx(giga, abs=5e-3)


def test_multiply_adds_are_those_that_torch_counts() -> None:
    """One image whose sides need no padding; with random weights every proposal reaches the box head."""
    from torch.utils.flop_counter import FlopCounterMode

    cells: Any = {
        "proposals": Proposals(before_nms=(9, 9), after_nms=(4, 4), nms=1.0),
        "resolution": 64,
        "max_size": 64,
    }
    for kind in (FasterRCNN, MaskRCNN, KeypointRCNN):
        boxes = BoxHead(min_score=0.0, nms=1.0, detections=4)
        network = build_fresh(kind(spec("resnet18"), **cells, boxes=boxes), classes=3, channels=3).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            (found,) = network([torch.rand(3, 64, 64)])
        assert len(found["boxes"]) == 4
        assert cost(network).macs == counter.get_total_flops() // 2


def test_more_proposals_cost_more_in_the_box_head_alone() -> None:
    more = replace(SMALL, proposals=replace(SMALL.proposals, after_nms=(500, 300)))
    few, many = ({layer.path: layer.macs for layer in measure(each).layers} for each in (SMALL, more))
    for path, macs in few.items():
        assert many[path] == (2 if "roi_heads" in path else 1) * macs


# --- files


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("fasterrcnn_resnet50_fpn", "backbone.fpn.layer_blocks.2.bias", "head.neck.layer_blocks.2.0.bias"),
        ("fasterrcnn_resnet50_fpn", "rpn.head.conv.weight", "head.rpn.head.conv.0.0.weight"),
        ("maskrcnn_resnet50_fpn", "roi_heads.mask_head.mask_fcn3.weight", "head.roi_heads.mask_head.2.0.weight"),
        ("maskrcnn_resnet50_fpn", "backbone.body.bn1.num_batches_tracked", ""),
        ("maskrcnn_resnet50_fpn_v2", "backbone.body.bn1.num_batches_tracked", "stem.conv.norm.num_batches_tracked"),
        ("fasterrcnn_mobilenet_v3_large_fpn", "backbone.body.0.0.weight", "stem.conv.weight"),
        ("fasterrcnn_mobilenet_v3_large_fpn", "backbone.body.16.1.bias", "stages.6.conv.norm.bias"),
    ],
)
def test_names_of_torchvision_files(name: str, theirs: str, ours: str) -> None:
    assert rename(theirs, FAMILIES["rcnn"].rules(spec(name))["torchvision"]) == ours
    assert not ours or ours in build_fresh(name, device="meta").state_dict()


@pytest.mark.parametrize("name", DETECTORS)
def test_names_of_the_body_are_those_of_its_own_network(name: str) -> None:
    cells = spec(name)
    assert isinstance(cells, FasterRCNN)
    own = build_fresh(cells.body, device="meta").state_dict()
    rules = from_body(cells)
    names = {rename(key, rules) for key in own} - {""}
    body = {key for key in build_fresh(name, device="meta").state_dict() if not key.startswith("head.")}
    assert names == body


def test_head_layers_behind_the_last_stage_are_found_in_the_body() -> None:
    rules = from_body(spec("fasterrcnn_mobilenet_v3_large_fpn"))  # type: ignore[arg-type]
    assert rename("head.conv.conv.weight", rules) == "stages.6.conv.conv.weight"
    assert rename("head.hidden.weight", rules) == ""


@pytest.mark.parametrize("name", ["maskrcnn_resnet18_fpn", "keypointrcnn_resnet18_fpn"])
def test_sizes_follow_the_number_of_classes(name: str) -> None:
    sizes = Sizes(spec(name))
    state = build_fresh(name, classes=7, channels=4, device="meta").state_dict()
    tensors = sizes.tensors(7, 4)
    assert {key: tensor.shape for key, tensor in tensors.items()} == {key: each.shape for key, each in state.items()}
    assert (sizes.classes_of(state), sizes.channels_of(state)) == (7, 4)


def test_the_names_of_torchvision_that_are_used_exist() -> None:
    """Private ones can change with any release; the versions from 0.21 have them."""
    from torchvision.models.detection import _utils, roi_heads, rpn, transform
    from torchvision.ops import poolers

    assert callable(_utils.BalancedPositiveNegativeSampler.__call__)
    assert callable(poolers.initLevelMapper)
    assert hasattr(transform.GeneralizedRCNNTransform, "batch_images")
    network: Any = build_fresh("maskrcnn_resnet18_fpn", device="meta")
    assert isinstance(network.head.rpn, rpn.RegionProposalNetwork)
    assert isinstance(network.head.roi_heads, roi_heads.RoIHeads)
    for module, names in (
        (network.head.rpn, ("fg_bg_sampler", "_post_nms_top_n", "anchor_generator")),
        (network.head.roi_heads, ("fg_bg_sampler", "has_mask", "has_keypoint", "detections_per_img", "score_thresh")),
        (network.head.roi_heads.box_roi_pool, ("scales", "map_levels", "output_size")),
    ):
        assert all(hasattr(module, name) for name in names)
