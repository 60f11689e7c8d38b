"""What a drawing shows of a detector's head: the feature pyramid, the region proposal network, and the RoI heads."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.misc import Conv2dNormActivation

from convatlas.core.outline import Box, Outline, Parallel, Series, in_series, outline
from convatlas.models.detection.network import DetectionHead


@outline.register(Conv2dNormActivation)
@outline.register(MaskRCNNPredictor)
def _(layers: nn.Sequential) -> Outline | None:
    return in_series(list(layers))


@outline.register
def _(head: DetectionHead) -> Outline | None:
    return in_series([head.neck, head.rpn, head.roi_heads])


@outline.register
def _(neck: FeaturePyramidNetwork) -> Outline | None:
    above = Box(("+ map above, enlarged",), "other")
    items = [in_series([neck.inner_blocks[0]]), above, in_series([neck.layer_blocks[0]])]
    return Series(tuple(item for item in items if item), "feature pyramid", times=len(neck.inner_blocks))


@outline.register
def _(network: RegionProposalNetwork) -> Outline | None:
    head = network.head
    scores_and_boxes = Parallel((_named(head.cls_logits, "scores"), _named(head.bbox_pred, "boxes")), "‖")
    proposals = Box((f"NMS: {network._post_nms_top_n['testing']:,} boxes",), "other")
    return Series((*_flat(in_series([head.conv])), scores_and_boxes, proposals), "region proposal network")


@outline.register
def _(heads: RoIHeads) -> Outline | None:
    branches = [
        Series((Box((f"RoIAlign {pool.output_size[0]}×{pool.output_size[1]}",), "pool"), *_flat(_layers(layers)),
                *_flat(outline(predictor))), f"{name} head")
        for name, pool, layers, predictor in (
            ("box", heads.box_roi_pool, heads.box_head, heads.box_predictor),
            ("mask", heads.mask_roi_pool, heads.mask_head, heads.mask_predictor),
            ("keypoint", heads.keypoint_roi_pool, heads.keypoint_head, heads.keypoint_predictor),
        )
        if pool is not None
    ]  # fmt: skip
    return branches[0] if len(branches) == 1 else Parallel(tuple(branches), "‖")


def _layers(layers: nn.Module) -> Outline | None:
    if isinstance(layers, TwoMLPHead):
        return in_series([layers.fc6, nn.ReLU(), layers.fc7, nn.ReLU()])
    return in_series(list(layers.children()))


@outline.register
def _(predictor: FastRCNNPredictor) -> Outline | None:
    return Parallel((_named(predictor.cls_score, "classes"), _named(predictor.bbox_pred, "boxes")), "‖")


@outline.register
def _(predictor: KeypointRCNNPredictor) -> Outline | None:
    return Series((*_flat(outline(predictor.kps_score_lowres)), Box(("bilinear ×2",), "other")))


def _named(layer: nn.Module, text: str) -> Outline:
    item = outline(layer)
    assert isinstance(item, Box)
    return Box((*item.lines, text), item.kind)


def _flat(item: Outline | None) -> Iterator[Outline]:
    """Yield the items of a series without a title, or the item itself."""
    if isinstance(item, Series) and not item.title and item.times == 1:
        yield from item.items
    elif item is not None:
        yield item
