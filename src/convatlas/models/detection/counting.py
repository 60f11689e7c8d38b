"""The cost of a detector's head: once for the maps of the neck, then as often as there are regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork

from convatlas.core.signal import LayerCost, Signal, Tally, rule, walk
from convatlas.models.detection.keypoints import KeypointPredictor


def count_head(head: Any, maps: Sequence[Signal], tally: Tally) -> Signal:
    """Count neck, region proposal network and RoI heads for one image, and return the signal of the class scores.

    maps: of the levels. The box head runs for the largest number of proposals of an image, the heads for masks and
    keypoints for the largest number of detections.
    """
    with tally.inside("neck"):
        pyramid = _neck(head.neck, maps, tally)
    with tally.inside("rpn"), tally.inside("head"), _merged(tally):
        for level in pyramid:
            walk(head.rpn.head, level, tally)
    heads = head.roi_heads
    with tally.inside("roi_heads"):
        y = _regions(heads, "box", pyramid[0], head.rpn._post_nms_top_n["testing"], tally)
        if heads.has_mask():
            _regions(heads, "mask", pyramid[0], heads.detections_per_img, tally)
        if heads.has_keypoint():
            _regions(heads, "keypoint", pyramid[0], heads.detections_per_img, tally)
    return y


def _regions(heads: Any, name: str, level: Signal, number: int, tally: Tally) -> Signal:
    """Count a head for `number` regions; the shapes of its layers are those of one region."""
    size = getattr(heads, f"{name}_roi_pool").output_size
    x = replace(level, shape=(level.channels, *size), is_global=True)
    first = len(tally.layers)
    for part in (f"{name}_head", f"{name}_predictor"):
        with tally.inside(part):
            x = walk(getattr(heads, part), x, tally)
    tally.layers[first:] = [_times(layer, number) for layer in tally.layers[first:]]
    return x


def _neck(neck: Any, maps: Sequence[Signal], tally: Tally) -> list[Signal]:
    """Return the signals of the neck's maps (Lin et al. 2017, figure 3)."""
    if not isinstance(neck, FeaturePyramidNetwork):
        return [walk(neck, maps[-1], tally)]
    pyramid: list[Signal] = []
    above: Signal | None = None
    for i in reversed(range(len(maps))):
        with tally.inside("inner_blocks"), tally.inside(str(i)):
            x = walk(neck.inner_blocks[i], maps[i], tally)
        if above is not None:
            fields = tuple(max(axis) for axis in zip(x.receptive_field, above.receptive_field, strict=True))
            x = replace(x, receptive_field=fields, depth=max(x.depth, above.depth))
        above = x
        with tally.inside("layer_blocks"), tally.inside(str(i)):
            pyramid.insert(0, walk(neck.layer_blocks[i], x, tally))
    last = pyramid[-1]
    half = tuple((size + 1) // 2 for size in last.spatial)
    pool = replace(last, shape=(last.channels, *half), stride=tuple(2 * stride for stride in last.stride))
    return [*pyramid, pool]


def _times(layer: LayerCost, number: int) -> LayerCost:
    return replace(
        layer, macs=number * layer.macs, activations=number * layer.activations,
        connections=number * layer.connections,
    )  # fmt: skip


@contextmanager
def _merged(tally: Tally) -> Iterator[None]:
    """Add up the layers that are counted several times inside; their shapes are those of the first time."""
    first = len(tally.layers)
    yield
    merged: dict[tuple[str, str], LayerCost] = {}
    for layer in tally.layers[first:]:
        known = merged.get((layer.path, layer.kind))
        merged[layer.path, layer.kind] = layer if known is None else replace(
            known, parameters=known.parameters + layer.parameters, macs=known.macs + layer.macs,
            activations=known.activations + layer.activations, connections=known.connections + layer.connections,
        )  # fmt: skip
    tally.layers[first:] = list(merged.values())


def _walk_named(tree: nn.Module, name: str, x: Signal, tally: Tally) -> Signal:
    with tally.inside(name):
        return walk(tree.get_submodule(name), x, tally)


@rule.register
def _(head: RPNHead, x: Signal, tally: Tally) -> Signal:
    x = _walk_named(head, "conv", x, tally)
    _walk_named(head, "bbox_pred", x, tally)
    return _walk_named(head, "cls_logits", x, tally)


@rule.register
def _(head: TwoMLPHead, x: Signal, tally: Tally) -> Signal:
    x = replace(x, shape=(x.size,), is_global=True)
    return _walk_named(head, "fc7", _walk_named(head, "fc6", x, tally), tally)


@rule.register
def _(predictor: FastRCNNPredictor, x: Signal, tally: Tally) -> Signal:
    _walk_named(predictor, "bbox_pred", x, tally)
    return _walk_named(predictor, "cls_score", x, tally)


@rule.register
def _(predictor: KeypointPredictor, x: Signal, tally: Tally) -> Signal:
    y = _walk_named(predictor, "kps_score_lowres", x, tally)
    return y.like((y.channels, *(predictor.up_scale * size for size in y.spatial)))
